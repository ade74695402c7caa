"""Strikes the ranks and agents of a drill's run: signals from outside, orders to the script.

Only processes that bear the mark of a worker of the drill's own home are signalled, and only a run
whose spec asks for it (`BABYSIT_DRILL_ALLOWED` in its environment).
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from babysit.ring import RingReader
from babysit.wire import RING_FILE
from jobs.agent.reaper import ENV_WORKER
from orchestrator.cli.errors import CliError, ExitCode
from orchestrator.cli.paths import path
from orchestrator.cli.session import Session
from orchestrator.clusters.local.worker_records import Records
from orchestrator.core.views.models import RunDetail
from orchestrator.judgement.faults import Fault

ALLOWED = "BABYSIT_DRILL_ALLOWED"
"""Variable in the environment of a spec that permits faults to be injected into its runs."""
VICTIM = 1
"""The rank that is struck, or 0 in a run of one rank."""
ORDERS = {"corrupt": "truncate", "spike": "flip"}
"""Orders whose name is not that of the fault."""
_OBEYED_SECONDS = 60.0
_POLL_SECONDS = 0.05


class StrikeError(Exception):
    """A fault could not be injected."""


class Strikes:
    """Injects faults into one run of an embedded control plane on this machine."""

    def __init__(self, here: Session, run: RunDetail, orders: Path) -> None:
        """Prepare strikes.

        Raises:
            CliError: The spec of the run does not ask for faults.
        """
        if run.spec.env.get(ALLOWED) != "1":
            raise CliError(
                f"{run.name} does not ask for faults: its spec has no {ALLOWED}: '1' below env",
                ExitCode.REFUSED,
            )
        self._here, self._run, self._orders = here, run.id, orders
        self._records = Records(here.settings.home)
        self._victim = min(VICTIM, self._world_size(run) - 1)

    @staticmethod
    def _world_size(run: RunDetail) -> int:
        need = run.spec.resources
        return need.min_nodes * need.processes_per_node

    def inject(self, fault: Fault) -> float:
        """Strike; the moment of the fault, in Unix seconds.

        Raises:
            StrikeError: There is nothing to strike, or the script did not obey.
        """
        if fault.means == "inside":
            return self._order(ORDERS.get(fault.name, fault.name))
        strikes: dict[str, Callable[[], None]] = {
            "kill": partial(self._signal_rank, signal.SIGKILL),
            "hang": partial(self._signal_rank, signal.SIGSTOP),
            "agent": partial(self._signal_agent, signal.SIGKILL),
            "preempt": partial(self._signal_agent, signal.SIGTERM),
            "node": self._lose_node,
        }
        at = self._here.clock.now().timestamp()
        strikes[fault.name]()
        return at

    def _order(self, name: str) -> float:
        self._orders.mkdir(parents=True, exist_ok=True)
        order = self._orders / f"{name}-{self._victim}"
        done = order.with_suffix(".done")
        done.unlink(missing_ok=True)
        order.touch()
        deadline = self._here.clock.monotonic() + _OBEYED_SECONDS
        while not done.exists():
            if self._here.clock.monotonic() > deadline:
                order.unlink(missing_ok=True)
                raise StrikeError(f"rank {self._victim} took no order for {_OBEYED_SECONDS:.0f} s")
            self._here.wait(_POLL_SECONDS)
        return done.stat().st_mtime

    def _signal_rank(self, number: signal.Signals) -> None:
        for rank, pid in self._ranks():
            if rank == self._victim:
                _send(pid, number)
                return
        raise StrikeError(f"rank {self._victim} is not running")

    def _signal_agent(self, number: signal.Signals) -> None:
        _send(self._agent()[1], number)

    def _lose_node(self) -> None:
        node, pid = self._agent()
        self._here.api.post(path("nodes", node, "cordon"), reason="drill: the node vanishes")
        _send(pid, signal.SIGKILL)

    def _ranks(self) -> Iterator[tuple[int, int]]:
        """Rank and pid of the live ranks of the run."""
        memory = self._records.memory(self._run, "worker").parent
        for ring in memory.glob(f"*/ranks/rank-*/{RING_FILE}"):
            with contextlib.suppress(FileNotFoundError, ValueError):
                reader = RingReader(ring)
                pid = reader.progress().pid
                reader.close()
                if self._is_ours(pid):
                    yield int(ring.parent.name.removeprefix("rank-")), pid

    def _agent(self) -> tuple[str, int]:
        """Node and pid of the agent of the victim's node."""
        detail = self._here.api.get(path("runs", self._run))
        node = detail["node_names"][-1]
        for record in self._records.unacknowledged():
            agent = record.agent
            if agent is None or record.gone is not None or record.run != self._run:
                continue
            if record.node == node and self._is_ours(agent.pid):
                return node, agent.pid
        raise StrikeError(f"the run has no agent on {node}")

    def _is_ours(self, pid: int) -> bool:
        """True if a process bears the mark of a worker of this run."""
        try:
            words = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        except OSError:
            return False
        return any(word.startswith(f"{ENV_WORKER}={self._run}-w".encode()) for word in words)


def _send(pid: int, number: signal.Signals) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError as error:
        raise StrikeError(f"pid {pid} ended before it was struck") from error
