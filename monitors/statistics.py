"""Running order statistics.

What the detectors stand on. Bounded memory, O(log window) comparisons a value.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import deque

MAD_TO_SIGMA = 1.4826
"""The median absolute deviation of a normal variable times this is its standard deviation."""
_P96_TO_SIGMA = 1.0 / 1.75
"""The 96th percentile of the deviation times this is the standard deviation."""
_NEWEST_SHARE = 0.25
_FEWEST_FOR_A_FORECAST = 12
"""Values before forecast errors are learned: those of a steep start would stay for a window."""

_PENDING = 8
"""Newest errors that do not count yet: a slow explosion must not widen its own gate."""
_FEW_ERRORS = 24
"""Errors in the statistics below which the newest ones count at once."""


class SortedWindow:
    """The last `size` values, also in order: any quantile costs an index."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._arrived: deque[float] = deque()
        self.ordered: list[float] = []
        """The values in ascending order; read only."""

    def __len__(self) -> int:
        return len(self.ordered)

    def push(self, value: float) -> None:
        """Add a finite value; the oldest leaves when the window is full."""
        self._arrived.append(value)
        insort(self.ordered, value)
        if len(self._arrived) > self._size:
            self.pop_oldest()

    def pop_oldest(self) -> float:
        """Remove and return the value that came first."""
        value = self._arrived.popleft()
        del self.ordered[bisect_left(self.ordered, value)]
        return value

    def quantile(self, fraction: float) -> float:
        """The value below which `fraction` (0 to 1) of the window lies; the window is not empty."""
        return self.ordered[min(len(self.ordered) - 1, int(fraction * len(self.ordered)))]

    @property
    def median(self) -> float:
        """The middle value (mean of the two middle ones); the window is not empty."""
        values = self.ordered
        half, odd = divmod(len(values), 2)
        return values[half] if odd else (values[half - 1] + values[half]) / 2


class TrendWindow:
    """A robust line through the last `window` values, and the spread of its own forecasts.

    The slope is the difference of the medians of the newest quarter and of the rest over their
    distance; the forecast continues the newest quarter's median along it. (Halves would lag
    further behind a loss that falls fast and bends: their forecast errors on a young run are
    twice as wide.) A rising trend is not extrapolated: a slow divergence must show as a
    residual, not be explained away. The spread is taken from past forecast errors, so whatever
    the line cannot follow (curvature, heavy tails) widens it by itself.
    """

    def __init__(self, window: int) -> None:
        self._window = window
        self._older = SortedWindow(window)
        self._newer = SortedWindow(window)
        self._errors = SortedWindow(window)
        self._rises = SortedWindow(window)
        """The errors with their sign."""
        self._pending: deque[float] = deque()

    def __len__(self) -> int:
        return len(self._older.ordered) + len(self._newer.ordered)

    @property
    def full(self) -> bool:
        """True if `window` values are held."""
        return len(self) >= self._window

    @property
    def median(self) -> float:
        """Median of the newest quarter: the level now."""
        return self._newer.median

    @property
    def mostly_zero(self) -> bool:
        """True if at least half of the values are exactly 0."""
        return self.median == 0.0 or (bool(self._older.ordered) and self._older.median == 0.0)

    @property
    def highest(self) -> float:
        """The highest value held."""
        return max(part.quantile(1.0) for part in (self._older, self._newer) if part.ordered)

    @property
    def lowest(self) -> float:
        """The lowest value held."""
        return min(part.quantile(0.0) for part in (self._older, self._newer) if part.ordered)

    @property
    def forecast(self) -> float:
        """The value expected next; at least one value has been pushed."""
        level = self._newer.median
        older, newer = len(self._older.ordered), len(self._newer.ordered)
        if not older:
            return level
        fall = self._older.median - level
        if fall <= 0:
            return level
        ahead = level - fall * (newer + 1) / (older + newer)
        # Not below what was just seen: after a sudden fall, the line would go on falling.
        return max(ahead, self._newer.quantile(0.0))

    @property
    def spread(self) -> float:
        """Robust standard deviation of forecast errors; 0.0 before the first."""
        if not self._errors.ordered:
            return 0.0
        spread = MAD_TO_SIGMA * self._errors.median
        # The 96th percentile lets a heavy-tailed series speak for itself; the median alone calls
        # its tail an event. Rises only: after a fall of the level (a lower learning rate, a steep
        # start) the errors are large too, but they say nothing about how high a value may be.
        return max(spread, _P96_TO_SIGMA * self._rises.quantile(0.96))

    def push(self, value: float, forecast: float | None = None) -> None:
        """Learn a finite value. `forecast`: the present one, where the caller has it."""
        older, newer = self._older, self._newer
        held = len(older.ordered) + len(newer.ordered)
        if held >= _FEWEST_FOR_A_FORECAST:
            self._learn_error(value - (self.forecast if forecast is None else forecast))
        newer.push(value)
        held += 1
        if len(newer.ordered) > max(1, _NEWEST_SHARE * held):
            older.push(newer.pop_oldest())
        if held > self._window:
            older.pop_oldest()

    def _learn_error(self, error: float) -> None:
        pending = self._pending
        pending.append(error)
        held = _PENDING if len(self._errors.ordered) >= _FEW_ERRORS else 0
        while len(pending) > held:
            error = pending.popleft()
            self._errors.push(abs(error))
            self._rises.push(error)
