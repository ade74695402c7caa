"""Slow divergence: a level that creeps up, with no single step that stands out.

The problem: many losses rise and are healthy. A policy loss grows from zero, a critic wanders about
zero, a penalty grows until it levels off, seasons of the data come and go.

The design: the levels of the run are kept as blocks of 16 steps, older ones in longer blocks. A
rise of the level above its lowest is a divergence only if the blocks show a change: a calm stretch,
and then a rise that is steeper than anything before it. A rise that is so far like others that
came back by themselves (:mod:`monitors.swings`) does not count. The onset is where the line through
the rise meets the lowest level.

Limits: a divergence that begins with the run, or in a series that has values on both sides of zero,
is not found here; spikes are.
"""

from __future__ import annotations

import itertools
import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import NamedTuple

from monitors.episode import Point
from monitors.statistics import MAD_TO_SIGMA

_BLOCK = 16
"""Values in a block."""
_BLOCKS = 128
"""Most blocks that are kept; then pairs of the older half become one."""
_LOOK_EVERY = 4
_CALM_VALUES = 8 * _BLOCK
"""Values before the onset in which the level must have been calm."""
_FEWEST_BLOCKS = 3
"""Blocks from which a slope and a roughness can be told: old blocks are long."""
_STEEPER = 2.5
"""Least ratio of the slope after the onset to that before it."""
_WITHIN_NOISE = 0.6
"""Spreads of single values: twice the standard deviation of a median of sixteen."""
_FOOT = 0.25
"""Share of the rise from which the line through it is drawn back to the lowest level."""
_FALL_SHARE = 0.02
"""Least rise as a share of how far the level has fallen: at the end of a long fall, 10 % of the
level are nothing."""
_CALM_GRADIENT = 0.22
"""Rise of the logarithm of the gradient norm (a quarter) up to which it is calm."""
_CALM_BAR = 3.0
"""Factor of the least rise while the gradient norm is calm."""
_BEYOND = 1.5
"""Least ratio of a rise to the highest one before it: a level may wander."""
_WALK = 5.0
"""Least rise in standard deviations of a random walk with the steps of the level."""
_NEAR_ZERO = 2.0
"""Spreads between the level and zero below which the level is about zero."""


class Block(NamedTuple):
    """A level of the series, and where it ended."""

    point: Point
    spread: float
    """Robust standard deviation of single values."""
    gradient: float | None
    """Logarithm of the median gradient norm; None: not reported."""
    values: int = _BLOCK
    """Values in the block."""


@dataclass(frozen=True, slots=True)
class Drift:
    """The level has risen from its lowest."""

    onset: Point
    """End of the last block before the level rose."""
    best: Point
    """The lowest level, and where it stood."""
    level: float

    @property
    def height(self) -> float:
        """The rise as a share of the lowest level."""
        return (self.level - self.best.value) / max(abs(self.best.value), 1e-300)


