"""Turns: the ranks of two jobs that train in the same time, but never at once.

Each job trains for some steps while the other one waits, so that both meet the same machine. The
first pass of a turn ends when the other job has ended its own; a shared file has the passes of
each rank.
"""

from __future__ import annotations

import json
import mmap
import os
import time
from array import array
from pathlib import Path

ENV_TURNS = "TRAINERS_TURNS"
"""A directory, and the number of the job in it, 0 or 1, with a colon between."""
RANKS = 2
STEPS_PER_TURN = 20
FIRST_TURN = 10
"""Steps of the first turn: a save after step 20, 40 and so on is then in the midst of one."""
_POLL_SECONDS = 0.001


class Turns:
    """Waits for the turn of this rank's job, and writes down what the steps of each turn took.

    Seconds by the clock, and of the CPU time of the process with all its threads.
    """

    def __init__(self, directory: Path, job: int) -> None:
        self._place = job * RANKS + int(os.environ.get("RANK", "0"))
        self._job = job
        with (directory / "passes").open("r+b") as file:
            shared = mmap.mmap(file.fileno(), 2 * RANKS * 8)
        self._passes = memoryview(shared).cast("q")
        self._times = directory / f"{self._place}.jsonl"
        self._wall, self._cpu = array("d"), array("d")
        self._count = 0
        self._began = self._now()

    @classmethod
    def from_environment(cls) -> Turns | None:
        """None if this job is alone."""
        directory, _, job = os.environ.get(ENV_TURNS, "").rpartition(":")
        return cls(Path(directory), int(job)) if directory else None

    @staticmethod
    def _now() -> tuple[float, float]:
        return time.perf_counter(), time.process_time()

    def end_pass(self) -> None:
        """A forward pass has ended, as the rest of its step will: the next one counts from here."""
        self._count += 1
        wall, cpu = self._now()
        self._wall.append(wall - self._began[0])
        self._cpu.append(cpu - self._began[1])
        self._passes[self._place] = self._count
        if self._count % STEPS_PER_TURN == FIRST_TURN:
            row = {"last": self._count, "wall": list(self._wall), "cpu": list(self._cpu)}
            with self._times.open("a") as file:
                file.write(json.dumps(row) + "\n")
            del self._wall[:], self._cpu[:]
            self._wait()
        elif self._count == 1:
            self._wait()  # the first job begins
        self._began = self._now()

    def _wait(self) -> None:
        """Job 0 waits until job 1 has come as far, job 1 until job 0 is a turn ahead."""
        other = range((1 - self._job) * RANKS, (2 - self._job) * RANKS)
        ahead = self._count if self._job == 0 else self._next_end()
        while min(self._passes[place] for place in other) < ahead:
            time.sleep(_POLL_SECONDS)

    def _next_end(self) -> int:
        last = int(os.environ["TRAINERS_STEPS"])
        turns = max(self._count - FIRST_TURN + STEPS_PER_TURN, 0) // STEPS_PER_TURN
        return min(FIRST_TURN + turns * STEPS_PER_TURN, last)
