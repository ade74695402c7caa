"""GPU time by run and cause, within a period. Pure.

The problem: people ask what a project used in a month, and on what; runs begin and end at any time,
grow, shrink and wait. The design: a worker holds its node from launch to end, so GPU time is that
of the workers, clipped to the period. What it was spent on is read from the attempts of the run:
their first steps, their restarts with the failure behind each, and the seconds in which saves
blocked. All times are whole microseconds, so parts add up to their sum exactly, by any key.

Limits: saves are spread evenly over the training between two failures, as only their sum is kept.
Idle nodes, and spares that no run holds, are nobody's.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from enum import StrEnum

from monitors.failures import Cause
from orchestrator.core.model.decisions import Restart
from orchestrator.core.model.entities import Attempt, Run, Worker
from orchestrator.core.model.states import WorkerState
from orchestrator.core.model.time_ledger import Bucket

_EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
_MICROSECOND = dt.timedelta(microseconds=1)
MICROSECONDS_PER_HOUR = 3_600_000_000


class Use(StrEnum):
    """The uses of a GPU that a run holds, but for those lost to a failure."""

    PRODUCTIVE = "productive"  # steps never done before
    CHECKPOINTING = "checkpointing"  # saves that blocked training
    UNKNOWN = "unknown"  # the script does not say what it does
    STARTING = "starting"  # until the first step of the first attempt
    WAITING = "waiting"  # held while nodes that are missing were awaited
    STOPPING = "stopping"  # after training: stopping, or held by a person


LOST = "lost: "
"""Prefix of the uses that a failure caused, before its class: from the last progress before the
failure to the first new step."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RunRecord:
    """One run with its attempts, in order, and all its workers."""

    run: Run
    attempts: Sequence[Attempt]
    workers: Sequence[Worker]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RunUsage:
    """The time of one run within a period."""

    run: Run
    node_time: Mapping[str, int]
    """Microseconds of nodes by use."""

    @property
    def gpus_per_node(self) -> int:
        """GPUs of each node that the run holds; 0: it uses none."""
        return self.run.spec.resources.gpus_per_node


@dataclasses.dataclass(frozen=True, slots=True)
class _Span:
    """A piece of a run's time that went to one use; saves are within a productive one."""

    begin: int
    end: int
    use: str
    saving: int = 0


def usage_of(
    record: RunRecord, since: dt.datetime, until: dt.datetime, now: dt.datetime
) -> RunUsage:
    """The time of a run between two moments; of one that is not over, up to `now`."""
    first, last = _at(since), min(_at(until), _at(now))
    spans = _spans(record, _at(now))
    held = Counter(_interval(record, worker, _at(now)) for worker in record.workers)
    found: Counter[str] = Counter()
    for (begin, end), nodes in held.items():
        begin, end = max(begin, first), min(end, last)  # noqa: PLW2901 (clipped)
        for span in spans:
            time = min(end, span.end) - max(begin, span.begin)
            if time > 0:
                saving = time * span.saving // (span.end - span.begin)
                found[span.use] += (time - saving) * nodes
                found[Use.CHECKPOINTING.value] += saving * nodes
    return RunUsage(run=record.run, node_time={use: time for use, time in found.items() if time})


def _interval(record: RunRecord, worker: Worker, now: int) -> tuple[int, int]:
    """When a worker held its node."""
    begin = _at(worker.launched_at)
    if worker.ended_at is not None:
        return begin, _at(worker.ended_at)
    if worker.state is not WorkerState.ENDED:
        return begin, now
    ends = [  # a record from before workers noted their end: the last attempt that it was part of
        attempt.ended_at
        for attempt in record.attempts
        if attempt.ended_at and any(seat.worker == worker.id for seat in attempt.seats)
    ]
    return begin, max(map(_at, ends), default=begin)


def _spans(record: RunRecord, now: int) -> list[_Span]:
    """The time of a run in pieces without gaps, from the launch of its first worker to `now`."""
    marks: list[tuple[int, str, int]] = []

    def mark(at: dt.datetime | None, use: str, saving: float = 0.0) -> None:
        if at is not None:
            # Reports come late: no mark lies before the one that was made before it.
            begin = max(_at(at), marks[-1][0] if marks else 0)
            marks.append((begin, use, round(saving * 1_000_000)))

    run = record.run
    mark(min([run.submitted_at, *(worker.launched_at for worker in record.workers)]), Use.STARTING)
    books = {*run.ledger.seconds, run.ledger.bucket}
    for attempt in record.attempts:
        trains = attempt.first_step_at
        if (restart := attempt.restart) is not None:
            trains = restart.recovered_at
            lost = LOST + cause_of(restart)
            mark(restart.failed_at, lost)
            if restart.stopped_at is not None and restart.placed_at is not None:
                mark(restart.stopped_at, Use.WAITING)
                mark(restart.placed_at, lost)
        if trains is not None:
            mark(trains, Use.PRODUCTIVE, attempt.blocked_seconds)
        elif Bucket.UNKNOWN in books:
            mark(attempt.started_at, Use.UNKNOWN)
        if attempt is record.attempts[-1]:
            mark(attempt.ended_at, Use.STOPPING)
    ends = [*(begin for begin, _, _ in marks[1:]), now]
    return [
        _Span(begin, end, str(use), min(saving, end - begin))
        for (begin, use, saving), end in zip(marks, ends, strict=True)
        if end > begin
    ]


def cause_of(restart: Restart) -> str:
    """The cause of a restart in a word: the class of the failure, or `operator`."""
    return "operator" if restart.cause is Cause.OPERATOR else restart.failure_class.value


def _at(time: dt.datetime) -> int:
    return (time - _EPOCH) // _MICROSECOND


class By(StrEnum):
    """The keys by which usage is summed."""

    PROJECT = "project"
    QUEUE = "queue"
    USER = "user"
    CAUSE = "cause"
    RUN = "run"


@dataclasses.dataclass(slots=True)
class Sum:
    """The time of several runs."""

    runs: int = 0
    node_time: Counter[str] = dataclasses.field(default_factory=Counter)
    """Microseconds of nodes by use."""
    gpu_time: Counter[str] = dataclasses.field(default_factory=Counter)
    """Microseconds of GPUs by use."""

    def add(self, node_time: Mapping[str, int], gpus_per_node: int) -> None:
        """Add the time of a run, or a part of it."""
        self.runs += 1
        for use, time in node_time.items():
            self.node_time[use] += time
            self.gpu_time[use] += time * gpus_per_node


def summed(usages: Iterable[RunUsage], by: By) -> dict[str, Sum]:
    """The time of runs by a key; runs that held nothing in the period are left out."""
    found: dict[str, Sum] = defaultdict(Sum)
    for usage in usages:
        if not usage.node_time:
            continue
        if by is By.CAUSE:
            for use, time in usage.node_time.items():
                found[use].add({use: time}, usage.gpus_per_node)
        else:
            found[key_of(usage.run, by)].add(usage.node_time, usage.gpus_per_node)
    return dict(found)


def key_of(run: Run, by: By) -> str:
    """The value of a key for a run."""
    keys = {
        By.PROJECT: run.spec.project,
        By.QUEUE: run.spec.queue,
        By.USER: run.owner,
        By.RUN: run.id,
    }
    return keys[by]
