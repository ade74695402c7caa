"""The saves of an attempt: when each is complete and verified, and which the core learns of."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable

from orchestrator.simulation.scenario.model import Recovery, SimulatedRun
from orchestrator.simulation.scenario.random_streams import Chance
from orchestrator.simulation.scenario.site import Site
from orchestrator.simulation.scenario.training import Progress
from orchestrator.simulation.scenario.virtual_time import Engine

STEADY_SECONDS = 6 * 3600.0
"""Seconds between two reports of saves, unless a disturbance forces one earlier.

Between two disturbances no decision depends on the set of checkpoints. At a disturbance, retention
would have left the newest few and the newest one with enough clean steps after it. So the simulator
reports only these, just before the disturbance, with the times at which they were written. A save
that would not have been complete (or verified) by then is left out.
"""


@dataclasses.dataclass(frozen=True, slots=True)
class Surroundings:
    """Collaborators that all gangs share."""

    engine: Engine
    site: Site
    chance: Chance
    recovery: Recovery
    blame: Callable[[str, str], None]
    """Receives the run and the cause of each of its disturbances."""


@dataclasses.dataclass(frozen=True, slots=True)
class Save:
    """Seconds since the start at which a save is complete, and at which it is verified."""

    written: float
    read_back: float


class Saves:
    """The saves of one attempt to the directory tier.

    Attributes:
        reported: Step of the newest save that the core knows.
    """

    def __init__(self, run: SimulatedRun, around: Surroundings, start_step: int) -> None:
        self.reported = start_step
        self._checkpoint, self._around = run.spec.checkpoint, around
        self._saves: dict[int, Save] = {}

    def reportable(self, step: int, now: float, progress: Progress) -> list[tuple[int, float]]:
        """Select the saves up to `step` that retention has left: the newest ones and a good one.

        Returns:
            Steps with their completion times, oldest first. They count as reported from now on.
        """
        every, kept = self._checkpoint.every_steps, self._checkpoint.keep
        newest = range(step // every * every, self.reported, -every)
        clean = (step - self._checkpoint.good_after_steps) // every * every
        written = (s for s in newest if self._drawn(s, progress).written <= now)
        good = (
            s
            for s in range(clean, self.reported, -every)
            if self._drawn(s, progress).read_back <= now
        )
        steps = sorted({*itertools.islice(written, kept), *itertools.islice(good, 1)})
        self.reported = max(self.reported, *steps) if steps else self.reported
        return [(s, self._saves[s].written) for s in steps]

    def add(self, step: int, now: float) -> None:
        """Record a last save before the ranks stop."""
        self._saves[step] = Save(now, now + self._read_seconds())
        self.reported = step

    def read_back_at(self, step: int) -> float | None:
        """Second at which the save of a step is verified; None: an earlier attempt wrote it."""
        return self._saves[step].read_back if step in self._saves else None

    def write_seconds(self) -> float:
        """Draw the background seconds of the next save."""
        write = self._around.chance.delay(self._around.recovery.write, "write")
        return write * self._around.site.storage_slowdown

    def _read_seconds(self) -> float:
        read = self._around.chance.delay(self._around.recovery.read_back, "read back")
        return read * self._around.site.storage_slowdown

    def _drawn(self, step: int, progress: Progress) -> Save:
        """The save of a step; its times are drawn once."""
        if step not in self._saves:
            written = progress.at_end_of(step) + self.write_seconds()
            self._saves[step] = Save(written, written + self._read_seconds())
        return self._saves[step]
