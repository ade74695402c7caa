"""Requests about checkpoints: pin, verify, delete; also after the run has ended."""

from __future__ import annotations

from babysit.wire import Tier
from orchestrator.core.checkpoints import deletion, rollback
from orchestrator.core.checkpoints import lifecycle as checkpoint_lifecycle
from orchestrator.core.messages.events import (
    CheckpointPinned,
    CheckpointRemovalAsked,
    CheckpointVerificationAsked,
)
from orchestrator.core.model.entities import Checkpoint
from orchestrator.core.model.states import TERMINAL_RUN_STATES, Trust, WorkerState
from orchestrator.core.turn import Turn
from orchestrator.errors import ConflictError, NotFoundError


def _known(turn: Turn, run: str, checkpoint: str) -> Checkpoint:
    known = turn.state.checkpoints.get(checkpoint)
    if known is None or known.deleted_at is not None or known.run != run:
        raise NotFoundError(
            f"no checkpoint {checkpoint} of the run {run}; see `babysit checkpoints ls {run}`"
        )
    return known


def on_pinned(turn: Turn, event: CheckpointPinned) -> None:
    """Exempt a checkpoint from retention, or end that.

    Raises:
        NotFoundError: The run has no such checkpoint.
    """
    known = _known(turn, event.run, event.checkpoint)
    turn.change_checkpoint(known.id, pinned=event.pinned)


def on_verification_asked(turn: Turn, event: CheckpointVerificationAsked) -> None:
    """Have the workers that wrote a checkpoint read it back again.

    After the end of the run there are no workers: the server has read it, and this stores the
    result.

    Raises:
        NotFoundError: The run has no such checkpoint.
        ConflictError: Another engine keeps it, it is still being written, or no agent that wrote
            it is running.
    """
    known = _known(turn, event.run, event.checkpoint)
    _refuse_engines(known, "read back")
    if event.fault is not None and turn.run(event.run).state in TERMINAL_RUN_STATES:
        _read_by_server(turn, known, event.fault)
        return
    if known.trust is Trust.WRITING:
        raise ConflictError(
            f"cannot read {known.id} back: it is still being written; try again later",
            run=known.run,
        )
    asked = checkpoint_lifecycle.verify(turn, known)
    if not asked:
        raise ConflictError(
            f"cannot read {known.id} back: no agent that wrote it is running", run=known.run
        )
    turn.change_checkpoint(known.id, checked_by=known.checked_by - asked, medium="")


def _read_by_server(turn: Turn, known: Checkpoint, fault: str) -> None:
    """Take the result for all shards. A fault opens no incident: nobody waits for an ended run."""
    if fault:
        rollback.mark_bad(turn, known.id, fault)
        return
    whole = known.trust is Trust.COMPLETE
    turn.change_checkpoint(
        known.id,
        checked_by=known.checked_by.union(known.homes.values()),
        trust=Trust.VERIFIED if whole else known.trust,
    )


def _is_deleting(turn: Turn, event: CheckpointRemovalAsked) -> bool:
    """True if the checkpoint was deleted before, and its bytes are still there: they go now.

    Where no agent is left, the server removes them.
    """
    known = turn.state.checkpoints.get(event.checkpoint)
    if known is None or known.run != event.run or known.deleted_at is None:
        return False
    if known.removed_at is not None:
        return False
    workers = turn.state.workers_of(event.run)
    worker = next((w.id for w in workers if w.state is WorkerState.READY), None)
    if worker is not None:
        deletion.retry(turn, event.run, worker)
    elif turn.run(event.run).state in TERMINAL_RUN_STATES:
        turn.change_checkpoint(known.id, removed_at=turn.now, remover="")
    return True


def on_removal_asked(turn: Turn, event: CheckpointRemovalAsked) -> None:
    """Delete a checkpoint that a person names.

    After the end of the run the last trusted one may go too. When no agent is left, this only
    marks the checkpoint as deleted, and the server removes the files.

    Raises:
        NotFoundError: The run has no such checkpoint.
        ConflictError: Another engine keeps it, it is pinned, may be loading, or is the last one of
            a live run that can be trusted; or no agent of a live run is there to delete it.
    """
    if _is_deleting(turn, event):
        return
    known = _known(turn, event.run, event.checkpoint)
    _refuse_engines(known, "delete")
    over = turn.run(event.run).state in TERMINAL_RUN_STATES
    why = f"deletion requested by {event.actor}"
    others = [
        c
        for c in turn.state.checkpoints_of(event.run)
        if c.id != known.id
        and c.tier is Tier.DIRECTORY
        and c.deleted_at is None
        and not c.superseded
        and c.trust in {Trust.COMPLETE, Trust.VERIFIED, Trust.GOOD}
    ]
    worker = next(
        (w for w in turn.state.workers_of(event.run) if w.state is WorkerState.READY), None
    )
    if known.pinned:
        raise ConflictError(
            f"cannot delete {known.id}: it is pinned; `babysit checkpoints unpin` it first",
            run=known.run,
        )
    if over and worker is None:
        turn.change_checkpoint(known.id, deleted_at=turn.now, removed_at=turn.now, reason=why)
        return
    if known.id in checkpoint_lifecycle.in_use(turn.attempt(event.run)):
        raise ConflictError(
            f"cannot delete {known.id}: ranks may be loading it; try again after the next step",
            run=known.run,
        )
    if not (over or others) and known.trust is not Trust.BAD:
        raise ConflictError(
            f"cannot delete {known.id}: it is the last checkpoint of the run that can be trusted",
            run=known.run,
        )
    if worker is None:
        raise ConflictError(
            f"cannot delete {known.id}: no agent of the run is running", run=known.run
        )
    deletion.delete(turn, worker.id, known, why)


def _refuse_engines(known: Checkpoint, what: str) -> None:
    if known.keeper:
        raise ConflictError(
            f"cannot {what} {known.id}: {known.keeper} keeps it; use {known.keeper} itself",
            run=known.run,
        )
