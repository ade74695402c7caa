"""The time of a run by cause. Pure.

The ledger of a run has exact seconds by bucket; the phases of restarts say which failure they were
spent on. So the time of a bucket is shared out to causes by those phases. Two clocks never agree to
the last bit: when the phases of restarts are more than their bucket has, they are scaled down to
it, and the rest of a bucket is the first start's. So the rows add up to the wall time, always.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
from collections import defaultdict
from collections.abc import Mapping, Sequence

from orchestrator.core.model.time_ledger import Bucket
from orchestrator.core.views.models import RestartView
from orchestrator.core.views.phases import PHASES
from orchestrator.reports.record import RunRecord

MEANINGS: Mapping[str, str] = {
    Bucket.PRODUCTIVE: "steps computed for the first time",
    Bucket.LOST: "steps computed again",
    Bucket.RESTORING: "loading a checkpoint",
    Bucket.STARTING: "stopping, placing and starting processes",
    Bucket.STALLED: "no progress, until it was noticed",
    Bucket.UNKNOWN: "the script does not say what it does",
    Bucket.CHECKPOINTING: "saves that blocked training",
    Bucket.QUEUED: "waiting for nodes, or held",
}
"""Each bucket in words, in the order of a report."""
_BUCKETS = {
    "detect": Bucket.STALLED,
    "stop": Bucket.STARTING,
    "place": Bucket.STARTING,
    "start": Bucket.STARTING,
    "restore": Bucket.RESTORING,
    "recompute": Bucket.LOST,
}
"""Phase of a recovery → the bucket that its seconds are booked on."""
FIRST = "first start and other"
_SHARED = (Bucket.STALLED, Bucket.STARTING, Bucket.RESTORING, Bucket.LOST)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """Time of one cause."""

    cause: str
    restarts: int
    """Restarts of this cause."""
    seconds: Mapping[str, float]
    """By bucket."""

    @property
    def total(self) -> float:
        """Seconds of the cause in all."""
        return sum(self.seconds.values())


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class TimeByCause:
    """Where the wall time of a run went."""

    buckets: Mapping[str, float]
    """Seconds by bucket; together, the wall time."""
    rows: Sequence[Row]
    """Seconds lost by cause, the largest first; together, the buckets that restarts pay for."""

    @property
    def total(self) -> float:
        """The wall time in seconds."""
        return sum(self.buckets.values())


def time_by_cause(record: RunRecord) -> TimeByCause:
    """The time ledger of a run, its losses by cause."""
    buckets = {bucket: record.run.seconds.get(bucket, 0.0) for bucket in MEANINGS}
    spent: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    counts: dict[str, int] = defaultdict(int)
    for restart in record.run.restarts:
        counts[cause_of(restart)] += 1
        for phase, seconds in phases(restart, _end_of(record, restart)).items():
            spent[cause_of(restart)][_BUCKETS[phase]] += seconds
    for bucket in _SHARED:
        claimed = sum(parts.get(bucket, 0.0) for parts in spent.values())
        scale = min(1.0, buckets[bucket] / claimed) if claimed > 0 else 0.0
        for parts in spent.values():
            parts[bucket] = parts.get(bucket, 0.0) * scale
        spent[FIRST][bucket] = buckets[bucket] - claimed * scale
    rows = [
        Row(cause=cause, restarts=counts[cause], seconds={b: parts[b] for b in _SHARED})
        for cause, parts in spent.items()
    ]
    shown = [row for row in rows if row.restarts or row.total >= 0.05]
    return TimeByCause(
        buckets=buckets, rows=sorted(shown, key=lambda row: (row.cause == FIRST, -row.total))
    )


def cause_of(restart: RestartView) -> str:
    """The cause of a restart in words: its class, and who pays for it."""
    return restart.failure_class.replace("_", " ")


def phases(restart: RestartView, end: dt.datetime | None = None) -> dict[str, float]:
    """Seconds of a recovery by phase; of one that is not over, the phase under way lasts to `end`.

    A phase that was skipped has 0 seconds.
    """
    known = {phase: restart.seconds.get(phase) or 0.0 for phase in PHASES}
    if restart.recovered_at is not None or end is None:
        return known
    reached = [phase for phase in PHASES if restart.seconds.get(phase) is not None]
    after = PHASES[min(PHASES.index(reached[-1]) + 1 if reached else 0, len(PHASES) - 1)]
    begun = sum(known[phase] for phase in PHASES if phase != "detect")
    more = (end - restart.detected_at).total_seconds() - begun
    return {**known, after: known[after] + max(0.0, more)}


def _end_of(record: RunRecord, restart: RestartView) -> dt.datetime:
    """When a recovery was over, at the latest: the end of its attempt."""
    ends = [each.ended_at for each in record.attempts if each.number == restart.attempt]
    return ends[0] if ends and ends[0] is not None else record.end
