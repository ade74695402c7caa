"""Events of a gang: reports of equal content from workers of one attempt, joined into one event.

A gang of 2,000 nodes answers one command 2,000 times. Handlers work on sets of ranks, so that 2,000
answers together cost about as much as one; a report that arrives alone is a gang of one. Only
success has a gang form: failures (a rank's death, a rejected or corrupt checkpoint) are events of
their own.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Literal, Self

from jobs.events import Event, RankStack
from jobs.shards import Shards


class GangEvent(Event):
    """A report of equal content from several agents of one attempt.

    `attempt` is the fencing token as of any report. The id, time and cause are those of the first
    report.
    """

    run: str
    attempt: int
    workers: tuple[str, ...]
    """Each once."""
    stands_for: tuple[str, ...] = ()
    """Ids of the agents' events that were put together."""

    def only(self, seats: Mapping[str, Collection[int]]) -> Self:
        """The event, reduced to workers that have one of these seats, and to their ranks."""
        workers = tuple(worker for worker in self.workers if worker in seats)
        ranks = {rank for worker in workers for rank in seats[worker]}
        return self.model_copy(update={"workers": workers, **self._only(workers, ranks)})

    def _only(self, workers: tuple[str, ...], ranks: set[int]) -> dict[str, Any]:  # noqa: ARG002
        """The other fields, reduced to these workers and ranks."""
        return {}


class _OfRanks(GangEvent):
    ranks: tuple[int, ...]

    def _only(self, workers: tuple[str, ...], ranks: set[int]) -> dict[str, Any]:  # noqa: ARG002
        return {"ranks": tuple(rank for rank in self.ranks if rank in ranks)}


class GangStarted(_OfRanks):
    """The processes of these ranks exist."""

    kind: Literal["gang_started"] = "gang_started"


class GangReady(_OfRanks):
    """These ranks called `babysit.init()`."""

    kind: Literal["gang_ready"] = "gang_ready"


class GangRestored(_OfRanks):
    """These ranks loaded one checkpoint, their first choice (no id: from the beginning)."""

    kind: Literal["gang_restored"] = "gang_restored"
    step: int
    checkpoint: str = ""


class GangFinished(_OfRanks):
    """These ranks ended well."""

    kind: Literal["gang_finished"] = "gang_finished"
    last_step: int
    remark: str = ""
    """Ranks that ended well with another exit code than 0, and how."""


class GangSaved(GangEvent):
    """Shards of one directory checkpoint are on disk."""

    kind: Literal["gang_saved"] = "gang_saved"
    shards: Shards

    def _only(self, workers: tuple[str, ...], ranks: set[int]) -> dict[str, Any]:
        return {"shards": _own(self.shards, workers, ranks)}


class GangChecked(GangEvent):
    """These workers read their shards of a checkpoint back, and found them whole."""

    kind: Literal["gang_checked"] = "gang_checked"
    checkpoint: str
    medium: str = ""
    """The source of the bytes: see :class:`jobs.events.CheckpointChecked`."""


class GangStopped(GangEvent):
    """No process of the attempt is left on these workers."""

    kind: Literal["gang_stopped"] = "gang_stopped"
    memory: tuple[Shards, ...] = ()
    """All that survived in their memory, by checkpoint."""
    ports: tuple[int, ...] = ()
    """A fresh rendezvous port of each; empty: they keep theirs."""
    last_step: int = 0

    def _only(self, workers: tuple[str, ...], ranks: set[int]) -> dict[str, Any]:  # noqa: ARG002
        ports = dict(zip(self.workers, self.ports, strict=False))
        return {
            "ports": tuple(ports[worker] for worker in workers) if ports else (),
            "memory": tuple(_own(shards, workers) for shards in self.memory),
        }


class GangStacks(GangEvent):
    """Answers to CaptureStacks."""

    kind: Literal["gang_stacks"] = "gang_stacks"
    stacks: tuple[RankStack, ...]

    def _only(self, workers: tuple[str, ...], ranks: set[int]) -> dict[str, Any]:  # noqa: ARG002
        return {"stacks": tuple(stack for stack in self.stacks if stack.rank in ranks)}


def _own(shards: Shards, workers: Collection[str], ranks: Collection[int] | None = None) -> Shards:
    """The parts these workers report; memory may hold parts of ranks they had before."""
    reporting = frozenset(workers)
    columns = zip(shards.workers, shards.ranks, strict=True)
    return shards.kept(
        [
            place
            for place, (worker, rank) in enumerate(columns)
            if worker in reporting and (ranks is None or rank in ranks)
        ]
    )


AnyGangEvent = (
    GangStarted
    | GangReady
    | GangRestored
    | GangSaved
    | GangChecked
    | GangStopped
    | GangStacks
    | GangFinished
)
