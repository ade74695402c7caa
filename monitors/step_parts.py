"""Where the time of a step went, rank by rank, in windows of several steps.

Ranks sum up their seconds by :class:`babysit.wire.Part`, and each heartbeat has the sums so far.
Two sums of a rank and the steps between them give its seconds a step. The heartbeats of the agents
may be from different moments, and of different steps.

Limits: a step that lasts very long is spread over its window. The first window of an attempt is
dropped: it has the warm-up of caches, allocators and compilers.
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from statistics import median
from typing import NamedTuple

from babysit.wire import Part
from monitors.types import Beat

PARTS = tuple(Part)
_PATIENCE_SECONDS = 30.0
"""How long a full window waits for a rank out of contact, rather than go on without it."""

Snapshot = Mapping[int, Beat]


class Window(NamedTuple):
    """Mean seconds a step of each rank. All sequences are in the order of `ranks`."""

    ranks: tuple[int, ...]
    first_step: int
    """The last step before the window, of the rank that was behind the others."""
    step: int
    """The last step of the rank that was behind the others."""
    begun: float
    """Seconds on the clock of the ticks."""
    ended: float
    parts: tuple[array[float], ...]
    """By `Part`."""

    def of(self, part: Part) -> array[float]:
        """Seconds a step of one part, by rank."""
        return self.parts[PARTS.index(part)]

    @property
    def step_seconds(self) -> float:
        """Seconds of a step of the run: the median over ranks, pauses left out."""
        running = (part for part, name in zip(self.parts, PARTS, strict=True) if name != "paused")
        return float(median(map(sum, zip(*running, strict=True))))

    @property
    def waits_measured(self) -> bool:
        """True if the ranks say how long they wait for each other: then the rest is their work."""
        return all(waited > 0.0 for waited in self.of(Part.WAIT))


class PartWindows:
    """Cuts the sums of the heartbeats into windows. Keeps one snapshot."""

    def __init__(self, steps: int, seconds: float, warmup_steps: int) -> None:
        self._steps, self._seconds, self._warmup = steps, seconds, warmup_steps
        self._base: dict[int, Beat] = {}
        self._begun = 0.0
        self._missing_since: float | None = None
        self._is_warm = False

    def reset(self) -> None:
        """A new attempt: its processes count from 0."""
        self._base, self._is_warm = {}, False

    def add(self, now: float, beats: Sequence[Beat]) -> Window | None:
        """Take the newest beats; a window, when one is full.

        Args:
            now: Seconds on any clock that only goes forward.
            beats: The newest of each rank in contact.
        """
        if not self._is_due(now, beats):
            return None
        newest = {beat.rank: beat for beat in beats if beat.parts and beat.alive}
        base = self._base
        if not base:
            self._begin(now, newest)
            return None
        if len(newest) < len(base) and self._waits(now):
            return None
        ranks = tuple(sorted(base.keys() & newest.keys()))
        behind = min((newest[rank].step - base[rank].step for rank in ranks), default=0)
        if behind < 0 or not ranks:
            self._begin(now, newest)
        if behind < (self._steps if self._is_warm else max(self._steps, self._warmup)):
            return None
        window = _window(ranks, base, newest, (self._begun, now))
        usable = self._is_warm and window is not None
        self._begin(now, newest)
        self._is_warm = True
        return window if usable else None

    def _is_due(self, now: float, beats: Sequence[Beat]) -> bool:
        """A cheap look first: most ticks end here, with many thousand ranks too."""
        if not beats or (self._base and now - self._begun < self._seconds):
            return False
        before = self._base.get(beats[0].rank)
        return before is None or not 0 <= beats[0].step - before.step < self._steps

    def _waits(self, now: float) -> bool:
        """True while ranks that are out of contact may come back in time for this window."""
        if self._missing_since is None:
            self._missing_since = now
        return now - self._missing_since < _PATIENCE_SECONDS

    def _begin(self, now: float, newest: dict[int, Beat]) -> None:
        self._base, self._begun, self._missing_since = newest, now, None


def _window(
    ranks: tuple[int, ...], base: Snapshot, newest: Snapshot, times: tuple[float, float]
) -> Window | None:
    """The window between two snapshots; None if a sum went back: a process has begun anew."""
    parts = tuple(array("d", bytes(8 * len(ranks))) for _ in PARTS)
    for place, rank in enumerate(ranks):
        before, after = base[rank], newest[rank]
        steps = after.step - before.step
        for part, begun, ended in zip(parts, before.parts, after.parts, strict=False):
            part[place] = spent = (ended - begun) / steps
            if spent < 0.0:
                return None
    first = min(base[rank].step for rank in ranks)
    last = min(newest[rank].step for rank in ranks)
    return Window(ranks, first, last, *times, parts)
