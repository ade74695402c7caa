"""Fixtures of the acceptance tests."""

from __future__ import annotations

import dataclasses
import json
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.control_plane import ControlPlane, Servers, control_plane
from tests.postgres import PostgresServer

JOB = Path(__file__).parent / "job.py"


@dataclasses.dataclass
class Job:
    """A run of `job.py`: its spec, and what its ranks wrote down."""

    spec: Path
    scratch: Path

    @property
    def checkpoints(self) -> Path:
        """Its directory tier."""
        return self.spec.parent / "checkpoints"

    def finish(self) -> None:
        """Have it end after the step it is at."""
        (self.scratch / "finish").touch()

    def events(self, name: str) -> list[dict[str, Any]]:
        """What its ranks wrote down, by this name."""
        lines = [
            json.loads(line)
            for file in sorted(self.scratch.glob("rank-*.jsonl"))
            for line in file.read_text().splitlines()
        ]
        return [line for line in lines if line["event"] == name]

    def steps(self) -> dict[tuple[int, int], list[tuple[int, int, float]]]:
        """(attempt, rank) → (step, batch, loss) of each step, as the rank itself saw it."""
        found: dict[tuple[int, int], list[tuple[int, int, float]]] = defaultdict(list)
        for line in self.events("step"):
            key = (line["attempt"], line["rank"])
            found[key].append((line["step"], line["batch"], line["loss"]))
        return found


class Jobs:
    """Makes runs of `job.py`, each in a directory of its own."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def __call__(
        self,
        name: str = "job",
        *,
        steps: int | None = None,
        faults: tuple[str, ...] = (),
        pace: float = 0.02,
        **spec: Any,
    ) -> Job:
        """Write a spec: two nodes, memory checkpoints at every step, others every ten."""
        directory = self._root / name
        scratch = directory / "scratch"
        scratch.mkdir(parents=True)
        command = ["python", str(JOB), "--scratch", str(scratch), "--pace", str(pace)]
        command += [] if steps is None else ["--steps", str(steps)]
        command += [word for fault in faults for word in ("--fault", fault)]
        checkpoint = {
            "directory": "./checkpoints",
            "every_steps": 10,
            "memory_every_steps": 1,
            "good_after_steps": 10,
            **spec.pop("checkpoint", {}),
        }
        body = {
            "name": name,
            "command": command,
            "resources": {"nodes": 2},
            "preload": ["babysit"],
            **spec,
            "checkpoint": checkpoint,
        }
        file = directory / "run.yaml"
        file.write_text(json.dumps(body))  # JSON is YAML
        return Job(file, scratch)


@pytest.fixture
def jobs(tmp_path: Path) -> Jobs:
    return Jobs(tmp_path)


@pytest.fixture(scope="session")
def servers() -> Iterator[Servers]:
    """Where servers come from."""
    template = Servers()
    yield template
    template.close()


@pytest.fixture
def plane(servers: Servers, tmp_path: Path) -> Iterator[ControlPlane]:
    """A control plane of two nodes; at the end nothing of it may be left."""
    with control_plane(servers, tmp_path / "home") as running:
        yield running


@pytest.fixture
def database() -> Iterator[PostgresServer]:
    """A PostgreSQL server of this test's own."""
    server = PostgresServer()
    try:
        server.start()
        yield server
    finally:
        server.remove()
