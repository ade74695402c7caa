"""Scales of charts: from values to places, with ticks at round numbers. Pure."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

_LOG_RATIO = 8.0
"""A curve whose highest value is more than this many times its lowest is drawn on a log scale: on
a linear one, its last nine tenths would be a line at the bottom."""


@dataclasses.dataclass(frozen=True, slots=True)
class Scale:
    """From values between `low` and `high` to places between `begin` and `end`."""

    low: float
    high: float
    begin: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        """The place of a value; values beyond the scale are at its ends."""
        low, high, value = (self._of(each) for each in (self.low, self.high, value))
        share = (value - low) / (high - low) if high > low else 0.5
        return self.begin + (self.end - self.begin) * min(1.0, max(0.0, share))

    def _of(self, value: float) -> float:
        return math.log10(max(value, self.low)) if self.log else value

    def ticks(self, most: int) -> list[float]:
        """About `most` round values, within the scale."""
        if self.log:
            return _log_ticks(self.low, self.high, most)
        return _linear_ticks(self.low, self.high, most)


def loss_scale(values: Sequence[float], begin: float, end: float) -> Scale:
    """The scale for losses: logarithmic where they are positive and span a wide range."""
    if not values:
        return Scale(0.0, 1.0, begin, end)
    low, high = min(values), max(values)
    log = low > 0 and high / low > _LOG_RATIO
    if log:
        return Scale(low / 1.05, high * 1.05, begin, end, log=True)
    margin = (high - low) * 0.05 or abs(high) * 0.05 or 1.0
    return Scale(low - margin, high + margin, begin, end)


def _linear_ticks(low: float, high: float, most: int) -> list[float]:
    if not high > low:
        return [low]
    rough = (high - low) / max(1, most)
    unit = 10.0 ** math.floor(math.log10(rough))
    width = next((unit * m for m in (1, 2, 5) if unit * m >= rough), unit * 10)
    first = math.ceil(low / width - 1e-9)
    count = math.floor(high / width + 1e-9) - first + 1
    return [(first + place) * width for place in range(count)]


def _log_ticks(low: float, high: float, most: int) -> list[float]:
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for factors in ((1, 2, 3, 5, 7), (1, 2, 5), (1, 3), (1,)):
        ticks = [f * 10.0**d for d in decades for f in factors if low <= f * 10.0**d <= high]
        if len(ticks) <= most:
            break
    every = max(1, math.ceil(len(ticks) / most))
    return ticks[::every] or [low]


def number(value: float) -> str:
    """`1,234`, `1.5M`, `0.05`, `1.2e-07`: a value of an axis."""
    if value == 0:
        return "0"
    if 1e6 <= abs(value) < 1e9:
        return f"{value / 1e6:.6g}M"
    if abs(value) >= 1e9 or abs(value) < 1e-4:
        return f"{value:.3g}"
    return f"{value:,.6g}"
