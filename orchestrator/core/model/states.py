"""The states of things and their legal moves.

The diagram in docs/states.md is generated from these tables.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import TypeVar


class RunState(StrEnum):
    """The life of a run."""

    QUEUED = "queued"  # waits for nodes
    STARTING = "starting"  # has nodes; workers or ranks are starting
    RUNNING = "running"  # steps advance
    RECOVERING = "recovering"  # an attempt ended; the next is being prepared
    HELD = "held"  # a person (or the breaker) stopped all automatic action
    SUCCEEDED = "succeeded"  # every rank exited with code 0
    FAILED = "failed"  # will not be restarted
    CANCELLED = "cancelled"  # a person ended it


class AttemptState(StrEnum):
    """The life of one incarnation of the gang."""

    STARTING = "starting"  # ranks are being started; no step yet
    RUNNING = "running"  # steps advance
    STOPPING = "stopping"  # being killed; not yet confirmed dead
    ENDED = "ended"  # confirmed dead
    FENCED = "fenced"  # could not be confirmed dead in time: nothing it writes counts


class WorkerState(StrEnum):
    """The life of our agent on one node."""

    LAUNCHING = "launching"  # asked of the cluster; has not joined
    READY = "ready"  # joined; its standby is warm
    LOST = "lost"  # out of contact, not confirmed dead
    STOPPING = "stopping"  # told to leave
    ENDED = "ended"  # gone, confirmed


class NodeState(StrEnum):
    """The states of a node: they say if it takes work."""

    READY = "ready"  # takes work
    CORDONED = "cordoned"  # takes no new work
    DRAINING = "draining"  # takes no new work; its runs move away
    GONE = "gone"  # no longer in the cluster


class Trust(StrEnum):
    """How far a checkpoint may be trusted."""

    WRITING = "writing"  # some shards are recorded
    COMPLETE = "complete"  # every shard of its world is recorded, with size and hash
    VERIFIED = "verified"  # read back: sizes and hashes match
    GOOD = "good"  # and N clean steps followed
    BAD = "bad"  # damaged: it does not read back as it was written


class IncidentState(StrEnum):
    """The life of an incident."""

    OPEN = "open"  # nothing has been done about it yet
    MITIGATING = "mitigating"  # a remedy is under way
    RESOLVED = "resolved"  # over; it may still be judged


S = TypeVar("S", bound=StrEnum)
R, A, W, N, T, I = RunState, AttemptState, WorkerState, NodeState, Trust, IncidentState  # noqa: E741

_ALIVE = {R.QUEUED, R.STARTING, R.RUNNING, R.RECOVERING}

RUN_MOVES: Mapping[RunState, frozenset[RunState]] = {
    R.QUEUED: frozenset({R.STARTING, R.HELD, R.FAILED, R.CANCELLED}),
    R.STARTING: frozenset(
        {R.RUNNING, R.RECOVERING, R.QUEUED, R.HELD, R.SUCCEEDED, R.FAILED, R.CANCELLED}
    ),
    R.RUNNING: frozenset({R.RECOVERING, R.HELD, R.SUCCEEDED, R.FAILED, R.CANCELLED}),
    R.RECOVERING: frozenset({R.RUNNING, R.QUEUED, R.HELD, R.SUCCEEDED, R.FAILED, R.CANCELLED}),
    R.HELD: frozenset(_ALIVE | {R.SUCCEEDED, R.FAILED, R.CANCELLED}),
    R.SUCCEEDED: frozenset(),
    R.FAILED: frozenset(),
    R.CANCELLED: frozenset(),
}
ATTEMPT_MOVES: Mapping[AttemptState, frozenset[AttemptState]] = {
    A.STARTING: frozenset({A.RUNNING, A.STOPPING, A.ENDED, A.FENCED}),
    A.RUNNING: frozenset({A.STOPPING, A.ENDED, A.FENCED}),
    A.STOPPING: frozenset({A.ENDED, A.FENCED}),
    A.ENDED: frozenset(),
    A.FENCED: frozenset(),
}
WORKER_MOVES: Mapping[WorkerState, frozenset[WorkerState]] = {
    W.LAUNCHING: frozenset({W.READY, W.STOPPING, W.ENDED}),
    W.READY: frozenset({W.LOST, W.STOPPING, W.ENDED}),
    W.LOST: frozenset({W.READY, W.STOPPING, W.ENDED}),
    W.STOPPING: frozenset({W.ENDED}),
    W.ENDED: frozenset(),
}
NODE_MOVES: Mapping[NodeState, frozenset[NodeState]] = {
    N.READY: frozenset({N.CORDONED, N.DRAINING, N.GONE}),
    N.CORDONED: frozenset({N.READY, N.DRAINING, N.GONE}),
    N.DRAINING: frozenset({N.READY, N.CORDONED, N.GONE}),
    N.GONE: frozenset({N.READY, N.CORDONED}),
}
TRUST_MOVES: Mapping[Trust, frozenset[Trust]] = {
    T.WRITING: frozenset({T.COMPLETE, T.BAD}),
    T.COMPLETE: frozenset({T.VERIFIED, T.BAD}),
    T.VERIFIED: frozenset({T.GOOD, T.BAD}),
    T.GOOD: frozenset({T.BAD}),
    T.BAD: frozenset(),
}
INCIDENT_MOVES: Mapping[IncidentState, frozenset[IncidentState]] = {
    I.OPEN: frozenset({I.MITIGATING, I.RESOLVED}),
    I.MITIGATING: frozenset({I.OPEN, I.RESOLVED}),
    I.RESOLVED: frozenset(),
}

TERMINAL_RUN_STATES = frozenset(state for state, moves in RUN_MOVES.items() if not moves)
LIVE_ATTEMPT_STATES = frozenset({A.STARTING, A.RUNNING, A.STOPPING})
"""At most one attempt of a run may be in one of these."""
RUNNABLE_ATTEMPT_STATES = frozenset({A.STARTING, A.RUNNING})
"""Alive, and not being stopped."""


class IllegalMoveError(Exception):
    """A state machine was asked for a move its table does not have. Carries the story so far."""

    def __init__(self, what: str, old: StrEnum, new: StrEnum, story: str) -> None:
        self.what, self.old, self.new, self.story = what, old, new, story
        super().__init__(
            f"{what} cannot go from {old} to {new}; the story so far: {story or 'none'}"
        )


def check_move(moves: Mapping[S, frozenset[S]], old: S, new: S, what: str, story: str = "") -> None:
    """Raise :class:`IllegalMoveError` unless `old` may become `new` (staying is allowed)."""
    if new != old and new not in moves[old]:
        raise IllegalMoveError(what, old, new, story)
