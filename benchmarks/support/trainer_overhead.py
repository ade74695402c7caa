"""The cost of babysit for a step of each trainer: a script with its lines against one without.

Both scripts train in the same time and take turns of 20 steps (`trainers/turns.py`), so that the
load of the machine meets both. A step lasts from the end of a forward pass to the end of the next
one, on rank 0: the ranks wait for each other in every step. Its CPU time, with that of all threads
of the rank, hardly depends on the load. The script without has no agent, no
save and no report; torchrun starts it.

Turns in which babysit saves are left out of the comparison. A save costs what the ten steps from it
on take longer than others do, so a copy in the background counts where it slows training.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import statistics
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.support.trainer_rows import Row
from benchmarks.support.trainer_run import RANKS, TrainerRun, until
from orchestrator.cli.session import Session

STEPS = 600
MEMORY_EVERY, DIRECTORY_EVERY = 100, 140
"""Steps between saves. A step at which both are due counts for neither."""
FIRST_STEP = 70
"""Steps before are a warm-up: programs compile, connections are made."""
SETTLED = 2
"""Steps at the beginning of a turn that are left out: caches are the other job's."""
AFTER_SAVE = 10
"""Steps of a turn from a save on: all that are left of it."""
SECONDS = 1800.0
"""Most seconds for both scripts: DeepSpeed compiles."""


@dataclasses.dataclass(frozen=True)
class Cost:
    """Medians of one trainer, in microseconds.

    Attributes:
        without: A step without babysit.
        with_it: A step with babysit that saves nothing.
        difference: Of a step, between a turn with and the one before without.
        quartiles: Of these differences.
        cpu_without: CPU time of a step without babysit.
        cpu_difference: Of the CPU time of a step.
        memory: A save to memory; None if none was made.
        directory: A save to the directory.
        load: Load average of the machine, at the end.
    """

    without: float
    with_it: float
    difference: float
    quartiles: tuple[float, float]
    cpu_without: float
    cpu_difference: float
    memory: float | None
    directory: float | None
    load: float

    @property
    def ratio(self) -> float:
        """The difference as a share of a step."""
        return self.difference / self.without

    def as_json(self) -> dict[str, Any]:
        """For the last line of the benchmark."""
        return {**dataclasses.asdict(self), "ratio": self.ratio}


def measure(session: Session, row: Row, directory: Path, *, steps: int = STEPS) -> Cost | None:
    """Train with and without babysit, in turns. None if a library is not installed.

    Raises:
        RuntimeError: The script without babysit failed.
    """
    if row.missing:
        return None
    turns = directory / f"{row.name}-turns"
    turns.mkdir()
    (turns / "passes").write_bytes(bytes(2 * RANKS * 8))
    common = {"TRAINERS_STEPS": str(steps), "TRAINERS_SAVE_EVERY": str(10 * steps)}
    jobs = [
        TrainerRun(
            session, directory / f"{row.name}-{name}", common | {"TRAINERS_TURNS": f"{turns}:{job}"}
        )
        for job, name in enumerate(("without", "with"))
    ]
    for job in jobs:
        job.hurry()
    jobs[1].start(row, every_steps=DIRECTORY_EVERY, memory_every_steps=MEMORY_EVERY)

    def both_have_ended() -> bool:
        if alone.poll():
            log = directory / f"{row.name}-without" / "torchrun.out"
            raise RuntimeError(log.read_text()[-3000:])
        return bool(jobs[1].shown["state"] == "succeeded") and alone.poll() == 0

    with _ended_in_any_case(jobs[0].start_alone(row)) as alone:
        try:
            until(both_have_ended, f"{steps} steps of both", SECONDS)
        finally:
            jobs[1].end()
    return cost(_turns(turns / "0.jsonl"), _turns(turns / f"{RANKS}.jsonl"), os.getloadavg()[0])


@contextlib.contextmanager
def _ended_in_any_case(launcher: subprocess.Popen[bytes]) -> Iterator[subprocess.Popen[bytes]]:
    """End torchrun, which ends its ranks, if it still runs."""
    try:
        yield launcher
    finally:
        if launcher.poll() is None:
            launcher.terminate()
            launcher.wait()


@dataclasses.dataclass(frozen=True)
class Turn:
    """Microseconds of the steps of a turn: by the clock, and of CPU time."""

    wall: list[float]
    cpu: list[float]

    @property
    def settled(self) -> tuple[float, float]:
        """Medians of both."""
        return statistics.median(self.wall[SETTLED:]), statistics.median(self.cpu[SETTLED:])


def _turns(file: Path) -> dict[int, Turn]:
    """Turns by their last steps."""
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    return {
        row["last"]: Turn(*([1e6 * each for each in row[clock]] for clock in ("wall", "cpu")))
        for row in rows
        if row["last"] > FIRST_STEP
    }


def _is_due(last: int, length: int, every: int) -> bool:
    """True if a save falls into a turn: a save after step N counts in step N + 1."""
    return any(step % every == 0 for step in range(last - length, last))


def cost(without: dict[int, Turn], having: dict[int, Turn], load: float) -> Cost:
    """Compare the turns, which are known by their last steps.

    Args:
        without: Turns of the script without babysit.
        having: Turns of the one with its lines.
        load: Load average of the machine.
    """
    tiers = (MEMORY_EVERY, DIRECTORY_EVERY)
    saves: dict[int, set[int]] = {
        last: {every for every in tiers if _is_due(last, len(turn.wall), every)}
        for last, turn in having.items()
    }
    calm = [last for last in sorted(having.keys() & without.keys()) if not saves[last]]
    before, after = [without[at].settled for at in calm], [having[at].settled for at in calm]
    walls, cpus = (
        [b[clock] - a[clock] for a, b in zip(before, after, strict=True)] for clock in (0, 1)
    )
    usual = statistics.median(wall for wall, _ in after)

    def save(every: int) -> float | None:
        excess = [
            sum(each - usual for each in turn.wall[-AFTER_SAVE:])
            for last, turn in having.items()
            if saves[last] == {every}
        ]
        return statistics.median(excess) if excess else None

    low, _, high = statistics.quantiles(walls, n=4)
    return Cost(
        without=statistics.median(wall for wall, _ in before),
        with_it=usual,
        difference=statistics.median(walls),
        quartiles=(low, high),
        cpu_without=statistics.median(cpu for _, cpu in before),
        cpu_difference=statistics.median(cpus),
        memory=save(MEMORY_EVERY),
        directory=save(DIRECTORY_EVERY),
        load=load,
    )


def rows_of(costs: dict[str, Cost | None]) -> list[tuple[str, ...]]:
    """The table: milliseconds, but for the difference of a step."""

    def ms(value: float | None) -> str:
        return "-" if value is None else f"{value / 1000:.2f}"

    return [
        (
            name,
            ms(each.without),
            ms(each.with_it),
            f"{each.difference:+.0f}",
            f"{each.quartiles[0]:+.0f} … {each.quartiles[1]:+.0f}",
            f"{each.ratio:+.1%}",
            f"{each.cpu_difference:+.0f}",
            ms(each.memory),
            ms(each.directory),
            f"{each.load:.1f}",
        )
        for name, each in costs.items()
        if each is not None
    ]


HEAD = (
    "trainer",
    "without, ms",
    "with, ms",
    "more, µs",
    "quartiles",
    "ratio",
    "CPU, µs",
    "memory, ms",
    "directory, ms",
    "load",
)
