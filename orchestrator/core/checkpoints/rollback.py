"""Which checkpoints a run leaves behind when it goes back: they belong to an undone past."""

from __future__ import annotations

from orchestrator.core.model import time_ledger
from orchestrator.core.model.decisions import Decision, Rollback, RollbackTo
from orchestrator.core.model.entities import Checkpoint
from orchestrator.core.model.states import Trust
from orchestrator.core.policy import recovery
from orchestrator.core.turn import Turn


def mark_bad(turn: Turn, checkpoint: str | None, reason: str) -> None:
    """Mark a checkpoint bad, which is final. No effect if it is unknown (or None)."""
    known = turn.state.checkpoints.get(checkpoint or "")
    if known is not None and known.trust is not Trust.BAD:
        turn.change_checkpoint(known.id, trust=Trust.BAD, reason=reason)


def rewind(turn: Turn, run_id: str, decision: Decision) -> None:
    """Leave behind what was saved after the step that a run goes back to.

    After an anomaly that is the newest good checkpoint from before the onset: those between were
    not good enough now, and are not at the next crash either. A restart without a rollback leaves
    nothing behind.
    """
    run, checkpoints = turn.run(run_id), turn.state.checkpoints_of(run_id)
    if isinstance(decision, Rollback):
        good = recovery.trusted(
            checkpoints,
            run=run,
            before_step=decision.onset_step,
            to_step=None,
            homes={},
            world_size=0,
        )
        step = good[0].step if good else 0
        why = f"left behind by a rollback to step {step}: anomaly since step {decision.onset_step}"
        for checkpoint in checkpoints:
            if checkpoint.step > step:
                mark_bad(turn, checkpoint.id, why)
    elif isinstance(decision, RollbackTo):
        why = f"left behind by a rollback to step {decision.step}"
        _leave_later(turn, run_id, decision.step, why)


def would_lose(turn: Turn, run_id: str, decision: Decision) -> float:
    """Seconds of productive work that a rollback would lose for good; 0.0 unless it goes to step 0.

    The estimate is the run's whole productive time, since nothing is left to go on from.
    """
    run = turn.run(run_id)
    if not isinstance(decision, Rollback) or not turn.state.checkpoints_of(run_id):
        return 0.0
    good = recovery.trusted(
        turn.state.checkpoints_of(run_id),
        run=run,
        before_step=decision.onset_step,
        to_step=None,
        homes={},
        world_size=0,
    )
    return 0.0 if good else time_ledger.totals(run.ledger, turn.now)[time_ledger.Bucket.PRODUCTIVE]


def supersede_later_checkpoints(turn: Turn, run_id: str) -> None:
    """The attempt has loaded its step: what older attempts saved after it is no longer its past.

    Loading it at the next crash would jump over steps that this attempt does differently, and
    clean steps of this attempt say nothing about it.
    """
    attempt = turn.state.attempts[run_id]
    why = f"left behind: attempt {attempt.number} went on from step {attempt.start_step}"
    _leave_later(turn, run_id, attempt.start_step, why, before_attempt=attempt.number)


def _leave_later(
    turn: Turn, run_id: str, step: int, why: str, before_attempt: int | None = None
) -> None:
    for checkpoint in turn.state.checkpoints_of(run_id):
        if checkpoint.step > step and (
            before_attempt is None or checkpoint.attempt < before_attempt
        ):
            _set_aside(turn, checkpoint, why)


def _set_aside(turn: Turn, checkpoint: Checkpoint, why: str) -> None:
    """Nothing is known to be wrong with it: a pinned one can still be asked for."""
    run = turn.run(checkpoint.run)
    if not checkpoint.pinned:
        mark_bad(turn, checkpoint.id, why)
    elif checkpoint.id not in run.excluded:
        turn.change_run(run.id, excluded=(*run.excluded, checkpoint.id))


def take_up_again(turn: Turn, run_id: str, step: int) -> None:
    """A person asks for a step that an earlier rollback had left behind."""
    run, known = turn.run(run_id), turn.state.checkpoints
    excluded = tuple(id_ for id_ in run.excluded if id_ not in known or known[id_].step != step)
    if excluded != run.excluded:
        turn.change_run(run_id, excluded=excluded)
