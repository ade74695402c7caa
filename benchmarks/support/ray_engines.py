"""Ray's rows of `benchmarks/engines.py`: babysit on a Ray cluster, and Ray Train by itself.

Both run on a cluster of several raylets on this machine (`tests/ray`). A node is lost by SIGKILL to
its raylet, with which Ray ends its workers; what babysit kept in the memory of that node goes too.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from benchmarks.support.engines import NODES, Local, environment_set, free_port
from benchmarks.support.harness import control_plane, path, until
from orchestrator.cli.session import Session
from tests.ray.bed import ROOT, Bed

_DRIVER = Path(__file__).with_name("ray_train_driver.py")
_TRIES = 8
"""Ray gives a raylet 15 s to start its own agents, which a loaded machine may exceed."""


class Nodes:
    """The nodes of a bed, by name."""

    def __init__(self, bed: Bed, count: int) -> None:
        self._bed = bed
        self.raylets = {f"node-{n}": bed.add(f"node-{n}", cpus=2) for n in range(1, count + 1)}
        self._lost: list[str] = []

    def lose(self, name: str) -> None:
        """SIGKILL to the raylet of a node."""
        self._bed.ask("kill", name)
        self._lost.append(name)

    def give_back(self) -> None:
        """Start other nodes in the place of those that were lost."""
        for name in self._lost:
            again = f"{name}-again"
            self.raylets[again] = self._bed.add(again, cpus=2)
            del self.raylets[name]
        self._lost = []


class Ray(Local):
    """babysit's workers as actors of a Ray cluster."""

    name = "ray"

    def __init__(self, session: Session, shared: Path, nodes: Nodes) -> None:
        super().__init__(session, shared)
        self._nodes = nodes

    def lose_node(self, run: str) -> bool:
        """SIGKILL to a raylet; the memory of its node is lost with it."""
        seat = self.session.api.get(path("runs", run, "ranks"))["seats"][-1]
        self._nodes.lose(seat["node"])
        shutil.rmtree(f"/dev/shm/babysit-{seat['worker']}", ignore_errors=True)
        return True

    def give_back(self) -> None:
        """Start another node, and wait until it is used."""
        self._nodes.give_back()
        until(
            lambda: self.session.api.get(path("info"))["nodes_ready"] == NODES, "nodes", seconds=300
        )


class RayTrain:
    """A `TorchTrainer` whose workers run the script of the other engines."""

    name = "ray_train"

    def __init__(self, address: str, shared: Path, nodes: Nodes) -> None:
        self.shared, self._address, self._nodes = shared, address, nodes
        self._driver: subprocess.Popen[bytes] | None = None

    def start(self, job: Path, log: Path, ranks: int) -> None:
        """Start the driver."""
        checkpoints = Path("/dev/shm") / f"babysit-engines-{os.getpid()}"
        command = [str(_DRIVER), self._address, str(job), str(log), str(checkpoints), "1000000"]
        with (self.shared / "driver.log").open("wb") as output:
            self._driver = subprocess.Popen(
                [sys.executable, *command, str(ranks)],
                env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    def lose_worker(self, log: Path, rank: int) -> bool:
        """SIGKILL to the process of a rank."""
        os.kill(_pid(log, rank), signal.SIGKILL)
        return True

    def lose_node(self, log: Path, rank: int) -> bool:
        """SIGKILL to the raylet that is the parent of a rank's process."""
        stat = Path(f"/proc/{_pid(log, rank)}/stat").read_text()
        parent = int(stat.rpartition(")")[2].split()[1])
        self._nodes.lose(next(n for n, pid in self._nodes.raylets.items() if pid == parent))
        return True

    def give_back(self) -> None:
        """Start another node."""
        self._nodes.give_back()

    def stop(self) -> None:
        """End the driver, and with it the workers."""
        if self._driver is not None:
            self._driver.terminate()
            self._driver.wait(60)
        shutil.rmtree(f"/dev/shm/babysit-engines-{os.getpid()}", ignore_errors=True)


def _ready(session: Session) -> int:
    return int(session.api.get(path("info"))["nodes_ready"])


def _pid(log: Path, rank: int) -> int:
    """The process that wrote the last whole line of a rank's log."""
    rows = log.with_suffix(f".{rank}").read_text().splitlines(keepends=True)
    return int([row for row in rows if row.endswith("\n")][-1].split()[2])


@contextlib.contextmanager
def ray_cluster() -> Iterator[tuple[str, Nodes]]:
    """A cluster of `NODES` raylets; its address, and its nodes."""
    for tries in range(_TRIES):
        with Bed() as bed:
            try:
                address, nodes = bed.address, Nodes(bed, NODES)
            except AssertionError:
                if tries + 1 == _TRIES:
                    raise
                continue
            yield address, nodes
            return


@contextlib.contextmanager
def on_ray(directory: Path, address: str, nodes: Nodes) -> Iterator[Ray]:
    """A control plane on a Ray cluster."""
    (directory / "shared").mkdir(parents=True)
    port = free_port()
    given = {
        "BABYSIT_CLUSTER": "ray",
        "BABYSIT_RAY_ADDRESS": address,
        "BABYSIT_PORT": str(port),
        "BABYSIT_AGENT_URL": f"ws://127.0.0.1:{port}/agent",
        "BABYSIT_ALLOW_HTTP": "1",
    }
    with environment_set(given), control_plane(directory, idle_seconds=3600) as session:
        until(lambda: _ready(session) == NODES, "the nodes are known", seconds=180)
        yield Ray(session, directory / "shared", nodes)


@contextlib.contextmanager
def ray_train(directory: Path, address: str, nodes: Nodes) -> Iterator[RayTrain]:
    """Ray Train on a Ray cluster."""
    (directory / "shared").mkdir(parents=True)
    engine = RayTrain(address, directory / "shared", nodes)
    try:
        yield engine
    finally:
        engine.stop()
