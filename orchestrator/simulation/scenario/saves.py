"""Which saves of an attempt the core is told of, and when they are complete and read back."""

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
"""The core hears of saves at least so often, and whenever something goes wrong.

Between two disturbances nothing is decided that depends on which checkpoints there are. When it is,
retention has left the newest few and the newest that had enough clean steps after it. So only those
are told, just before the disturbance, with the times at which they were written; a save that would
not have been complete (or read back) by then is not.
"""


@dataclasses.dataclass(frozen=True, slots=True)
class Surroundings:
    """What all gangs share."""

    engine: Engine
    site: Site
    chance: Chance
    recovery: Recovery
    blame: Callable[[str, str], None]
    """Told which run is disturbed, and by what."""


@dataclasses.dataclass(frozen=True, slots=True)
class Save:
    """When a save is complete, and when it has been read back: seconds since the beginning."""

    written: float
    read_back: float


class Saves:
    """The saves of one attempt to the directory tier.

    Attributes:
        told: The step of the newest that the core was told of.
    """

    def __init__(self, run: SimulatedRun, around: Surroundings, start_step: int) -> None:
        self.told = start_step
        self._checkpoint, self._around = run.spec.checkpoint, around
        self._saves: dict[int, Save] = {}

    def worth_telling(self, step: int, now: float, progress: Progress) -> list[tuple[int, float]]:
        """Of the saves up to `step`, what retention has left: the newest, and a good one.

        Returns:
            Step, and when it was complete, oldest first. They count as told from now on.
        """
        every, kept = self._checkpoint.every_steps, self._checkpoint.keep
        newest = range(step // every * every, self.told, -every)
        clean = (step - self._checkpoint.good_after_steps) // every * every
        written = (s for s in newest if self._drawn(s, progress).written <= now)
        good = (
            s for s in range(clean, self.told, -every) if self._drawn(s, progress).read_back <= now
        )
        steps = sorted({*itertools.islice(written, kept), *itertools.islice(good, 1)})
        self.told = max(self.told, *steps) if steps else self.told
        return [(s, self._saves[s].written) for s in steps]

    def add(self, step: int, now: float) -> None:
        """A last save, before the ranks leave."""
        self._saves[step] = Save(now, now + self._read_seconds())
        self.told = step

    def read_back_at(self, step: int) -> float | None:
        """When the save of a step was read back; None: an earlier attempt wrote it."""
        return self._saves[step].read_back if step in self._saves else None

    def write_seconds(self) -> float:
        """How long the next save takes in the background."""
        write = self._around.chance.delay(self._around.recovery.write, "write")
        return write * self._around.site.storage_slowdown

    def _read_seconds(self) -> float:
        read = self._around.chance.delay(self._around.recovery.read_back, "read back")
        return read * self._around.site.storage_slowdown

    def _drawn(self, step: int, progress: Progress) -> Save:
        """A save, as it went; drawn once."""
        if step not in self._saves:
            written = progress.at_end_of(step) + self.write_seconds()
            self._saves[step] = Save(written, written + self._read_seconds())
        return self._saves[step]
