"""The time ledger: where the wall-clock seconds of a run went."""

from __future__ import annotations

import dataclasses
import datetime as dt
from collections.abc import Mapping
from enum import StrEnum


class Bucket(StrEnum):
    """The kinds of time that a run spends."""

    PRODUCTIVE = "productive"  # steps never done before
    LOST = "lost"  # steps done again
    RESTORING = "restoring"  # loading a checkpoint
    STARTING = "starting"  # stopping, placing, starting processes
    STALLED = "stalled"  # no progress, and nobody had noticed yet
    UNKNOWN = "unknown"  # the script does not say what it does
    CHECKPOINTING = "checkpointing"  # saves that blocked training
    QUEUED = "queued"  # waiting for nodes, or held with nothing running


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Ledger:
    """Seconds by bucket. Every second since the submission is in exactly one of them."""

    bucket: Bucket = Bucket.QUEUED
    """The bucket that time is booked on now."""
    since: dt.datetime
    """When it began to."""
    seconds: Mapping[Bucket, float] = dataclasses.field(default_factory=dict)
    """Closed time; the time since `since` is not in it yet."""


def switch(ledger: Ledger, bucket: Bucket, at: dt.datetime) -> Ledger:
    """Close the current bucket at `at` and open another.

    Time never runs backwards: an `at` before the last switch counts as the time of that switch.
    """
    at = max(at, ledger.since)
    spent = (at - ledger.since).total_seconds()
    seconds = {**ledger.seconds, ledger.bucket: ledger.seconds.get(ledger.bucket, 0.0) + spent}
    return dataclasses.replace(ledger, bucket=bucket, since=at, seconds=seconds)


def move(ledger: Ledger, source: Bucket, target: Bucket, seconds: float) -> Ledger:
    """Move closed seconds from one bucket to another, at most what the source has."""
    moved = min(max(0.0, seconds), ledger.seconds.get(source, 0.0))
    book = {
        **ledger.seconds,
        source: ledger.seconds.get(source, 0.0) - moved,
        target: ledger.seconds.get(target, 0.0) + moved,
    }
    return dataclasses.replace(ledger, seconds=book)


def totals(ledger: Ledger, now: dt.datetime) -> dict[str, float]:
    """Seconds by the word of each bucket, the open one counted up to `now`."""
    closed = switch(ledger, ledger.bucket, now)
    return {bucket.value: closed.seconds.get(bucket, 0.0) for bucket in Bucket}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """The ETTR of one ledger as a function of the time, for many questions about the same one."""

    since: dt.datetime
    productive: float
    """Closed seconds."""
    allocated: float
    """Closed seconds."""
    known: bool
    """False if closed time is unknown."""
    bucket: Bucket

    def at(self, now: dt.datetime) -> float | None:
        """The ETTR at `now`; see :func:`ettr`."""
        spent = max(0.0, (now - self.since).total_seconds())
        if not self.known or (spent and self.bucket is Bucket.UNKNOWN):
            return None
        allocated = self.allocated + (spent if self.bucket is not Bucket.QUEUED else 0.0)
        productive = self.productive + (spent if self.bucket is Bucket.PRODUCTIVE else 0.0)
        return productive / allocated if allocated > 0 else None


def share(ledger: Ledger) -> Share:
    """The parts of the ETTR of a ledger."""
    seconds = ledger.seconds
    return Share(
        since=ledger.since,
        productive=seconds.get(Bucket.PRODUCTIVE, 0.0),
        allocated=sum(seconds.values()) - seconds.get(Bucket.QUEUED, 0.0),
        known=seconds.get(Bucket.UNKNOWN, 0.0) <= 0,
        bucket=ledger.bucket,
    )


def ettr(ledger: Ledger, now: dt.datetime) -> float | None:
    """Effective training time ratio: productive / allocated.

    None while nothing was allocated, and for a script that does not say what it does: what is not
    known is neither productive nor lost.
    """
    return share(ledger).at(now)
