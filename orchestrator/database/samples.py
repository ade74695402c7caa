"""Samples as arrays: packing, summaries, thinning. Pure; :mod:`.sample_rows` has the SQL.

A block of samples is a float64 array of shape (10, n), with one row per column of
:class:`jobs.events.RankSamples` in the order of `COLUMNS`. Steps and batches are integers below
2**53, which float64 represents exactly.
"""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from jobs.events import RankSamples
from orchestrator.database.port import Series
from orchestrator.errors import InvalidError

Block = NDArray[np.float64]

COLUMNS = (
    "step",
    "batch",
    "time",
    "loss",
    "grad_norm",
    "tokens",
    "seconds",
    "blocked_seconds",
    "learning_rate",
    "expected_until",
)
STEP, TIME, LOSS, GRAD_NORM, SECONDS = (
    COLUMNS.index(name) for name in ("step", "time", "loss", "grad_norm", "seconds")
)
_WHOLE = frozenset({"step", "batch", "expected_until"})
_ABSENT = {"loss": np.nan, "grad_norm": -1.0, "learning_rate": -1.0}
"""The value for a column that was not sent (see :class:`babysit.ring.Record`); otherwise 0."""
CHUNK = 512
"""Samples in a full chunk: 10 million steps become 20 thousand rows."""
_FORMAT = b"\x01"


def block_of(samples: RankSamples) -> Block:
    """The columns as one block.

    Raises:
        InvalidError: The columns differ in length.
    """
    count = len(samples.step)
    block = np.empty((len(COLUMNS), count))
    for index, name in enumerate(COLUMNS):
        column = getattr(samples, name)
        if column and len(column) != count:
            raise InvalidError(
                f"samples of rank {samples.rank}: {len(column)} values of {name} for {count} steps"
            )
        block[index] = column or _ABSENT.get(name, 0.0)
    return block


def samples_of(rank: int, block: Block) -> RankSamples:
    """The samples of a block: the inverse of :func:`block_of`."""
    columns: dict[str, Any] = {
        name: block[index].astype(np.int64).tolist() if name in _WHOLE else block[index].tolist()
        for index, name in enumerate(COLUMNS)
    }
    return RankSamples(rank=rank, **columns)


def pack(block: Block) -> bytes:
    """Compress a block without loss: group bytes of equal weight, which are alike, then zlib."""
    shuffled = np.ascontiguousarray(block, dtype="<f8").view(np.uint8)
    shuffled = shuffled.reshape(block.shape[0], block.shape[1], 8).transpose(0, 2, 1)
    return _FORMAT + zlib.compress(shuffled.tobytes(), level=1)


def unpack(data: bytes) -> Block:
    """The block from packed bytes: the inverse of :func:`pack`.

    Raises:
        ValueError: A newer version wrote the bytes.
    """
    if data[:1] != _FORMAT:
        raise ValueError(f"samples in unknown format {data[:1]!r}; a newer version wrote them")
    raw = np.frombuffer(zlib.decompress(data[1:]), np.uint8).reshape(len(COLUMNS), 8, -1)
    return np.ascontiguousarray(raw.transpose(0, 2, 1)).view("<f8")[:, :, 0].astype(np.float64)


def split(tail: Block | None, new: Block) -> list[Block]:
    """Fill the newest chunk up to `CHUNK` samples, then start new chunks.

    The first returned block replaces `tail` (None: there is no chunk yet).
    """
    whole = new if tail is None else np.concatenate([tail, new], axis=1)
    return [whole[:, at : at + CHUNK] for at in range(0, whole.shape[1], CHUNK)]


