"""Recurrence: rises of the loss that came back by themselves before, so that none is a finding.

The problem: a second task in the data, a batch in a hundred of another kind, data sorted by length
and warm restarts all raise the loss again and again. Unstable training does that too, but neither
at regular intervals nor at one height.

The design: rises that came back are remembered with their height, length and start. A further one
is known if it is not higher, and either belongs to a mode of the data (there were five within 600
values, and there are no more of them in a row than chance gives), or comes when it is due (after
the interval between the two before it), or is like two earlier ones in height and length.

Limits: rises that last are those of :mod:`monitors.swings`. Single bad values count as modes only:
each is worth a line in the record.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable
from typing import NamedTuple

from monitors.swings import longest

_KEPT = 48
_SAME_HEIGHT = 1.25
_LIKE = 1.5
"""Factor of the height of an earlier rise up to which another one is like it."""
_UNLIKE = 3.0
"""That factor where the height grows from one to the next."""
_LIKE_LENGTH = 2.0
_LIKE_VALUES = 3
"""Least values above the gate of a rise that is like others: a shape, and no single bad batch."""
_MODE_VALUES = 600
"""Values back in which a mode of the data must have shown itself."""
_MODE_TIMES = 5
_PERIOD_SLACK = 0.1
"""Deviation of an interval that is still the same, as a share of it."""
_DUE_HEIGHT = 2.0
"""Height up to which a rise that comes when it is due is known: the place says most."""
_LONGER = 1.5
_UNLIKELY = 14.0
"""Natural logarithm of the odds that rule out chance for a cluster: one in a million."""
_LEAST_SHARE = 0.005


class Returned(NamedTuple):
    """A rise that came back. Places are counted in values of the series."""

    until: int
    """The last step above the gate."""
    start: int
    """Place of its first value."""
    height: float
    high: int
    """Values above the gate."""
    length: int
    """Values from the first to the last one above the gate."""


class Recurrence:
    """Remembers rises that came back by themselves, the last 48."""

    def __init__(self) -> None:
        self._returned: deque[Returned] = deque(maxlen=_KEPT)

    def remember(self, rise: Returned) -> None:
        """Take a rise that is over."""
        self._returned.append(rise)

    @property
    def kept(self) -> list[Returned]:
        """The rises, the oldest first."""
        return list(self._returned)

    def forget_after(self, step: int) -> None:
        """Forget rises that were not over by `step`."""
        kept = (rise for rise in self._returned if rise.until <= step)
        self._returned = deque(kept, maxlen=_KEPT)

    def knows(self, rise: Returned) -> bool:
        """True if a rise is one that repeats; its figures may be those so far."""
        alike = [old for old in self._returned if old.height >= rise.height / _SAME_HEIGHT]
        about = [old for old in self._returned if old.height >= rise.height / _DUE_HEIGHT]
        return _is_due(about, rise) or _is_a_mode(alike, rise) or _is_like(self._returned, rise)


def _is_due(alike: list[Returned], rise: Returned) -> bool:
    alike = list({old.start: old for old in alike}.values())  # one may count twice
    if len(alike) < 2:
        return False
    before, last = alike[-2:]
    lengths = sorted((before.length, last.length))
    heights = sorted((before.height, last.height))
    regular = lengths[1] <= _LONGER * lengths[0] + 2 and heights[1] <= _DUE_HEIGHT * heights[0]
    if not regular or rise.length > _LONGER * lengths[1] + 2:
        return False
    period = last.start - before.start
    return abs(rise.start - last.start - period) <= _PERIOD_SLACK * period + 4


def _is_like(returned: Iterable[Returned], rise: Returned) -> bool:
    """True if two rises of its height or higher came back, in about the time it has lasted."""
    if rise.high < _LIKE_VALUES:
        return False
    shapes = [old for old in returned if old.high >= _LIKE_VALUES]
    alike = [old for old in shapes if rise.height <= _LIKE * old.height]
    if len(alike) < 2:
        alike = [old for old in shapes if rise.height <= _UNLIKE * old.height][-2:]
    if len(alike) < 2:
        return False
    return rise.height <= longest(
        _LIKE, [old.height for old in alike]
    ) and rise.length <= 2 + longest(_LIKE_LENGTH, [old.length for old in alike])


def _is_a_mode(alike: list[Returned], rise: Returned) -> bool:
    recent = [old for old in alike if rise.start - old.start <= _MODE_VALUES]
    if len(recent) < _MODE_TIMES:
        return False
    share = sum(old.high for old in recent) / min(_MODE_VALUES, max(rise.start, 1))
    share = min(0.5, max(share, _LEAST_SHARE))
    now = rise.high / max(rise.length, 1)
    if now <= share:
        return True
    odds = now * math.log(now / share)
    if now < 1:
        odds += (1 - now) * math.log((1 - now) / (1 - share))
    return rise.length * odds <= _UNLIKELY
