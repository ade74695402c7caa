"""Start training ranks the way an agent does: a rank directory, a plan, an environment."""

from __future__ import annotations

import dataclasses
import json
import os
import select
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

from babysit.ring import Record, RingReader
from babysit.wire import (
    ENV_RANK_DIR,
    NOTES_FILE,
    PLAN_FILE,
    RING_FILE,
    Candidate,
    Plan,
    SavePolicy,
    Tier,
    step_directory,
)

ROOT = Path(__file__).parent.parent
TRAIN = ROOT / "jobs" / "templates" / "tiny_gpt" / "train.py"


@dataclasses.dataclass
class Rank:
    """What one rank left behind."""

    code: int
    output: str
    records: list[Record]
    notes: list[dict[str, Any]]

    def losses(self) -> dict[int, float]:
        return {record.step: record.loss for record in self.records}

    def note(self, kind: str) -> dict[str, Any]:
        return next(note for note in self.notes if note["kind"] == kind)


class Job:
    """Attempts of one run on this machine; every rank is a node of its own."""

    def __init__(self, root: Path, world_size: int = 2, command: tuple[str, ...] = ()) -> None:
        self.root = root
        self.world_size = world_size
        self.command = command or (str(TRAIN), "--steps", "16")
        self.attempts = 0

    def memory(self, rank: int) -> Path:
        return self.root / f"node-{rank}" / "checkpoints"

    @property
    def directory(self) -> Path:
        return self.root / "checkpoints"

    def candidate(self, tier: Tier, step: int, attempt: int, rank: int) -> Candidate:
        root = self.memory(rank) if tier is Tier.MEMORY else self.directory
        path = str(step_directory(root, step))
        return Candidate(f"{tier}-{step}", step, tier, path, self.world_size, attempt, "test")

    def plan(self, rank: int, candidates: list[tuple[Tier, int, int]], **changes: Any) -> Plan:
        plan = Plan(
            run="test",
            attempt=self.attempts,
            rank=rank,
            world_size=self.world_size,
            restore=tuple(self.candidate(tier, step, by, rank) for tier, step, by in candidates),
            save=SavePolicy(
                directory=str(self.directory),
                every_steps=4,
                memory_directory=str(self.memory(rank)),
                memory_every_steps=1,
            ),
        )
        return dataclasses.replace(plan, **changes)

    def attempt(
        self,
        candidates: list[tuple[Tier, int, int]] | None = None,
        environment: dict[str, str] | None = None,
        **changes: Any,
    ) -> list[Rank]:
        """Run one attempt to its end; when a rank fails, its peers are killed."""
        self.attempts += 1
        port = _free_port()
        ranks = range(self.world_size)
        processes = []
        for rank in ranks:
            directory = self._directory_of(rank)
            directory.mkdir(parents=True)
            (directory / PLAN_FILE).write_text(
                self.plan(rank, candidates or [], **changes).to_json()
            )
            processes.append(self._start(rank, port, directory, environment or {}))
        try:
            _wait_until_one_fails_or_all_end(processes)
        finally:
            for process in processes:
                process.kill()
                process.wait()
        return [_gather(self._directory_of(r), processes[r].returncode) for r in ranks]

    def _directory_of(self, rank: int) -> Path:
        return self.root / f"attempt-{self.attempts}" / f"rank-{rank}"

    def _start(
        self, rank: int, port: int, directory: Path, extra: dict[str, str]
    ) -> subprocess.Popen[bytes]:
        environment = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1",
            "RANK": str(rank),
            "LOCAL_RANK": "0",
            "WORLD_SIZE": str(self.world_size),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "BABYSIT_DRILL_DIRECTORY": str(self.root / "drill"),
            ENV_RANK_DIR: str(directory),
            **extra,
        }
        with (directory / "log").open("wb") as log:
            return subprocess.Popen(
                [sys.executable, *self.command],
                env=environment,
                cwd=self.root,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )


def _wait_until_one_fails_or_all_end(processes: list[subprocess.Popen[bytes]]) -> None:
    running = {os.pidfd_open(process.pid): process for process in processes}
    try:
        while running:
            for descriptor in select.select(list(running), [], [])[0]:
                os.close(descriptor)
                if running.pop(descriptor).wait():
                    return
    finally:
        for descriptor in running:
            os.close(descriptor)


def _gather(directory: Path, code: int) -> Rank:
    records: list[Record] = []
    if (directory / RING_FILE).exists():
        reader = RingReader(directory / RING_FILE)
        records, lost = reader.drain(limit=10_000)
        assert lost == 0
        reader.close()
    notes = directory / NOTES_FILE
    lines = notes.read_text().splitlines() if notes.exists() else []
    output = (directory / "log").read_text(errors="replace")
    return Rank(code, output, records, [json.loads(line) for line in lines])


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
