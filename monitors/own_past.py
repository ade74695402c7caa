"""The past of a run, window by window, and whether the newest windows are worse than it for good.

The problem: a run has no absolute speed. It is slow only against itself, and healthy runs have slow
minutes: evaluations, saves, a cold cache, another task.

The design: `OwnPast` keeps readings of windows, the older ones thinned out, so that it reaches back
to the beginning in bounded memory and a slow decay cannot hide in it. `Episode` calls a slowdown
what lasts for several windows in a row. Slow windows that end sooner are part of the past, and so
are those of a slowdown that is over: slow times that come again and again are known.

Limits: a slowdown that begins with the run is its past.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum
from typing import NamedTuple

KEPT = 128
"""Readings that are kept."""
USUAL = 0.9
"""Quantile of the past up to which a reading is usual: healthy runs have slow minutes."""
_SAME_LOAD = 0.1
"""Share by which the work of two windows may differ for their times to be compared."""
_CALM = 2
"""Usual readings in a row that end a slowdown."""


class Reading(NamedTuple):
    """One window of a run, or one save."""

    value: float
    """Greater is worse."""
    load: float
    """The work in any unit, such as tokens a step; 0: not known."""
    first_step: int
    step: int
    begun: float
    """Unix seconds."""
    ended: float
    other: float = 0.0
    """A second value of the same window."""


class Change(StrEnum):
    """News of a slowdown."""

    BEGUN = "begun"
    OVER = "over"


def is_same_load(one: float, other: float) -> bool:
    """True if two windows had about the same work, or if neither says how much."""
    return abs(one - other) <= _SAME_LOAD * max(one, other)


class Usual(NamedTuple):
    """The usual value of some readings."""

    median: float
    high: float
    """The `USUAL` quantile."""


def usual(values: Iterable[float]) -> Usual:
    """The usual value of at least one reading."""
    ordered = sorted(values)
    last = len(ordered) - 1
    return Usual(ordered[len(ordered) // 2], ordered[min(last, int(USUAL * len(ordered)))])


class OwnPast:
    """Readings of a run so far; at most `KEPT`."""

    def __init__(self) -> None:
        self._kept: list[Reading] = []

    def add(self, readings: Iterable[Reading]) -> None:
        """Learn readings, in order. When there are too many, each second old one leaves."""
        self._kept += readings
        while len(self._kept) > KEPT:
            del self._kept[: KEPT // 2 : 2]

    def clear(self) -> None:
        """The run has changed: nothing of its past can be compared."""
        self._kept.clear()

    def like(self, load: float) -> list[Reading]:
        """The readings with about the same load."""
        return [each for each in self._kept if is_same_load(each.load, load)]


class Episode:
    """A slowdown that begins, lasts and ends. Keeps its readings out of the past while it lasts."""

    def __init__(self, past: OwnPast, lasts: int) -> None:
        self._past, self._lasts = past, lasts
        self._held: list[Reading] = []
        self._calm = 0
        self.active = False
        """True while a slowdown is known."""
        self.lost = 0.0
        """Seconds that it, or the last one, has cost so far."""

    @property
    def first(self) -> Reading:
        """The first reading of the slowdown that has begun."""
        return self._held[0]

    @property
    def is_suspected(self) -> bool:
        """True if the newest reading was slow."""
        return bool(self._held)

    def forget(self) -> None:
        """A new attempt: whatever was under way has ended with the one before."""
        self._held, self._calm, self.active = [], 0, False

    def take(
        self, reading: Reading, *, slow: bool | None, calm: bool = False, lost: float = 0.0
    ) -> Change | None:
        """Take a reading.

        Args:
            reading: The newest window.
            slow: Worse than usual; None: nothing like it is known.
            calm: Usual, or nearly; between `slow` and `calm` a slowdown goes on.
            lost: Seconds that this window cost beyond the usual.
        """
        if self.active:
            return self._go_on(reading, ends=calm or slow is None, lost=lost)
        if slow:
            self.lost = self.lost if self._held else 0.0
            self._held.append(reading)
            self.lost += lost
            self.active = len(self._held) >= self._lasts
            return Change.BEGUN if self.active else None
        self._past.add([*self._held, reading])
        self.forget()
        return None

    def _go_on(self, reading: Reading, *, ends: bool, lost: float) -> Change | None:
        self._calm = self._calm + 1 if ends else 0
        if self._calm >= _CALM:
            self._past.add([*self._held, reading])
            self._held, self._calm, self.active = [], 0, False
            return Change.OVER
        if not ends:
            self.lost += lost
        if len(self._held) < KEPT:
            self._held.append(reading)
        return None
