"""Judges one series of readings of one device against one condition. Pure, with bounded memory.

A counter is judged by what it rises while it is watched: its value at the first look is history,
and a fall is a new beginning (the driver was loaded again). The monitor of the node makes a new
judge with each start of the machine.
"""

from __future__ import annotations

import dataclasses
from collections import deque
from enum import Enum

from monitors.hardware.catalogue import When

_KEPT = 256
"""Points that a judge keeps at most; older ones of a window are merged. Ours: memory."""
CLEAR_SECONDS = 60.0
"""A condition that was found is over once it has not held for this time, at least: a reading near
its threshold does not open and close an incident with each look. Ours."""


class Verdict(Enum):
    """The change that a reading makes."""

    NOTHING = "nothing"
    FOUND = "found"
    OVER = "over"


@dataclasses.dataclass(slots=True)
class Judge:
    """Follows one series; feed it in the order of time."""

    when: When
    last: tuple[float, float] | None = None
    """Time and value of the newest reading."""
    since: float | None = None
    """Since when the condition holds; None: it does not."""
    fine_since: float | None = None
    found: bool = False
    best: float = float("-inf")
    points: deque[tuple[float, float]] = dataclasses.field(default_factory=deque)
    """Rises of a counter, answers of a share, or values of a line, by time."""

    def feed(self, time: float, value: float, other: float | None = None) -> Verdict:
        """Take a reading; one that is not newer than the last is a repeat and changes nothing."""
        if self.last is not None and time <= self.last[0]:
            return Verdict.NOTHING
        before, self.last = self.last, (time, value)
        if self.when.increase is not None:
            rise = max(0.0, value - before[1]) if before is not None else 0.0
            return self._count(time, rise, self.when.increase)
        if self.when.comes_back:
            return self._flap(time, self._holds(value, other))
        return self._level(time, self._met(time, value, other))

    def _count(self, time: float, rise: float, limit: float) -> Verdict:
        """Found each time that a counter has risen enough; it is never over by itself."""
        if rise:
            self._keep(time, rise, add=True)
        while self.points and time - self.points[0][0] > self.when.window_seconds:
            self.points.popleft()
        if sum(each for _, each in self.points) < limit:
            return Verdict.NOTHING
        self.points.clear()
        return Verdict.FOUND

    def _met(self, time: float, value: float, other: float | None) -> bool:
        when = self.when
        if when.reaches is not None:
            return self._reaches(time, value, when.reaches)
        holds = self._holds(value, other)
        if when.share is None:
            return holds
        self._keep(time, float(holds), add=False)
        self._forget(time)
        covered = time - self.points[0][0] >= when.window_seconds / 2
        share = sum(each for _, each in self.points) / len(self.points)
        return covered and share >= when.share

    def _holds(self, value: float, other: float | None) -> bool:
        when = self.when
        if when.fell:
            self.best = max(self.best, value)
            return value < self.best
        if when.below_reading is not None:
            return other is not None and value < when.ratio * other
        if when.equals is not None:
            return value in when.equals
        if when.beyond is not None:
            return abs(value) > when.beyond
        if when.above is not None:
            return value > when.above
        return when.below is not None and value < when.below

    def _level(self, time: float, holds: bool) -> Verdict:
        if not holds:
            self.since = None
            if not self.found:
                return Verdict.NOTHING
            self.fine_since = time if self.fine_since is None else self.fine_since
            if time - self.fine_since < max(CLEAR_SECONDS, self.when.for_seconds):
                return Verdict.NOTHING
            self.found, self.fine_since = False, None
            return Verdict.OVER
        self.fine_since = None
        self.since = time if self.since is None else self.since
        if self.found or time - self.since < self.when.for_seconds:
            return Verdict.NOTHING
        self.found = True
        return Verdict.FOUND

    def _flap(self, time: float, holds: bool) -> Verdict:
        if holds:
            self.since = time if self.since is None else self.since
            return Verdict.NOTHING
        since, self.since = self.since, None
        lasted = since is not None and time - since >= self.when.for_seconds
        return Verdict.FOUND if lasted else Verdict.NOTHING

    def _reaches(self, time: float, value: float, limit: float) -> bool:
        """True if a straight line through the window's ends reaches the limit soon."""
        if not self.points or time - self.points[-1][0] >= self.when.window_seconds / _KEPT:
            self._keep(time, value, add=False)
        self._forget(time)
        first_time, first = self.points[0]
        passed, change = time - first_time, value - first
        if passed < self.when.window_seconds / 2 or change == 0:
            return False
        left = (limit - value) / (change / passed)
        return 0 <= left <= self.when.within_seconds

    def _keep(self, time: float, value: float, *, add: bool) -> None:
        self.points.append((time, value))
        if len(self.points) > _KEPT:  # the two oldest become one
            (_, first), (then, second) = self.points.popleft(), self.points.popleft()
            self.points.appendleft((then, first + second if add else second))

    def _forget(self, time: float) -> None:
        while len(self.points) > 1 and time - self.points[0][0] > self.when.window_seconds:
            self.points.popleft()
