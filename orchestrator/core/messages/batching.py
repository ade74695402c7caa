"""Puts together what agents report alike: many events into few, with the same meaning.

Only neighbours are joined, so that nothing changes places with anything else.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any

from jobs.events import (
    AttemptStopped,
    CheckpointChecked,
    Event,
    RankReady,
    RankRestored,
    RanksStarted,
    ShardReport,
    Shards,
    ShardWritten,
    StacksCaptured,
    WorkerEvent,
)
from orchestrator.core.messages.gang_events import (
    GangChecked,
    GangEvent,
    GangReady,
    GangRestored,
    GangSaved,
    GangStacks,
    GangStarted,
    GangStopped,
)


def coalesce(events: Iterable[Event]) -> list[Event]:
    """The events, with neighbours that say the same of other workers or ranks made one.

    What stands for several bears the id, time and cause of the first of them, and names them all.
    """
    gathered: list[Event] = []
    for _, alike in itertools.groupby(events, key=_key):
        group = list(alike)
        gathered += group if len(group) < 2 else [_ONE[type(group[0])](group)]
    return gathered


def _key(event: Event) -> Hashable:
    """Equal for neighbours that can be made one; nothing equals an event that stands alone."""
    match event:
        case ShardWritten(shard=shard):
            what: Hashable = (shard.attempt, shard.step, shard.tier, shard.path, shard.world_size)
            what = (what, shard.batch)
        case RankRestored(rejected=()):
            what = (event.step, event.checkpoint)
        case CheckpointChecked(ok=True):
            what = event.checkpoint
        case RanksStarted() | RankReady() | AttemptStopped() | StacksCaptured():
            what = None
        case _:
            return (id(event),)
    assert isinstance(event, WorkerEvent)  # noqa: S101 (each of the above is one)
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
    """Of each worker the newest word counts: an order answered twice is answered once."""
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
    whole = Shards.of("", *(shard for _, shard in parts))
    return whole.model_copy(update={"workers": tuple(worker for worker, _ in parts)})


def _restored(group: Sequence[RankRestored]) -> GangEvent:
    first = group[0]
    ranks = tuple(event.rank for event in group)
    return _gang(GangRestored, group, ranks=ranks, step=first.step, checkpoint=first.checkpoint)


def _saved(group: Sequence[ShardWritten]) -> GangEvent:
    once = {event.shard.rank: (event.worker, event.shard) for event in reversed(group)}
    return _gang(GangSaved, group, shards=_columns(list(reversed(once.values()))))


_ONE: Mapping[type[Event], Callable[[Any], GangEvent]] = {
    RanksStarted: lambda group: _gang(
        GangStarted, group, ranks=tuple(rank for event in group for rank in event.ranks)
    ),
    RankReady: lambda group: _gang(GangReady, group, ranks=tuple(event.rank for event in group)),
    RankRestored: _restored,
    ShardWritten: _saved,
    CheckpointChecked: lambda group: _gang(GangChecked, group, checkpoint=group[0].checkpoint),
    AttemptStopped: _stopped,
    StacksCaptured: lambda group: _gang(
        GangStacks, group, stacks=tuple(stack for event in group for stack in event.stacks)
    ),
}
