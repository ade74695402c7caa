"""Which checkpoints a run leaves behind when it goes back: they belong to an undone past.

Their bytes are as sound as before, so nothing here touches trust: they are *superseded*, which
`babysit rollback --to STEP --force` takes back. Only damage makes a checkpoint bad.
"""

from __future__ import annotations

from collections.abc import Iterable

from babysit.wire import Tier
from orchestrator.core.model import time_ledger
from orchestrator.core.model.decisions import Decision, Rollback, RollbackTo
from orchestrator.core.model.derived import knows_its_past
from orchestrator.core.model.entities import Checkpoint
from orchestrator.core.model.states import Trust
from orchestrator.core.policy import checkpoint_choice, doubt
from orchestrator.core.turn import Turn

LARGE_LOSS_SECONDS = 3600.0
"""Productive seconds that are not begun again unasked: the run is held, and people are paged."""


def mark_bad(turn: Turn, checkpoint: str | None, reason: str) -> None:
    """Mark a damaged checkpoint bad, which is final; no effect if it is unknown (or None)."""
    known = turn.state.checkpoints.get(checkpoint or "")
    if known is not None and known.trust is not Trust.BAD:
        turn.change_checkpoint(known.id, trust=Trust.BAD, reason=reason)


def cast_doubt(turn: Turn, checkpoint: str | None, reason: str) -> None:
    """Pass over a checkpoint until it is acquitted; no effect if it is unknown (or None)."""
    known = turn.state.checkpoints.get(checkpoint or "")
    if known is not None and not known.doubted:
        turn.change_checkpoint(known.id, doubted=True, reason=f"doubted: {reason}")
        turn.record(known.run, f"step {known.step} ({known.tier}) is doubted: {reason}")


def acquit(turn: Turn, checkpoints: Iterable[str], reason: str) -> None:
    """Lift the doubt about checkpoints: they are offered again, and not doubted for deaths."""
    for known in [turn.state.checkpoints[each] for each in checkpoints]:
        turn.change_checkpoint(
            known.id, doubted=False, acquitted=True, deaths=0, reason=f"acquitted: {reason}"
        )
        turn.record(known.run, f"step {known.step} ({known.tier}) is acquitted: {reason}")


def overrule(turn: Turn, run_id: str, step: int, actor: str) -> None:
    """A person takes the checkpoints of a step whatever the marks on them say."""
    for known in turn.state.checkpoints_of(run_id):
        if known.step == step and (known.doubted or known.superseded):
            turn.change_checkpoint(
                known.id,
                doubted=False,
                superseded=False,
                acquitted=True,
                deaths=0,
                reason=f"taken by {actor}, whatever was held against it",
            )


def rewind(turn: Turn, run_id: str, decision: Decision) -> None:
    """Leave behind what was saved after the step that a run goes back to.

    After an anomaly that is the newest good checkpoint from before the onset: those between were
    not good enough now, and are not at the next crash either. A restart without a rollback leaves
    nothing behind.
    """
    if isinstance(decision, Rollback):
        good = _good_before(turn, run_id, decision.onset_step)
        step = good[0].step if good else 0
        why = f"left behind by a rollback to step {step}: anomaly since step {decision.onset_step}"
        _leave_later(turn, run_id, step, why)
    elif isinstance(decision, RollbackTo):
        why = f"left behind by a rollback to step {decision.step}"
        _leave_later(turn, run_id, decision.step, why)


def _good_before(turn: Turn, run_id: str, onset_step: int) -> list[Checkpoint]:
    return checkpoint_choice.trusted(
        turn.state.checkpoints_of(run_id),
        before_step=onset_step,
        to_step=None,
        homes={},
        world_size=0,
    )


def would_load(turn: Turn, run_id: str, before_step: int | None) -> int | None:
    """The step that a remedy would load, if it started now on the same nodes.

    Args:
        turn: The turn.
        run_id: The run; it has an attempt.
        before_step: Onset of an anomaly; None: the remedy is a restart.

    Returns:
        None if no checkpoint can be loaded.
    """
    attempt = turn.state.attempts[run_id]
    found = checkpoint_choice.trusted(
        turn.state.checkpoints_of(run_id),
        before_step=before_step,
        to_step=None,
        homes={rank: seat.worker for seat in attempt.seats for rank in seat.ranks},
        world_size=attempt.world_size,
    )
    return found[0].step if found else None


def helps(turn: Turn, run_id: str, onset_step: int) -> bool:
    """True if a good checkpoint from before the onset can be loaded."""
    return bool(_good_before(turn, run_id, onset_step))


def needs_a_person(turn: Turn, run_id: str, decision: Decision) -> bool:
    """True if a rollback finds nothing good before its onset, and the run has something to lose.

    That is a checkpoint that was saved, or `LARGE_LOSS_SECONDS` of productive time. A run that
    never saved anything begins again by itself within that time.
    """
    if not isinstance(decision, Rollback) or helps(turn, run_id, decision.onset_step):
        return False
    saved = any(
        c.tier is Tier.DIRECTORY and c.trust is not Trust.WRITING and c.deleted_at is None
        for c in turn.state.checkpoints_of(run_id)
    )
    spent = time_ledger.totals(turn.run(run_id).ledger, turn.now)[time_ledger.Bucket.PRODUCTIVE]
    return saved or spent >= LARGE_LOSS_SECONDS


def settle_past(turn: Turn, run_id: str) -> None:
    """Every rank has loaded, and a step has ended: what the attempt loaded is the run's past.

    What older attempts saved after it is superseded. Loading it at the next crash would jump over
    steps that this attempt does differently, and clean steps of this attempt say nothing about it.
    Before the first step the attempt has shown nothing: if it dies, a newer checkpoint that was
    passed over may still be the better one.
    """
    attempt = turn.state.attempts[run_id]
    if not knows_its_past(turn.run(run_id), attempt) or not doubt.stepped(attempt):
        return
    why = f"left behind: attempt {attempt.number} went on from step {attempt.start_step}"
    _leave_later(turn, run_id, attempt.start_step, why, before_attempt=attempt.number)
    loaded = turn.state.checkpoints.get(attempt.restored or "")
    if loaded is not None and loaded.deaths:
        turn.change_checkpoint(loaded.id, deaths=0)


def _leave_later(
    turn: Turn, run_id: str, step: int, why: str, before_attempt: int | None = None
) -> None:
    for known in turn.state.checkpoints_of(run_id):
        ours = before_attempt is not None and known.attempt >= before_attempt
        if known.step > step and not ours and not known.superseded and known.deleted_at is None:
            turn.change_checkpoint(known.id, superseded=True, reason=why)
