"""Deletions: decided, carried out by a worker, confirmed, and tried again until they are.

A deleted checkpoint is never chosen again. It is *deleting* until a worker confirms that its bytes
are gone: the worker may die first, the directory may be busy, the disk may fail. Then the next turn
that prunes sends the command again, to whichever worker is ready.

Not guaranteed: a deletion that is under way when the run ends is confirmed only if its worker still
does so; `babysit checkpoints ls` shows the rest as `deleting`.
"""

from __future__ import annotations

from jobs.commands import DeleteCheckpoint
from jobs.events import CheckpointDeleted
from orchestrator.core.model.entities import Checkpoint
from orchestrator.core.model.states import WorkerState
from orchestrator.core.turn import Turn


def delete(turn: Turn, worker: str, checkpoint: Checkpoint, why: str) -> None:
    """Never choose a checkpoint again, and have a worker delete its bytes when it gets to it."""
    turn.change_checkpoint(
        checkpoint.id,
        deleted_at=turn.now,
        remover=worker,
        reason=f"{why}; {checkpoint.reason}".rstrip("; "),
    )
    _send(turn, worker, checkpoint, why)


def _send(turn: Turn, worker: str, checkpoint: Checkpoint, why: str) -> None:
    turn.send_command(
        worker,
        DeleteCheckpoint,
        f"{why}: the checkpoint of step {checkpoint.step}",
        attempt=checkpoint.attempt,
        checkpoint=checkpoint.id,
        path=checkpoint.path,
    )


def retry(turn: Turn, run_id: str, worker: str) -> None:
    """Send deletions again that failed, or whose worker is not ready any more."""
    for checkpoint in turn.state.checkpoints_of(run_id):
        if checkpoint.deleted_at is None or checkpoint.removed_at is not None:
            continue
        remover = turn.state.workers.get(checkpoint.remover)
        if remover is None or remover.state is not WorkerState.READY:
            turn.change_checkpoint(checkpoint.id, remover=worker)
            _send(turn, worker, checkpoint, "deletion not confirmed, tried again")


def has_failed(event: CheckpointDeleted) -> bool:
    """True if the bytes are still there and should go; a refusal is final."""
    return bool(event.error) and not event.refused


def on_deleted(turn: Turn, event: CheckpointDeleted) -> None:
    """The bytes are gone; or they are not, and the deletion is tried again later.

    A refusal is final: another attempt or run has saved at that path since.
    """
    known = turn.state.checkpoints.get(event.checkpoint)
    if event.by_script and known is not None and known.deleted_at is None:
        why = "deleted by the script"
        turn.change_checkpoint(known.id, deleted_at=turn.now, removed_at=turn.now, reason=why)
        return
    if known is None or known.deleted_at is None or known.removed_at is not None:
        turn.record(event.run, f"{event.checkpoint} is deleted")
        return
    if has_failed(event):
        turn.record(event.run, f"{event.checkpoint} is not deleted yet: {event.error}")
        turn.change_checkpoint(known.id, remover="", reason=f"not deleted yet: {event.error}")
        return
    how = f"was left alone: {event.error}" if event.refused else "is deleted"
    turn.record(event.run, f"{event.checkpoint} {how}")
    turn.change_checkpoint(known.id, removed_at=turn.now, remover="")
