"""What people ask for about checkpoints: to keep one, to read one back, to delete one."""

from __future__ import annotations

from babysit.wire import Tier
from orchestrator.core.checkpoints import lifecycle as checkpoint_lifecycle
from orchestrator.core.messages.events import (
    CheckpointPinned,
    CheckpointRemovalAsked,
    CheckpointVerificationAsked,
)
from orchestrator.core.model.entities import Checkpoint
from orchestrator.core.model.states import Trust, WorkerState
from orchestrator.core.turn import Turn
from orchestrator.errors import ConflictError, NotFoundError


def _known(turn: Turn, run: str, checkpoint: str) -> Checkpoint:
    known = turn.state.checkpoints.get(checkpoint)
    if known is None or known.deleted_at is not None or known.run != run:
        raise NotFoundError(
            f"no checkpoint {checkpoint} of the live run {run}; see `babysit checkpoints ls RUN`"
        )
    return known


def on_pinned(turn: Turn, event: CheckpointPinned) -> None:
    """Keep a checkpoint for ever, or no longer.

    Raises:
        NotFoundError: The run has no such checkpoint.
    """
    known = _known(turn, event.run, event.checkpoint)
    turn.change_checkpoint(known.id, pinned=event.pinned)


def on_verification_asked(turn: Turn, event: CheckpointVerificationAsked) -> None:
    """Have the workers that wrote a checkpoint read it back again.

    Raises:
        NotFoundError: The run has no such checkpoint.
        ConflictError: It is still being written, or no agent that wrote it is running.
    """
    known = _known(turn, event.run, event.checkpoint)
    if known.trust is Trust.WRITING:
        raise ConflictError(
            f"cannot read {known.id} back: it is still being written; try again when it is complete"
        )
    asked = checkpoint_lifecycle.verify(turn, known)
    if not asked:
        raise ConflictError(
            f"cannot read {known.id} back: no agent that wrote it is running", run=known.run
        )
    turn.change_checkpoint(known.id, checked_by=known.checked_by - asked)


def on_removal_asked(turn: Turn, event: CheckpointRemovalAsked) -> None:
    """Delete a checkpoint that a person names.

    Raises:
        NotFoundError: The run has no such checkpoint.
        ConflictError: It is pinned, may be loading, is the last one that can be trusted, or no
            agent of the run is there to delete it.
    """
    known = _known(turn, event.run, event.checkpoint)
    others = [
        c
        for c in turn.state.checkpoints_of(event.run)
        if c.id != known.id
        and c.tier is Tier.DIRECTORY
        and c.deleted_at is None
        and c.trust in {Trust.COMPLETE, Trust.VERIFIED, Trust.GOOD}
    ]
    worker = next(
        (w for w in turn.state.workers_of(event.run) if w.state is WorkerState.READY), None
    )
    if known.pinned:
        raise ConflictError(
            f"cannot delete {known.id}: it is pinned; `babysit checkpoints unpin` it first"
        )
    if known.id in checkpoint_lifecycle.in_use(turn.attempt(event.run)):
        raise ConflictError(
            f"cannot delete {known.id}: ranks may be loading it; try again after the next step"
        )
    if not others and known.trust is not Trust.BAD:
        raise ConflictError(
            f"cannot delete {known.id}: it is the last checkpoint of the run that can be trusted"
        )
    if worker is None:
        raise ConflictError(f"cannot delete {known.id}: no agent of the run is running")
    checkpoint_lifecycle.delete(turn, worker.id, known, f"asked for by {event.actor}")
