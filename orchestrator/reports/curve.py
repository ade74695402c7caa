"""The loss curve, ready to be drawn: lines, the range within each point, and lost steps. Pure."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence

from orchestrator.core.views.models import SeriesView
from orchestrator.reports.record import RunRecord

Point = tuple[int, float]
"""Step and loss."""
_SPARSE = 0.2
"""With more than this share of points without a loss, and no incident that says otherwise, the
script reports a loss now and then, and its other steps are not NaN."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """The losses of a run."""

    lines: Sequence[Sequence[Point]]
    """The losses that count, broken where there is none."""
    band: Sequence[tuple[int, float, float]]
    """Step, lowest and highest loss of each point that stands for more than one sample."""
    undone: Sequence[Sequence[Point]]
    """Losses that a later attempt computed again."""
    lost: Sequence[tuple[int, int]]
    """First and last step of stretches with losses that are not finite."""
    sparse: bool
    """True if the script reports a loss for some steps only."""
    first_step: int
    last_step: int

    @property
    def values(self) -> list[float]:
        """Every loss that is drawn."""
        lines = [loss for line in (*self.lines, *self.undone) for _, loss in line]
        return [*lines, *(v for _, low, high in self.band for v in (low, high))]


def curve_of(record: RunRecord) -> Curve:
    """The curve of a run. A run without samples has an empty one."""
    series = record.curve
    sparse = _is_sparse(record)
    steps = [step for each in (series, *record.undone.values()) for step in each.step]
    undone = [line for each in record.undone.values() for line in _lines(each, sparse)]
    lost = [
        *_lost(series),
        *(stretch for each in record.undone.values() for stretch in _lost(each)),
    ]
    return Curve(
        lines=_lines(series, sparse),
        band=_band(series),
        undone=undone,
        lost=[] if sparse else sorted(set(lost)),
        sparse=sparse,
        first_step=min(steps, default=0),
        last_step=max(steps, default=0),
    )


def _is_sparse(record: RunRecord) -> bool:
    if any(incident.kind == "non_finite" for incident in record.incidents):
        return False
    missing = sum(loss is None for loss in record.curve.loss)
    has_some = missing < len(record.curve.loss)
    return has_some and missing > _SPARSE * len(record.curve.loss)


def _lines(series: SeriesView, sparse: bool) -> list[list[Point]]:
    lines: list[list[Point]] = []
    open_ = False
    for step, loss in zip(series.step, series.loss, strict=True):
        if loss is None:
            open_ = open_ and sparse
            continue
        if not open_:
            lines.append([])
        open_ = True
        lines[-1].append((step, loss))
    return lines


def _band(series: SeriesView) -> list[tuple[int, float, float]]:
    rows = zip(series.step, series.loss_min, series.loss_max, strict=False)
    found = [(step, low, high) for step, low, high in rows if low is not None and high is not None]
    return found if any(low < high for _, low, high in found) else []


def _lost(series: SeriesView) -> list[tuple[int, int]]:
    """Stretches of points without a finite loss; a point of many samples counts if one has none."""
    missing = series.missing or [int(loss is None) for loss in series.loss]
    marked = zip(series.step, [0, *series.step], missing, strict=False)
    stretches = []
    for is_lost, points in itertools.groupby(marked, key=lambda point: point[2] > 0):
        if is_lost:
            (first, before, _), *rest = points
            last = rest[-1][0] if rest else first
            stretches.append((max(min(first, before + 1), series.step[0]), last))
    return stretches