def summary(block: Block) -> dict[str, Any]:
    """The summary columns of a chunk; None stands for NaN."""
    loss = block[LOSS]
    return {
        "first_step": int(block[STEP, 0]),
        "last_step": int(block[STEP, -1]),
        "count": block.shape[1],
        "loss_last": _or_none(loss[-1]),
        "loss_min": _or_none(np.fmin.reduce(loss)),
        "loss_max": _or_none(np.fmax.reduce(loss)),
        "loss_count": int(np.isfinite(loss).sum()),
        "grad_norm_last": _or_none(block[GRAD_NORM, -1]),
        "seconds_sum": _or_none(block[SECONDS].sum()),
        "first_time": _or_none(block[TIME, 0]),
        "last_time": _or_none(block[TIME, -1]),
    }


def _or_none(value: np.float64) -> float | None:
    return None if np.isnan(value) else float(value)


class Points(NamedTuple):
    """Points before thinning, in arrays of equal length; each stands for `weight` samples."""

    step: Block
    attempt: Block
    loss: Block
    loss_min: Block
    loss_max: Block
    missing: Block
    """Samples of the point without a finite loss."""
    grad_norm: Block
    seconds: Block
    """Sum of step times over the samples of the point, in seconds."""
    time: Block
    weight: Block


def points_of(attempt: int, block: Block) -> Points:
    """One point per sample."""
    ones = np.ones(block.shape[1])
    return Points(
        step=block[STEP],
        attempt=attempt * ones,
        loss=block[LOSS],
        loss_min=block[LOSS],
        loss_max=block[LOSS],
        missing=1.0 - np.isfinite(block[LOSS]),
        grad_norm=block[GRAD_NORM],
        seconds=block[SECONDS],
        time=block[TIME],
        weight=ones,
    )


def points_of_summaries(table: Mapping[str, Block]) -> Points:
    """One point per row of summaries."""
    return Points(
        step=table["last_step"],
        attempt=table["attempt"],
        loss=table["loss_last"],
        loss_min=table["loss_min"],
        loss_max=table["loss_max"],
        missing=table["count"] - table["loss_count"],
        grad_norm=table["grad_norm_last"],
        seconds=table["seconds_sum"],
        time=table["last_time"],
        weight=table["count"],
    )


def join(parts: Sequence[Points]) -> Points:
    """All points in order of steps; where several attempts have a step, the newest counts."""
    if not parts:
        return Points(*(np.empty(0) for _ in Points._fields))
    whole = Points(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))
    order = np.lexsort((whole.attempt, whole.step))
    steps = whole.step[order]
    last = np.append(steps[1:] != steps[:-1], True)
    return select(whole, order[last])


def select(points: Points, which: NDArray[Any]) -> Points:
    """Select points by a mask or indices."""
    return Points(*(column[which] for column in points))


def thin(points: Points, limit: int) -> Series:
    """Thin points to at most `limit` buckets of equal width in steps.

    The points must be in ascending order of steps, each step once.
    """
    if not len(points.step):
        nothing: dict[str, list[Any]] = {field.name: [] for field in dataclasses.fields(Series)}
        return Series(**nothing)
    starts = _bucket_starts(points.step, max(1, limit))
    ends = np.append(starts[1:], len(points.step)) - 1
    seconds = np.add.reduceat(points.seconds, starts) / np.add.reduceat(points.weight, starts)
    return Series(
        step=points.step[ends].astype(np.int64).tolist(),
        attempt=points.attempt[ends].astype(np.int64).tolist(),
        loss=points.loss[ends].tolist(),
        loss_min=np.fmin.reduceat(points.loss_min, starts).tolist(),
        loss_max=np.fmax.reduceat(points.loss_max, starts).tolist(),
        missing=np.add.reduceat(points.missing, starts).astype(np.int64).tolist(),
        grad_norm=points.grad_norm[ends].tolist(),
        seconds=seconds.tolist(),
        time=points.time[ends].tolist(),
    )


def _bucket_starts(steps: Block, limit: int) -> NDArray[np.intp]:
    if len(steps) <= limit:
        return np.arange(len(steps))
    width = (steps[-1] - steps[0] + 1) / limit
    bucket = np.floor((steps - steps[0]) / width)
    return np.flatnonzero(np.append(True, bucket[1:] != bucket[:-1]))
