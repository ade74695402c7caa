"""Slow divergence: a level that creeps up, with no single step that stands out."""

from __future__ import annotations

from dataclasses import dataclass

from monitors.episode import Point


@dataclass(frozen=True, slots=True)
class Drift:
    """The level has risen from its best."""

    best: Point
    """Lowest level so far and where it stood."""
    level: float


class DriftDetector:
    """Compares the running median with the lowest it has been.

    This is a CUSUM whose increments are medians: the rise since the minimum of the walk, free of
    the noise that made a CUSUM over single residuals fire on every heavy tail.

    Args:
        rise: Rise that counts, as a share of the best level's magnitude.
        threshold: The same in robust standard deviations of single values.
    """

    def __init__(self, rise: float, threshold: float) -> None:
        self._rise = rise
        self._threshold = threshold
        self._best: Point | None = None

    def observe(self, level: Point, spread: float) -> Drift | None:
        """Take the level of a full window.

        A drift is returned once, and then measured from where it stands.
        """
        best = self._best
        if best is None or level.value < best.value:
            self._best = level
            return None
        if level.value - best.value <= max(self._rise * abs(best.value), self._threshold * spread):
            return None
        self._best = level
        return Drift(best=best, level=level.value)

    def rebase(self) -> None:
        """Forget the best level: a shift was reported and accepted."""
        self._best = None
