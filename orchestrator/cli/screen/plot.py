"""Curves of braille characters: eight dots to a character. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence

_DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))
"""Bits of a braille character by row and column of its dots."""
_BLANK = 0x2800
_LOG_RATIO = 8.0


def _draw(grid: list[list[int]], start: tuple[int, int], end: tuple[int, int]) -> None:
    """Draw a straight line of dots."""
    steps = max(1, abs(end[0] - start[0]), abs(end[1] - start[1]))
    for step in range(steps + 1):
        across = round(start[0] + (end[0] - start[0]) * step / steps)
        down = round(start[1] + (end[1] - start[1]) * step / steps)
        grid[down // 4][across // 2] |= _DOTS[down % 4][across % 2]


def plot(
    points: Sequence[tuple[float, float | None]],
    width: int,
    height: int,
    marks: Sequence[float] = (),
) -> list[str]:
    """Draw a curve.

    Losses that span a wide range are on a log scale, which the top line says. A value that is None
    leaves a gap; where there is nothing to draw, the lines are empty.

    Args:
        points: Places and values, places ascending.
        width: Columns in all, labels included.
        height: Lines in all, the axis included.
        marks: Places that get a `▲` at the axis, such as restarts.
    """
    finite = [(x, y) for x, y in points if y is not None and math.isfinite(y)]
    label = 9
    columns, rows = width - label - 1, height - 2
    if not finite or columns < 8 or rows < 2:
        return []
    low, high = min(y for _, y in finite), max(y for _, y in finite)
    log = low > 0 and high / low > _LOG_RATIO
    scale = math.log10 if log else float
    bottom, top = scale(low), scale(high)
    begin, end = points[0][0], points[-1][0]

    def column(x: float, dots: int) -> int:
        return round((x - begin) / (end - begin) * (dots - 1)) if end > begin else 0

    def dot(x: float, y: float) -> tuple[int, int]:
        share = (scale(y) - bottom) / (top - bottom) if top > bottom else 0.5
        return column(x, 2 * columns), round((1 - share) * (4 * rows - 1))

    grid = [[_BLANK] * columns for _ in range(rows)]
    dots = [None if y is None or not math.isfinite(y) else dot(x, y) for x, y in points]
    for before, after in zip([None, *dots], dots, strict=False):
        if after is not None:
            _draw(grid, before or after, after)
    labels = {0: high, rows - 1: low}
    lines = [
        f"{f'{labels[row]:.4g}' if row in labels else '':>{label}}│{''.join(map(chr, cells))}"
        for row, cells in enumerate(grid)
    ]
    axis = ["─"] * columns
    for mark in marks:
        if begin <= mark <= end:
            axis[column(mark, columns)] = "▲"
    kind = "log" if log else ""
    steps = f"{begin:,.0f}"
    return [
        *lines,
        f"{kind:>{label}}└{''.join(axis)}",
        f"{'step':>{label}} {steps}{f'{end:,.0f}':>{max(1, columns - len(steps))}}",
    ]
