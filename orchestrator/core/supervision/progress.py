"""Progress of a live attempt: steps reached, saves booked, recoveries that are over.

The core does not hear of every step: `StepReached` comes at the milestone that it chose, and before
any event that may end the attempt.
"""

from __future__ import annotations

import dataclasses
import datetime as dt

from jobs.events import ChangeAnnounced
from monitors.failures import FailureClass
from orchestrator.core.checkpoints import lifecycle as checkpoint_lifecycle
from orchestrator.core.checkpoints import rollback, trouble
from orchestrator.core.messages.events import StepReached
from orchestrator.core.model import time_ledger
from orchestrator.core.model.entities import Attempt, Incident, Run
from orchestrator.core.model.states import (
    RUNNABLE_ATTEMPT_STATES,
    AttemptState,
    RunState,
)
from orchestrator.core.model.time_ledger import Bucket
from orchestrator.core.model.vocabulary import SaveTrouble
from orchestrator.core.supervision import corruption, engines, hangs
from orchestrator.core.turn import Turn


def on_step(turn: Turn, event: StepReached) -> None:
    """Rank 0 ended a step at or past the milestone: the attempt runs, and a recovery may be over.

    A step that was reached in an earlier attempt is only computed again. It is not progress: the
    recovery is over at the first step that no attempt had reached.
    """
    attempt = turn.state.attempts[event.run]
    if attempt.state not in RUNNABLE_ATTEMPT_STATES:
        return
    run = turn.run(event.run)
    is_first = attempt.first_step_at is None or _counted_as_silent(turn, attempt)
    begins = attempt.step <= attempt.start_step
    if is_first and (not attempt.restored_ranks or not run.instrumented):
        attempt = _resumed_by_itself(turn, attempt, event)
    run = turn.run(event.run)
    _book_saves(turn, run, attempt, event)
    attempt = turn.change_attempt(
        run.id,
        state=AttemptState.RUNNING,
        step=max(attempt.step, event.step),
        first_step_at=attempt.first_step_at or min(event.at, turn.now),
    )
    pace = run.pace if event.pace is None else run.pace.joined(event.pace)
    learned = run.learned if event.learned is None else event.learned
    best_step = max(run.best_step, event.step)
    turn.change_run(run.id, best_step=best_step, pace=pace, learned=learned)
    rollback.settle_past(turn, run.id)
    if attempt.restart is None or event.step > attempt.restart.best_step:
        _at_new_steps(turn, run.id, min(event.at, turn.now), begins=begins)
    else:
        _at_old_steps(turn, run.id, attempt.restart.best_step, min(event.at, turn.now))
    hangs.on_step(turn, run.id, event.step)
    corruption.on_step(turn, run.id, event.step)
    engines.on_step(turn, run.id, event.step)
    checkpoint_lifecycle.promote(turn, run.id)
    trouble.check_overdue(turn, run.id)
    checkpoint_lifecycle.set_milestone(turn, run.id)


def on_change_announced(turn: Turn, event: ChangeAnnounced) -> None:
    """The script announced a change of its loss: recorded, for the monitors know it already."""
    turn.record(
        event.run,
        f"rank {event.rank} announced {event.change} until step {event.until_step}: rises of the"
        " loss are expected",
    )


def _at_old_steps(turn: Turn, run_id: str, best_step: int, at: dt.datetime) -> None:
    """Steps that were reached before are computed again."""
    run, attempt = turn.run(run_id), turn.state.attempts[run_id]
    if run.ledger.bucket in {Bucket.STARTING, Bucket.RESTORING}:  # its script never restores
        run = turn.change_run(run_id, ledger=time_ledger.switch(run.ledger, Bucket.LOST, at))
    if run.state is not RunState.RUNNING:
        reason = f"computing steps {attempt.start_step + 1} to {best_step} again"
        turn.change_run(run_id, state=RunState.RUNNING, reason=reason)


