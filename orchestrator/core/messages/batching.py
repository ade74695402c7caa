"""Agents' reports in their gang form: one event for any number of workers that say the same.

A gang of 2,000 nodes answers one command with 2,000 reports. :func:`coalesce` joins those that
arrive together, so that the core and the journal take them at the cost of about one;
:func:`as_gang` turns a report that arrives alone into a gang of one, so that the core has one
handler for both. A failure has no gang form: each has a reason of its own.

The order of events never changes: only neighbours are joined.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any

from jobs.events import (
    AttemptStopped,
    CheckpointChecked,
    Event,
    RankExited,
    RankReady,
    RankRestored,
    RanksStarted,
    ShardWritten,
    StacksCaptured,
    WorkerEvent,
)
from jobs.shards import ShardReport, Shards
from orchestrator.core.messages.gang_events import (
    GangChecked,
    GangEvent,
    GangFinished,
    GangReady,
    GangRestored,
    GangSaved,
    GangStacks,
    GangStarted,
    GangStopped,
)


def coalesce(events: Iterable[Event]) -> list[Event]:
    """The events in their order, with neighbours that say the same of several workers joined.

    A joined event bears the id, time and cause of the first event that it stands for, and the ids
    of all of them. An event with no such neighbour stays as it is, and so does every failure.
    """
    joined: list[Event] = []
    for _, alike in itertools.groupby(events, key=lambda event: _key(event) or id(event)):
        group = list(alike)
        joined += group if len(group) < 2 else [_GANG_FORM[type(group[0])](group)]
    return joined


def as_gang(event: Event) -> Event:
    """An agent's report of success as that of a gang of one; any other event as it is.

    The gang form is for the core's handlers only: the journal keeps what the agent sent.
    """
    return gang_of(event) if isinstance(event, WorkerEvent) and _succeeded(event) else event


def gang_of(event: WorkerEvent) -> Any:
    """The gang form of one agent's event, also of a partial failure (its failure is left out).

    Raises:
        KeyError: Events of this kind have no gang form.
    """
    return _GANG_FORM[type(event)]([event])


def _succeeded(event: WorkerEvent) -> bool:
    match event:
        case RankExited():
            return event.failure is None and (event.code == 0 or event.remark != "")
        case RankRestored():
            return not event.rejected
        case CheckpointChecked():
            return event.ok
    return type(event) in _GANG_FORM


def _key(event: Event) -> Hashable | None:
    """Equal for events that can be joined; None for one that cannot be joined to any other."""
    if not isinstance(event, WorkerEvent) or not _succeeded(event):
        return None
    match event:
        case ShardWritten(shard=shard):
            what: Hashable = (shard.attempt, shard.step, shard.tier, shard.path, shard.world_size)
            what = (what, shard.batch)
        case RankRestored():
            what = (event.step, event.checkpoint)
        case CheckpointChecked():
            what = (event.checkpoint, event.medium)
        case _:
            what = None
    return (type(event), event.run, event.attempt, what)


def _gang(kind: type[GangEvent], group: Sequence[Any], **fields: object) -> GangEvent:
    first = group[0]
    fields.setdefault("stands_for", tuple(event.id for event in group))
    return kind(
        id=first.id,
        at=first.at,
        actor="controller",
        cause=first.cause,
        run=first.run,
        attempt=first.attempt,
        workers=tuple(dict.fromkeys(event.worker for event in group)),
        **fields,
    )


def _stopped(group: Sequence[AttemptStopped]) -> GangEvent:
    """The newest answer of each worker counts: a command may be answered twice."""
    last = {event.worker: event for event in group}
    parts: dict[tuple[int, int, str], list[tuple[str, ShardReport]]] = {}
    for event in last.values():
        for shard in event.memory_shards:
            key = (shard.attempt, shard.step, shard.path)
            parts.setdefault(key, []).append((event.worker, shard))
    return _gang(
        GangStopped,
        list(last.values()),
        memory=tuple(_columns(part) for part in parts.values()),
        ports=tuple(event.port for event in last.values()),
        last_step=max(event.last_step for event in group),
        stands_for=tuple(event.id for event in group),
    )


def _columns(parts: Sequence[tuple[str, ShardReport]]) -> Shards:
    """Shards of one checkpoint, each with its worker."""
    workers = tuple(worker for worker, _ in parts)
    whole = Shards.of(workers[0], *(shard for _, shard in parts))
    return whole if len(workers) == 1 else whole.model_copy(update={"workers": workers})


def _restored(group: Sequence[RankRestored]) -> GangEvent:
    first = group[0]
    ranks = tuple(event.rank for event in group)
    return _gang(GangRestored, group, ranks=ranks, step=first.step, checkpoint=first.checkpoint)


def _saved(group: Sequence[ShardWritten]) -> GangEvent:
    once = {event.shard.rank: (event.worker, event.shard) for event in reversed(group)}
    return _gang(GangSaved, group, shards=_columns(list(reversed(once.values()))))


_GANG_FORM: Mapping[type[Event], Callable[[Any], GangEvent]] = {
    RanksStarted: lambda group: _gang(
        GangStarted, group, ranks=tuple(rank for event in group for rank in event.ranks)
    ),
    RankReady: lambda group: _gang(GangReady, group, ranks=tuple(event.rank for event in group)),
    RankExited: lambda group: _gang(
        GangFinished,
        group,
        ranks=tuple(event.rank for event in group),
        last_step=max(event.last_step for event in group),
        remark="; ".join(f"rank {each.rank} was {each.remark}" for each in group if each.remark),
    ),
    RankRestored: _restored,
    ShardWritten: _saved,
    CheckpointChecked: lambda group: _gang(
        GangChecked, group, checkpoint=group[0].checkpoint, medium=group[0].medium
    ),
    AttemptStopped: _stopped,
    StacksCaptured: lambda group: _gang(
        GangStacks, group, stacks=tuple(stack for event in group for stack in event.stacks)
    ),
}
