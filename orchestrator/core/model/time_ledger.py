"""The time ledger: where the wall seconds of a run went (DESIGN section 7)."""

from __future__ import annotations

import dataclasses
import datetime as dt
from enum import StrEnum

from orchestrator.core.model.entities import Ledger


class Bucket(StrEnum):
    """What a run's time is spent on."""

    PRODUCTIVE = "productive"  # steps never done before
    LOST = "lost"  # steps done again
    RESTORING = "restoring"  # loading a checkpoint
    STARTING = "starting"  # stopping, placing, starting processes
    STALLED = "stalled"  # no progress, and nobody had noticed yet
    CHECKPOINTING = "checkpointing"  # saves that blocked training
    QUEUED = "queued"  # waiting for nodes, or held with nothing running


def switch(ledger: Ledger, bucket: Bucket, at: dt.datetime) -> Ledger:
    """Close the current bucket at `at` and open another.

    A time before the last switch counts as it.
    """
    at = max(at, ledger.since)
    spent = (at - ledger.since).total_seconds()
    seconds = {**ledger.seconds, ledger.bucket: ledger.seconds.get(ledger.bucket, 0.0) + spent}
    return dataclasses.replace(ledger, bucket=bucket.value, since=at, seconds=seconds)


def move(ledger: Ledger, source: Bucket, target: Bucket, seconds: float) -> Ledger:
    """Move closed time from one bucket to another; never more than there is."""
    moved = min(max(0.0, seconds), ledger.seconds.get(source, 0.0))
    book = {
        **ledger.seconds,
        source.value: ledger.seconds.get(source, 0.0) - moved,
        target.value: ledger.seconds.get(target, 0.0) + moved,
    }
    return dataclasses.replace(ledger, seconds=book)


def totals(ledger: Ledger, now: dt.datetime) -> dict[str, float]:
    """Seconds by bucket, the open one counted up to `now`."""
    closed = switch(ledger, Bucket(ledger.bucket), now)
    return {bucket.value: closed.seconds.get(bucket.value, 0.0) for bucket in Bucket}


def ettr(ledger: Ledger, now: dt.datetime) -> float | None:
    """Effective training time ratio: productive / allocated; None while nothing was allocated."""
    seconds = totals(ledger, now)
    allocated = sum(seconds.values()) - seconds[Bucket.QUEUED]
    return seconds[Bucket.PRODUCTIVE] / allocated if allocated > 0 else None