def _resumed_by_itself(turn: Turn, attempt: Attempt, event: StepReached) -> Attempt:
    """The first step of a script that never called `restore`, as far as is known: where it began.

    One that was given a checkpoint of its own may have begun elsewhere all the same.

    The first step that the run ever reported tells how far apart its reports are, so the attempt
    began that far before its own first one. Where no such step is known of a run that has made
    some, its script restores, and its agents have yet to say so: the first of them corrects it.
    """
    run = turn.run(attempt.run)
    began = event.first_step or event.step
    first = run.first_step or (1 if run.best_step else began)
    if not run.best_step:
        run = turn.change_run(run.id, first_step=first)
    start = max(0, began - first)
    if attempt.restored_ranks and began > attempt.start_step:
        start = attempt.start_step  # as it was given
    restart = attempt.restart
    if restart is not None and (restart.resumed_step is None or attempt.restored_ranks):
        restart = dataclasses.replace(restart, restored_at=turn.now, resumed_step=start)
    return turn.change_attempt(run.id, start_step=start, restart=restart)


def _counted_as_silent(turn: Turn, attempt: Attempt) -> bool:
    """True if the attempt ran for a while before its output showed a first step."""
    return not turn.run(attempt.run).instrumented and attempt.step == 0


def on_silent(turn: Turn, run_id: str) -> None:
    """A script that has not called `babysit.init()` yet counts as running; its exits are watched.

    Reached by the timer `silent`, `SILENT_SECONDS` after the last start of ranks. A script that
    imports for longer may call it later, so its reason does not say that it never does.
    """
    attempt = turn.attempt(run_id)
    if attempt is None or attempt.state is not AttemptState.STARTING or attempt.ready_ranks:
        return
    turn.change_attempt(run_id, state=AttemptState.RUNNING, first_step_at=turn.now)
    _at_new_steps(turn, run_id, turn.now)
    book = time_ledger.switch(turn.run(run_id).ledger, Bucket.UNKNOWN, turn.now)
    turn.change_run(run_id, ledger=book)
    why = "its ranks run; no step is known: the script has not called babysit.init() yet, and its"
    why += " output shows none"
    if turn.run(run_id).state is not RunState.HELD:  # a hold keeps its own reason
        turn.change_run(run_id, reason=why)


def _at_new_steps(turn: Turn, run_id: str, at: dt.datetime, *, begins: bool = False) -> None:
    """Past everything reached before: the recovery, if there was one, is over.

    `begins`: the attempt's first step has ended. One that counted as silent runs already, with a
    reason that is no longer true.
    """
    run, attempt = turn.run(run_id), turn.state.attempts[run_id]
    restart = attempt.restart
    recovered = restart is not None and restart.recovered_at is None
    if restart is not None and recovered:
        turn.change_attempt(run_id, restart=dataclasses.replace(restart, recovered_at=at))
        _resolve(turn, turn.state.incidents.get(restart.incident or ""), restart.best_step)
        fallen_back = FailureClass.CHECKPOINT_CORRUPT  # found as this attempt loaded
        for other in turn.state.incidents_of(run_id):
            if other.kind == SaveTrouble.CHECKPOINTS_OVERDUE:
                continue  # only a checkpoint ends it
            if other.attempt < attempt.number or other.kind == fallen_back:
                _resolve(turn, other, restart.best_step)
    if run.ledger.bucket is not Bucket.PRODUCTIVE:
        turn.change_run(run_id, ledger=time_ledger.switch(run.ledger, Bucket.PRODUCTIVE, at))
    if recovered or begins or turn.run(run_id).state is not RunState.RUNNING:
        since = (
            "from the beginning" if attempt.start_step == 0 else f"from step {attempt.start_step}"
        )
        turn.change_run(
            run_id, state=RunState.RUNNING, reason=f"training, attempt {attempt.number} {since}"
        )


def _resolve(turn: Turn, incident: Incident | None, best_step: int) -> None:
    """An incident is over as training has passed its steps, unless their replay is judged first."""
    if incident is not None and not corruption.awaits_replay(incident):
        turn.resolve_incident(incident.id, f"training passed step {best_step} again")


def _book_saves(turn: Turn, run: Run, attempt: Attempt, event: StepReached) -> None:
    more = event.blocked_seconds - attempt.blocked_seconds
    if more > 0:
        ended = min(event.at, turn.now)  # what came after that step may have been a stall
        closed = time_ledger.switch(run.ledger, run.ledger.bucket, ended)
        booked = time_ledger.move(closed, run.ledger.bucket, Bucket.CHECKPOINTING, more)
        turn.change_run(run.id, ledger=booked)
        turn.change_attempt(run.id, blocked_seconds=event.blocked_seconds)
