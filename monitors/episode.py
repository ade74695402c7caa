"""Episodes: stretches in which a series stands above its own forecast."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field

from monitors.statistics import TrendWindow

_WALK_BACK_Z = 2.0
_WALK_BACK_POINTS = 64
"""A jump that was led in by a drift began where the drift did.

Figures: the anticipatory-routing fork of torchtitan.
"""
_CALM_POINTS = 2
"""Points back in band, in a row, that end an episode: one may be luck in a noisy series."""
_UNITS = 3.0
"""Least height of an anomaly in units that the series is rounded to."""
_RELEASE = 0.5
"""Episodes end at half the height they begin at: a point near the threshold does not split one."""


@dataclass(frozen=True, slots=True)
class Point:
    """One value of a series, and where it came from."""

    step: int
    batch: int
    time: float
    """Unix seconds."""
    value: float


@dataclass(slots=True)
class Episode:
    """A stretch above the forecast, from its onset on.

    The figures of the series are those just before it.
    """

    onset: Point
    level: float
    """Median before the episode."""
    forecast: float
    spread: float
    """Robust standard deviation of forecast errors before the episode."""
    gate: float
    """Rise above `forecast` at which a point is anomalous."""
    peak: Point
    last: Point
    start: int = 0
    """Values of the series before the first anomaly."""
    length: int = 1
    """Values from the first anomaly to the last one."""
    high: int = 0
    """Anomalous points so far."""
    calm: int = 0
    """Points back in band since the last one above it."""
    held: list[float] = field(default_factory=list)
    """Values kept out of the statistics."""
    accepted: bool = False
    """Ended because it lasted so long that it became the new normal."""

    @property
    def z(self) -> float:
        """Height of the peak in robust standard deviations.

        Infinite over a series without noise.
        """
        rise = self.peak.value - self.forecast
        return rise / self.spread if self.spread > 0 else math.inf

    @property
    def height(self) -> float:
        """Rise of the peak, as a share of the forecast's magnitude."""
        return (self.peak.value - self.forecast) / max(abs(self.forecast), 1e-300)


class Track:
    """One series: learns what is normal, and opens and closes episodes. Bounded memory.

    Args:
        window: Values the statistics rest on.
        warmup: Values before the first judgement.
        threshold: Height of an anomaly in robust standard deviations.
        relative_floor: Least height of an anomaly as a share of the level's magnitude.
        floor: Least height of an anomaly in the series' own unit.
    """

    def __init__(
        self,
        window: int,
        warmup: int,
        threshold: float,
        *,
        relative_floor: float = 0.0,
        floor: float = 0.0,
    ) -> None:
        self._size = window
        self._warmup = warmup
        self._threshold = threshold
        self._relative_floor = relative_floor
        self._floor = floor
        self.window = TrendWindow(window)
        self.episode: Episode | None = None
        self.seen = 0
        """Values taken so far."""
        self._recent: deque[tuple[float, Point]] = deque(maxlen=_WALK_BACK_POINTS)
        self._before: float | None = None
        self._unit = math.inf
        """Least difference of two values in a row that differ: what the series is rounded to."""

    def observe(self, point: Point) -> Episode | None:
        """Take a finite value.

        Return the episode that it ended, if any. The open one is `self.episode`.
        """
        self.seen += 1
        if len(self.window) < self._warmup:
            self._learn(point.value)
            return None
        if self.episode is not None:
            return self._continue(self.episode, point)
        forecast, spread = self.window.forecast, self.window.spread
        gate = self._gate(forecast, spread)
        rise = point.value - forecast
        if rise > gate:
            self.episode = Episode(
                onset=self._walk_back(point),
                level=self.window.median,
                forecast=forecast,
                spread=spread,
                gate=gate,
                peak=point,
                last=point,
                start=self.seen,
                high=1,
                held=[point.value],
            )
        else:
            self._recent.append((rise / spread if spread > 0 else 0.0, point))
            self._learn(point.value, forecast)
        return None

    def learn(self, point: Point) -> None:
        """Take a value without judging it, within a change that was announced."""
        self.seen += 1
        self.episode = None
        self._recent.clear()
        self.window.push(point.value)

    def relearn(self, values: Iterable[float]) -> None:
        """Know these values only, oldest first."""
        self.window = TrendWindow(self._size)
        for value in values:
            self.window.push(value)

    def _gate(self, forecast: float, spread: float) -> float:
        unit = self._unit if math.isfinite(self._unit) else 0.0
        floor = max(self._floor, self._relative_floor * abs(forecast), _UNITS * unit)
        if self.window.mostly_zero:  # policy losses begin so: only other values tell what is large
            largest = max(self.window.highest, -self.window.lowest)
            floor = max(floor, _UNITS * largest) or math.inf
        return max(self._threshold * spread, floor)

    def _learn(self, value: float, forecast: float | None = None) -> None:
        if self._before is not None and value != self._before:
            self._unit = min(self._unit, abs(value - self._before))
        self._before = value
        self.window.push(value, forecast)

    def _walk_back(self, point: Point) -> Point:
        onset = point
        for z, earlier in reversed(self._recent):
            if z <= _WALK_BACK_Z:
                break
            onset = earlier
        return onset

    def _continue(self, episode: Episode, point: Point) -> Episode | None:
        rise = point.value - episode.forecast
        if rise <= _RELEASE * episode.gate:
            episode.calm += 1
            self.window.push(point.value)
            return self._end(episode) if episode.calm >= _CALM_POINTS else None
        episode.calm = 0
        episode.high += rise > episode.gate
        episode.last = point
        episode.length = self.seen - episode.start + 1
        episode.held.append(point.value)
        if point.value > episode.peak.value:
            episode.peak = point
        if len(episode.held) < self._size // 2:
            return None
        # A level that stays is the new normal, or the monitor would be blind above it for ever.
        self.relearn(episode.held)
        episode.accepted = True
        return self._end(episode)

    def _end(self, episode: Episode) -> Episode:
        self.episode = None
        self._recent.clear()
        return episode
