"""Running order statistics.

What the detectors stand on. Bounded memory, O(log window) comparisons a value.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import deque

MAD_TO_SIGMA = 1.4826
"""The median absolute deviation of a normal variable times this is its standard deviation."""
_P95_TO_SIGMA = 1.0 / 1.96
"""The same for the 95th percentile of the absolute deviation."""
_NEWEST_SHARE = 0.25


class SortedWindow:
    """The last `size` values, also in order: any quantile costs an index."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._arrived: deque[float] = deque()
        self._sorted: list[float] = []

    def __len__(self) -> int:
        return len(self._sorted)

    def push(self, value: float) -> None:
        """Add a finite value; the oldest leaves when the window is full."""
        self._arrived.append(value)
        insort(self._sorted, value)
        if len(self._arrived) > self._size:
            self.pop_oldest()

    def pop_oldest(self) -> float:
        """Remove and return the value that came first."""
        value = self._arrived.popleft()
        del self._sorted[bisect_left(self._sorted, value)]
        return value

    def quantile(self, fraction: float) -> float:
        """The value below which `fraction` (0 to 1) of the window lies; the window is not empty."""
        return self._sorted[min(len(self._sorted) - 1, int(fraction * len(self._sorted)))]

    @property
    def median(self) -> float:
        """The middle value (mean of the two middle ones); the window is not empty."""
        half = len(self._sorted) // 2
        if len(self._sorted) % 2:
            return self._sorted[half]
        return (self._sorted[half - 1] + self._sorted[half]) / 2


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

    def __len__(self) -> int:
        return len(self._older) + len(self._newer)

    @property
    def full(self) -> bool:
        """Whether `window` values are held."""
        return len(self) >= self._window

    @property
    def median(self) -> float:
        """Median of the newest quarter: the level now."""
        return self._newer.median

    @property
    def forecast(self) -> float:
        """The value expected next; at least one value has been pushed."""
        if not self._older:
            return self._newer.median
        distance = (len(self._older) + len(self._newer)) / 2
        slope = (self._newer.median - self._older.median) / distance
        return self._newer.median + min(0.0, slope) * (len(self._newer) + 1) / 2

    @property
    def spread(self) -> float:
        """Robust standard deviation of forecast errors; 0.0 before the first."""
        if not self._errors:
            return 0.0
        # The 95th percentile lets a heavy-tailed series speak for itself; the median alone calls
        # its tail an event.
        return max(MAD_TO_SIGMA * self._errors.median, _P95_TO_SIGMA * self._errors.quantile(0.95))

    def push(self, value: float) -> None:
        """Learn a finite value."""
        if len(self):
            self._errors.push(abs(value - self.forecast))
        self._newer.push(value)
        if len(self._newer) > max(1, _NEWEST_SHARE * len(self)):
            self._older.push(self._newer.pop_oldest())
        if len(self) > self._window:
            self._older.pop_oldest()