class DriftDetector:
    """Compares the running median with the lowest it has been, and looks for when it changed.

    Args:
        rise: Rise that counts, as a share of the lowest level's magnitude.
        threshold: The same in robust standard deviations of single values.
    """

    def __init__(self, rise: float, threshold: float) -> None:
        self._rise = rise
        self._threshold = threshold
        self._blocks: list[Block] = []
        self._bases: deque[int] = deque(maxlen=32)
        """Steps at which the comparison began anew; the last one counts."""
        self._seen = 0
        self._floor: float | None = None
        """Level up to which nothing can have happened; None: no block yet."""
        self._signs: set[bool] = set()
        """True if values at or below zero were seen, and values above it."""

    def count(self, value: float) -> bool:
        """Take the newest value; True if :meth:`observe` wants the level at it (every fourth)."""
        self._signs.add(value > 0)
        self._seen += 1
        return self._seen % _LOOK_EVERY == 0

    def observe(
        self, level: Point, spread: float, gradient: float | None = None, *, known: bool = False
    ) -> Drift | None:
        """Take the level of a full window, at a value that :meth:`count` answered True for.

        `known`: the rise is so far like others that came back by themselves. A drift is returned
        once; then the comparison begins anew.
        """
        if self._seen % _BLOCK == 0:
            self._append(Block(level, spread, gradient))
        drift = None if known else self._look(level, spread, gradient)
        if drift is not None:
            self.rebase(level.step)
        return drift

    def rebase(self, step: int) -> None:
        """Compare with levels from after `step` only: a change was reported, or is known."""
        self._bases.append(step)
        self._floor = None

    def forget_after(self, step: int) -> None:
        """Forget everything after `step`."""
        self._blocks = [block for block in self._blocks if block.point.step <= step]
        self._bases = deque((s for s in self._bases if s <= step), maxlen=self._bases.maxlen)
        self._seen, self._floor = 0, None

    def _append(self, block: Block) -> None:
        self._blocks.append(block)
        base = self._bases[-1] if self._bases else -1
        levels = [b.point.value for b in self._blocks if b.point.step > base]
        lowest = min(levels, default=block.point.value)
        self._floor = lowest + self._rise * abs(lowest)
        if len(self._blocks) > _BLOCKS:
            half = _BLOCKS // 2
            old = self._blocks[:half]
            pairs = zip(old[::2], old[1::2], strict=True)
            self._blocks[:half] = [_merged(first, second) for first, second in pairs]

    def _look(self, level: Point, spread: float, gradient: float | None) -> Drift | None:
        if (
            self._floor is None
            or level.value <= self._floor
            or self._about_zero(level.value, spread)
        ):
            return None
        base = self._bases[-1] if self._bases else -1
        blocks = [block for block in self._blocks if block.point.step > base]
        lowest = min(range(len(blocks)), key=lambda i: blocks[i].point.value)
        best = blocks[lowest]
        rise = level.value - best.point.value
        if rise <= self._gate(best, blocks[0]):
            return None
        limit = best.point.value + max(_WITHIN_NOISE * best.spread, _FOOT * rise)
        last = max(i for i in range(lowest, len(blocks)) if blocks[i].point.value <= limit)
        onset = _foot(blocks, lowest, last, level)
        if last + 1 >= _FEWEST_BLOCKS and _is_a_walk(
            blocks[: last + 1], level.value, len(blocks) - last
        ):
            return None  # no reason to begin anew: a slow rise goes further than a walk in the end
        wander = self._wander(blocks[last].point.step)
        if rise <= _BEYOND * wander or not self._changed(blocks, last, level, gradient):
            self._settle(blocks, best)
            return None
        return Drift(onset, best.point, level.value)

    def _wander(self, until: int) -> float:
        """The highest rise above its own low that the level has made up to a step.

        From the change before the last one on: a level that wanders would begin anew at each.
        """
        since = self._bases[-2] if len(self._bases) > 1 else -1
        low, most = math.inf, 0.0
        for point in (block.point for block in self._blocks):
            if since < point.step <= until:
                low = min(low, point.value)
                most = max(most, point.value - low)
        return most

    def _gate(self, best: Block, first: Block) -> float:
        fall = first.point.value - best.point.value
        return max(
            self._rise * abs(best.point.value), self._threshold * best.spread, _FALL_SHARE * fall
        )

    def _about_zero(self, level: float, spread: float) -> bool:
        """True if the series has values on both sides of zero: then a ratio means nothing."""
        return len(self._signs) > 1 or (False in self._signs and abs(level) <= _NEAR_ZERO * spread)

    def _changed(
        self, blocks: Sequence[Block], last: int, level: Point, gradient: float | None
    ) -> bool:
        best = min(block.point.value for block in blocks)
        rise = level.value - best
        calm, risen = blocks[: last + 1], blocks[last + 1 :]
        values = sum(block.values for block in calm)
        after = sum(block.values for block in risen) + _BLOCK / 2
        if values < _CALM_VALUES or len(calm) < _FEWEST_BLOCKS:
            return False  # it has risen since the beginning: that is how this loss is
        steep = (level.value - blocks[last].point.value) / after
        if steep < _STEEPER * _slope(calm, values):
            return False
        before = blocks[last].gradient
        quiet = gradient is not None and before is not None and gradient - before <= _CALM_GRADIENT
        bar = _CALM_BAR if quiet else 1.0
        return rise > bar * self._rise * abs(best)

    def _settle(self, blocks: Sequence[Block], best: Block) -> None:
        """Begin anew from a level that has been steady for long."""
        recent = blocks[-2 * _CALM_VALUES // _BLOCK :]
        values = [block.point.value for block in recent]
        steady = max(values) - min(values) <= self._rise / 2 * abs(values[-1])
        if len(recent) < len(blocks) and best not in recent and steady:
            self.rebase(recent[0].point.step)


def _merged(first: Block, second: Block) -> Block:
    count = first.values + second.values
    share = first.values / count
    mean = share * first.point.value + (1 - share) * second.point.value
    point = Point(second.point.step, second.point.batch, second.point.time, mean)
    return Block(point, (first.spread + second.spread) / 2, second.gradient, count)


def _foot(blocks: Sequence[Block], lowest: int, last: int, level: Point) -> Point:
    """Where the line from the foot of the rise to its top meets the lowest level."""
    foot, floor = blocks[last].point, blocks[lowest].point
    steps = max(1, level.step - foot.step)
    back = (foot.value - floor.value) / ((level.value - foot.value) / steps)
    before = [b.point for b in blocks[lowest : last + 1] if b.point.step <= foot.step - back]
    return before[-1] if before else floor


def _is_a_walk(calm: Sequence[Block], level: float, blocks: int) -> bool:
    """True if a level that takes such steps at random goes as far, in that many blocks.

    In logarithms too, where all levels are positive: a level that wanders takes larger steps as it
    rises.
    """
    levels = [block.point.value for block in calm]
    far = _WALK * math.sqrt(blocks)
    best = min(levels)
    if level - best <= far * _roughness(levels):
        return True
    return best > 0 and math.log(level / best) <= far * _roughness([math.log(v) for v in levels])


def _roughness(levels: Sequence[float]) -> float:
    """Robust standard deviation of the steps from level to level, without their trend."""
    steps = [after - before for before, after in itertools.pairwise(levels)]
    trend = median(steps)
    return MAD_TO_SIGMA * median([abs(step - trend) for step in steps])


def _slope(blocks: Sequence[Block], values: int) -> float:
    """Rise per value between the halves of a stretch; 0 for a fall."""
    half = len(blocks) // 2
    if not half:
        return 0.0
    levels = [block.point.value for block in blocks]
    older, newer = sorted(levels[:half]), sorted(levels[half:])
    return max(0.0, (newer[len(newer) // 2] - older[half // 2]) / (values / 2))
