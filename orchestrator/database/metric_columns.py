"""Named metrics of samples as arrays: joining, packing, thinning. Pure.

The metrics of a chunk stand beside its samples, one row of values for each name. A name that a part
of the samples lacks is NaN there.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from jobs.events import RankSamples
from orchestrator.database.port import MetricSeries

Values = NDArray[np.float64]
NAMES_KEPT = 32
"""Most names in a chunk: those of one rank, and of its predecessors by the same rank."""
_FORMAT = b"\x01"


class MetricColumns(NamedTuple):
    """Metrics of a number of samples."""

    samples: int
    rows: dict[str, Values]

    def part(self, first: int, last: int) -> MetricColumns:
        """The metrics of the samples from `first` up to `last`, exclusive."""
        rows = {name: row[first:last] for name, row in self.rows.items()}
        count = min(last, self.samples) - first
        return MetricColumns(count, {n: r for n, r in rows.items() if not np.isnan(r).all()})


def columns_of(samples: RankSamples) -> MetricColumns:
    """The metrics of samples. A column of another length than `step` is left out."""
    count = len(samples.step)
    rows = {name: np.array(row) for name, row in samples.metrics.items() if len(row) == count}
    return MetricColumns(count, rows)


def join(parts: Sequence[MetricColumns]) -> MetricColumns:
    """Metrics of consecutive samples. Names beyond `NAMES_KEPT`, the newest, are left out."""
    names = list(dict.fromkeys(name for part in parts for name in part.rows))[:NAMES_KEPT]
    rows = {
        name: np.concatenate([part.rows.get(name, np.full(part.samples, np.nan)) for part in parts])
        for name in names
    }
    return MetricColumns(sum(part.samples for part in parts), rows)


def pack(columns: MetricColumns) -> bytes | None:
    """Compress without loss; None: there are no metrics."""
    if not columns.rows:
        return None
    names = json.dumps(list(columns.rows)).encode()
    values = np.stack(list(columns.rows.values())).astype("<f8").tobytes()
    return _FORMAT + zlib.compress(names + b"\n" + values, level=1)


def unpack(data: bytes | None, count: int) -> MetricColumns:
    """The inverse of :func:`pack`, for a chunk of `count` samples.

    Raises:
        ValueError: A newer version wrote the bytes.
    """
    if data is None:
        return MetricColumns(count, {})
    if data[:1] != _FORMAT:
        raise ValueError(f"metrics in unknown format {data[:1]!r}; a newer version wrote them")
    names, values = zlib.decompress(data[1:]).split(b"\n", 1)
    table = np.frombuffer(values, "<f8").reshape(-1, count)
    return MetricColumns(count, dict(zip(json.loads(names), table, strict=True)))


class MetricPoints(NamedTuple):
    """Metrics of some samples of an attempt, with their steps."""

    attempt: int
    step: Values
    columns: MetricColumns


def series(parts: Sequence[MetricPoints], first_step: int, points: int) -> MetricSeries:
    """One point per bucket of steps, at most `points`: the newest value of each name in it.

    Where several attempts have a step, the newest attempt counts.
    """
    if not parts:
        return MetricSeries(step=[], attempt=[], metrics={})
    steps = np.concatenate([part.step for part in parts])
    attempts = np.concatenate([np.full(len(part.step), part.attempt) for part in parts])
    rows = join([part.columns for part in parts]).rows
    order = np.lexsort((attempts, steps))
    order = order[np.append(steps[order][1:] != steps[order][:-1], True)]
    order = order[steps[order] >= first_step]
    told = np.zeros(len(steps), bool)
    for row in rows.values():
        told |= ~np.isnan(row)
    order = order[told[order]]
    groups = np.array_split(order, min(points, len(order))) if len(order) else []
    return MetricSeries(
        step=[int(steps[group[-1]]) for group in groups],
        attempt=[int(attempts[group[-1]]) for group in groups],
        metrics={name: [_last(row[group]) for group in groups] for name, row in rows.items()},
    )


def _last(values: Values) -> float:
    known = values[~np.isnan(values)]
    return float(known[-1]) if len(known) else float("nan")
