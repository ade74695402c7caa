"""Swings: rises of the level that came back by themselves, at whatever intervals.

The problem: the loss rises with every warm restart, epoch, season and block of another task, and
falls again. No clock tells when: restarts come at intervals that grow, or when someone says so.

The design: the level is the median of the newest 16 values. A swing begins at the last place where
the level was within noise of its lowest, and ends when most of the rise is gone. After two swings,
a further one is known as long as it is about as high as those, or as their growth foretells, and
has lasted about as long, or is on its way back.

Limits: swings shorter than half of the 16 values are not seen here; :mod:`monitors.recurrence`
remembers those.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from monitors.statistics import SortedWindow

_VALUES = 16
"""Values whose median is the level."""
_KEPT = 64
_CAME_BACK = 0.35
"""Share of a rise up to which the level must fall for the rise to be over."""
_LEAST_SHARE = 0.025
"""Least height of a swing as a share of the level: half of what can be an alarm."""
_LEAST_SPREADS = 2.0
"""The least height in spreads of single values: six standard deviations of a median of sixteen."""
_TIMES = 2
_HIGHER = 1.75
"""Factor of the height of an earlier rise up to which another one is alike."""
_LONGER = 2.0
"""Factor of the length of the earlier rises up to which another one may last."""
_GROWTH = 1.25
"""Slack of a rise that goes on growing as the two before it did."""
_FASTEST_GROWTH = 3.0
_ON_ITS_WAY = 0.75
"""Share of its height up to which a rise has fallen when it is on its way back."""


class Swing(NamedTuple):
    """A rise that came back. Places are counted in values of the series."""

    foot: int
    """The place from which it rose."""
    began: int
    """The step there."""
    crest: int
    """The step of its highest level."""
    until: float
    """The step at which it was over."""
    low: float
    height: float
    length: int


class Swings:
    """Remembers the last 64 swings of one series, and watches the one under way.

    `place`: values of the series before the first one that is observed.
    """

    def __init__(self, place: int = 0) -> None:
        self._healed: deque[Swing] = deque(maxlen=_KEPT)
        self._newest = SortedWindow(_VALUES)
        self._spreads = SortedWindow(_VALUES)
        """The least counts: a rise widens the spread."""
        self._place = place
        self._level: float | None = None
        self._low = self._top = 0.0
        self._foot = place
        """The last place at which the level was within noise of the low."""
        self._began = self._crest = 0
        """The steps there, and at the top."""
        self._twice = False

    def observe(self, step: int, value: float, spread: float) -> None:
        """Take a finite value; `spread`: the robust standard deviation of single values."""
        self._place += 1
        self._newest.push(value)
        self._spreads.push(spread)
        if len(self._newest) < _VALUES:
            return
        level = self._newest.median
        if self._level is None:
            self._begin(level, step)
        self._level = level
        if level > self._top:
            self._top, self._crest = level, step
        gate = max(_LEAST_SHARE * abs(self._low), _LEAST_SPREADS * self._spreads.quantile(0.0))
        height = self._top - self._low
        if height <= gate:
            self._foot, self._began = self._place, step
            if level < self._low:
                self._begin(level, step)
        elif level <= self._low + max(_CAME_BACK * height, gate / 2):
            self._healed.extend([self._swing(step)] * (1 + self._twice))
            self._begin(level, step)

    @property
    def rising(self) -> bool:
        """True if the level is above its lowest by more than noise."""
        return self._foot < self._place

    def knows(self, top: float = -math.inf) -> bool:
        """True if the rise under way is one that comes back by itself.

        `top`: what the series stands at now, if that is above the level.

        It no longer is when it grows higher or lasts longer than those before.
        """
        if self._level is None or len(self._healed) < _TIMES:
            return False
        highest = max(self._top, top)
        height, length = highest - self._low, self._place - self._foot
        alike = self._alike(height)
        if len(alike) < _TIMES:
            return False
        if length <= longest(_LONGER, [swing.length for swing in alike]):
            return True
        return max(self._level, top) <= self._low + _ON_ITS_WAY * height

    @property
    def kept(self) -> list[Swing]:
        """The swings that came back, the oldest first."""
        return list(self._healed)

    def recall(self, healed: Iterable[Swing]) -> None:
        """Remember what :attr:`kept` has been."""
        self._healed.extend(healed)

    def trust(self) -> None:
        """The rise under way is the data's: it counts twice once it has come back."""
        self._twice = True

    def inherit(self, other: Swings, step: int) -> None:
        """Remember what `other` saw up to `step`, instead of what was observed since."""
        under_way = [*other._healed, other._swing(math.inf)]
        for swing in under_way:
            if swing.began <= step < swing.until and swing.length > 0:
                self._low, self._foot, self._began = swing.low, swing.foot, swing.began
                if swing.crest <= step:
                    self._top, self._crest = swing.low + swing.height, swing.crest
        kept = (swing for swing in other._healed if swing.until <= step)
        self._healed = deque(kept, maxlen=_KEPT)

    def _begin(self, level: float, step: int) -> None:
        self._low = self._top = level
        self._foot, self._began, self._crest = self._place, step, step
        self._twice = False

    def _swing(self, until: float) -> Swing:
        """The rise under way."""
        height, length = self._top - self._low, self._place - self._foot
        return Swing(self._foot, self._began, self._crest, until, self._low, height, length)

    def _alike(self, height: float) -> list[Swing]:
        """Swings that make this height an ordinary one, in order."""
        share = height / abs(self._low) if self._low else 0.0
        alike = [
            swing
            for swing in self._healed
            if height <= _HIGHER * swing.height
            or (swing.low and share <= _HIGHER * swing.height / abs(swing.low))
        ]
        if len(alike) >= _TIMES:
            return alike
        last = [swing for swing in self._healed if height <= _FASTEST_GROWTH * swing.height][
            -_TIMES:
        ]
        if len(last) < _TIMES:
            return []
        return last if height <= longest(_HIGHER, [swing.height for swing in last]) else []


def longest(factor: float, earlier: Sequence[float]) -> float:
    """How far something may go that went this far before: it may go on growing as it did."""
    before, last = earlier[-2:]
    growth = min(_FASTEST_GROWTH, last / before) if before > 0 else 1.0
    return max(factor * max(earlier), _GROWTH * growth * last)
