"""One run of a trainer of `benchmarks/trainers.py`, and what its ranks wrote down."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.support.harness import path, submit
from benchmarks.support.harness import until as wait_until
from benchmarks.support.trainer_rows import SCRIPTS, Row
from orchestrator.cli.errors import UnreachableError
from orchestrator.cli.session import Session

ROOT = Path(__file__).resolve().parents[2]
STEPS = 300
RANKS = 2
PATIENCE_SECONDS = 240.0
"""Most seconds from a fault until the run is past it."""
START_SECONDS = 900.0
"""Most seconds for the first start of a script: DeepSpeed compiles, for two minutes if idle."""
SAME_LOSS = 1e-4
"""Greatest difference of a loss that babysit has from the one of the script, of floats."""


def until(ready: Callable[[], Any], what: str, seconds: float = PATIENCE_SECONDS) -> Any:
    """Wait for a condition; returns its first true value.

    Raises:
        TimeoutError: It did not become true.
    """
    return wait_until(ready, what, seconds=seconds, pause=0.2)


_TRIES = 5
"""Requests to a server on a loaded machine, whose answers may come too late."""


@dataclasses.dataclass
class Line:
    """One step of one rank."""

    batch: int
    loss: float


def submit_once(session: Session, directory: Path, spec: dict[str, Any]) -> str:
    """Submit a spec, whose name is its own; the id of the run, also if the answer was lost.

    Raises:
        UnreachableError: The server did not answer several times.
    """
    for _ in range(_TRIES):
        try:
            return submit(session, directory, spec)
        except UnreachableError:
            if found := run_named(session, spec["name"]):
                return found
    return submit(session, directory, spec)


def run_named(session: Session, name: str) -> str:
    """The id of the run with this name; empty: there is none."""
    runs = session.patient.get(path("runs"), limit=1000)
    return next((run["id"] for run in runs if run["name"] == name), "")


class TrainerRun:
    """A run: what its ranks wrote down, and what babysit says of it."""

    def __init__(
        self, session: Session, root: Path, environment: dict[str, str] | None = None
    ) -> None:
        self._session = session
        self._more = environment or {}
        self._notes = root / "notes"
        self._notes.mkdir(parents=True)
        self._root = root
        self.id = ""

    @property
    def environment(self) -> dict[str, str]:
        """Variables of the ranks."""
        return {
            "PYTHONPATH": f"{ROOT}{os.pathsep}{SCRIPTS}",
            "TRAINERS_NOTES": str(self._notes),
            "TRAINERS_STEPS": str(STEPS),
            "OMP_NUM_THREADS": "1",
            "HF_HUB_OFFLINE": "1",
            "TOKENIZERS_PARALLELISM": "false",
            "DS_ACCELERATOR": "cpu",
            # DeepSpeed's builds, once for all runs.
            "TORCH_EXTENSIONS_DIR": str(self._root.parent / "extensions"),
            # DeepSpeed looks for ninja there.
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            **self._more,
        }

    def start(self, row: Row, **checkpoint: int) -> None:
        """Submit the script with its lines of babysit; `checkpoint` has fields that differ."""
        spec = {
            "name": self._root.name,
            "command": [sys.executable, str(row.file), *row.arguments],
            "workdir": str(self._root),
            "priority": "low",
            "env": self.environment,
            "resources": {"nodes": RANKS},
            "preload": list(row.preload),
            "checkpoint": {
                "directory": str(self._root / "checkpoints"),
                "every_steps": 10,
                "memory_every_steps": 1,
                "good_after_steps": 10,
                **checkpoint,
            },
        }
        self.id = submit_once(self._session, self._root, spec)

    def start_unmodified(self, row: Row) -> None:
        """Start the script without a line of babysit: `babysit run -- LAUNCHER SCRIPT`."""
        (self._root / row.script).write_text(row.unmodified)
        resume = {"args": ["--resume", "{checkpoint}"], "checkpoints": row.checkpoints}
        fields = {"resume": resume | ({"complete": row.complete} if row.complete else {})}
        fields |= {"watch": row.watch} if row.watch else {}
        words = [word for key in fields for word in ("--set", f"{key}={json.dumps(fields[key])}")]
        command = [sys.executable, "-m", "orchestrator.cli.main", "run", "--name", self._root.name]
        command += [*words, "--", *row.launcher, row.script, *row.arguments]
        home = {"BABYSIT_HOME": str(self._session.settings.home)}
        with (self._root / "babysit.out").open("w") as out:
            subprocess.Popen(
                command,
                cwd=self._root,
                env={**os.environ, **self.environment, **home},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
            )
        name = self._root.name
        self.id = until(lambda: run_named(self._session, name), "the submission")

    @property
    def shown(self) -> dict[str, Any]:
        """The run, as the API shows it.

        Raises:
            AssertionError: The run has failed.
        """
        found: dict[str, Any] = self._session.patient.get(path("runs", self.id))
        assert found["state"] not in {"failed", "cancelled"}, f"{found['state']}: {found['reason']}"
        return found

    def start_alone(self, row: Row) -> subprocess.Popen[bytes]:
        """Start the script without a line of babysit, and without babysit."""
        script = self._root / row.script
        script.write_text(row.unmodified)
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        with (self._root / "torchrun.out").open("wb") as out:
            return subprocess.Popen(
                [*launcher, "--nproc_per_node", str(RANKS), str(script), *row.arguments],
                cwd=self._root,
                env={**os.environ, **self.environment},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
            )

    def hurry(self) -> None:
        """Let the steps be as quick as they can."""
        (self._notes / "hurry").touch()

    def spoil(self, attempt: int) -> None:
        """Let this attempt compute wrongly from now on."""
        (self._notes / "spike").write_text(str(attempt))

    def signal(self, attempt: int, rank: int, number: signal.Signals) -> None:
        """Send a signal to a rank."""
        os.kill(int((self._notes / f"{attempt}.{rank}.pid").read_text()), number)

    def lines(self, attempt: int, rank: int) -> list[Line]:
        """The steps of a rank in an attempt; half a line at the end is left out."""
        file = self._notes / f"{attempt}.{rank}.jsonl"
        rows = file.read_text().splitlines(keepends=True) if file.exists() else []
        return [Line(**json.loads(row)) for row in rows if row.endswith("\n")]

    def trained(self, attempt: int, steps: int) -> None:
        """Wait until each rank has computed that many steps in an attempt."""

        def there() -> bool:
            lines = [len(self.lines(attempt, rank)) for rank in range(RANKS)]
            return bool(self.shown) and min(lines) >= steps  # it raises if the run has failed

        seconds = START_SECONDS if attempt == 1 else PATIENCE_SECONDS
        until(there, f"{steps} steps of attempt {attempt}", seconds)

    def succeeded(self) -> dict[str, Any]:
        """Wait until the run has succeeded."""

        def there() -> dict[str, Any] | None:
            return found if (found := self.shown)["state"] == "succeeded" else None

        found: dict[str, Any] = until(there, "the end of the run")
        return found

    def recovered(self, number: int) -> dict[str, Any]:
        """Wait until the run is past a restart, counted from 1."""

        def there() -> dict[str, Any] | None:
            restarts = self.shown["restarts"]
            past = len(restarts) >= number and restarts[number - 1]["recovered_at"]
            return restarts[number - 1] if past else None

        found: dict[str, Any] = until(there, f"recovery {number}")
        return found

    def end(self) -> None:
        """Cancel the run if it goes on: the next trainer needs the nodes."""
        if not self.id:
            return
        for _ in range(_TRIES):
            if self._session.patient.get(path("runs", self.id))["ended_at"] is not None:
                return
            with contextlib.suppress(UnreachableError):
                self._session.api.post(path("runs", self.id, "cancel"), reason="its story is over")
                return

    @property
    def tails(self) -> list[str]:
        """Attempts in which the rest of the script has run, once for each rank."""
        file = self._notes / "tails"
        return file.read_text().split() if file.exists() else []

    @property
    def _starts(self) -> list[int]:
        return [0] + [restart["resumed_step"] or 0 for restart in self.shown["restarts"]]

    def history(self, rank: int) -> dict[int, Line]:
        """Step → what the rank computed last for it, by the first steps that babysit names."""
        found: dict[int, Line] = {}
        for attempt, start in enumerate(self._starts, 1):
            lines = self.lines(attempt, rank)
            found = {step: line for step, line in found.items() if step <= start}
            found |= dict(enumerate(lines, start + 1))
        return found

    def losses(self, near: float) -> tuple[list[int], list[int]]:
        """Steps with a loss that babysit has, and those of them with another one than computed.

        Each loss is compared with what the attempt computed that it comes from; `near` is the
        greatest difference.
        """
        series = self._session.patient.get(path("runs", self.id, "samples"), points=10_000)
        points = zip(series["step"], series["attempt"], series["loss"], strict=True)
        seen = [point for point in points if point[2] is not None]
        computed: dict[tuple[int, int], list[float]] = defaultdict(list)
        for attempt, start in enumerate(self._starts, 1):
            for rank in range(RANKS):
                for step, line in enumerate(self.lines(attempt, rank), start + 1):
                    computed[attempt, step].append(line.loss)
        wrong = [s for s, attempt, loss in seen if not is_seen(loss, computed[attempt, s], near)]
        return [step for step, _, _ in seen], wrong


@dataclasses.dataclass
class Verdict:
    """The result of one row."""

    columns: dict[str, bool | None]
    notes: dict[str, str] = dataclasses.field(default_factory=dict)
    """Column → the reason of a false or null, or a figure."""

    def say(self, column: str, wrongs: list[str], figure: str = "") -> None:
        """Fill a column: true if nothing is wrong."""
        self.columns[column] = not wrongs
        if text := "; ".join(wrongs) or figure:
            self.notes[column] = text

    def stop(self, error: Exception) -> None:
        """A story has ended early: columns that it has not reached stay false."""
        for column, found in self.columns.items():
            if not found:
                self.notes.setdefault(column, f"{error}")


def is_seen(loss: float, told: Sequence[float], near: float) -> bool:
    """True if a loss is that of a rank, or the mean of all: which of them, the trainer decides.

    Args:
        loss: What babysit has.
        told: What the ranks computed.
        near: Greatest difference.
    """
    if len(told) < RANKS:
        return False
    return any(abs(loss - each) <= near for each in (*told, sum(told) / len(told)))


def unlike(restart: dict[str, Any], kind: str) -> list[str]:
    """Complain if a restart has another class."""
    found = restart["class"]
    return [] if found == kind else [f"taken for {found}: {restart['reason']}"]


def took(restart: dict[str, Any]) -> str:
    """The duration of a restart and the steps that it cost."""
    seconds = sum(filter(None, restart["seconds"].values()))
    return f"{seconds:.0f} s, {restart['lost_steps']} steps lost"
