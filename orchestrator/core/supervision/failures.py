"""From a failure to the next attempt.

The first failure of an attempt stops the gang; later ones are collected. Nothing is judged before
every process is confirmed dead: the first death that is reported is seldom the root cause, and two
attempts of a run must never write at once. Then the policy judges, and the verdict is carried out:
another attempt, a hold, or the end of the run. Under a hold, everything waits at the judging.
"""

from __future__ import annotations

import dataclasses
import datetime as dt

from jobs.events import RankExited
from monitors.failures import Evidence, Failure, FailureClass
from orchestrator.core.attempts import lifecycle as attempt_lifecycle
from orchestrator.core.messages.gang_events import GangFinished, GangRestored
from orchestrator.core.model import time_ledger
from orchestrator.core.model.decisions import (
    Restart,
    Retry,
    Unjudged,
)
from orchestrator.core.model.derived import is_reporting
from orchestrator.core.model.entities import RankFailure
from orchestrator.core.model.states import (
    RUNNABLE_ATTEMPT_STATES,
    AttemptState,
    RunState,
)
from orchestrator.core.model.time_ledger import Bucket
from orchestrator.core.model.vocabulary import Timer
from orchestrator.core.policy import exits, recovery
from orchestrator.core.supervision import judgement
from orchestrator.core.turn import Turn


def on_rank_died(turn: Turn, event: RankExited) -> None:
    """A rank failed: the first of its attempt, which fails with it, or a later one.

    A rank that ended well is part of a `GangFinished`. One with another code whose agent
    says nothing more has failed, too: a crash is never called a success.
    """
    run, attempt = turn.run(event.run), turn.state.attempts[event.run]
    turn.change_run(run.id, best_step=max(run.best_step, event.last_step))
    attempt = turn.change_attempt(run.id, step=max(attempt.step, event.last_step))
    node = attempt.seats[turn.state.places_of(run.id)[event.worker]].node
    failure = exits.by_exit_code(run.spec, event.code, event.failure or _without_word(event))
    failure = exits.by_ended_peers(failure, attempt.done_ranks, attempt.step)
    failure = exits.by_engine(run.engine, event.code, failure)
    death = RankFailure(
        rank=event.rank, node=node, at=event.at, failure=failure, step=event.last_step
    )
    turn.change_attempt(run.id, failures=(*attempt.failures, death))
    if attempt.state is not AttemptState.STOPPING:
        fail_attempt(turn, run.id, failure, failed_at=event.at, rank=event.rank, node=node)


def _without_word(event: RankExited) -> Failure:
    how = f"signal {-event.code}" if event.code < 0 else f"exit code {event.code}"
    return Failure(
        failure_class=FailureClass.UNKNOWN,
        reason=f"rank {event.rank} ended with {how}, and its agent says nothing more",
        signature=f"no word: {how}",
        code=event.code if event.code > 0 else None,
    )


def on_finished(turn: Turn, event: GangFinished) -> None:
    """Ranks ended well; with the last of its ranks the run has succeeded.

    Ranks that finish while the attempt is being stopped do not end the run: it was to go on.
    """
    run, attempt = turn.run(event.run), turn.state.attempts[event.run]
    turn.change_run(run.id, best_step=max(run.best_step, event.last_step))
    done = attempt.done_ranks.union(event.ranks)
    step = max(attempt.step, event.last_step)
    turn.change_attempt(run.id, step=step, done_ranks=done)
    finish_if_done(turn, run.id, event.remark)


def finish_if_done(turn: Turn, run_id: str, remark: str = "") -> None:
    """End a run whose ranks have all ended well, unless the attempt is being stopped.

    Args:
        turn: The turn.
        run_id: The run.
        remark: What is odd about the end of the last ranks; empty: nothing is.
    """
    attempt = turn.state.attempts[run_id]
    if len(attempt.done_ranks) == attempt.world_size and attempt.state is not AttemptState.STOPPING:
        turn.change_attempt(run_id, state=AttemptState.ENDED, ended_at=turn.now)
        reason = f"every rank ended well after step {attempt.step}"
        if not is_reporting(turn.run(run_id)):
            reason = "every rank ended well; no step is known"
        reason = f"{reason} ({remark})" if remark else reason
        attempt_lifecycle.finish_run(turn, run_id, RunState.SUCCEEDED, reason)


def start_timed_out(turn: Turn, run_id: str, _subject: str) -> None:
    """Fail an attempt whose ranks were not all launched in time.

    The hang monitor cannot see them: a rank that was never started has no pulse to miss. Under a
    hold the timer is set again.
    """
    attempt = turn.attempt(run_id)
    if attempt is None or attempt.state not in RUNNABLE_ATTEMPT_STATES:
        return
    late = [seat for seat in attempt.seats if not attempt.started_ranks.issuperset(seat.ranks)]
    if late and turn.held(run_id):
        turn.set_timer(run_id, Timer.START, attempt_lifecycle.START_SECONDS)
    elif late:
        node = late[0].node
        failure = Failure(
            failure_class=FailureClass.RENDEZVOUS,
            source=Evidence.BABYSIT,
            signature="start",
            reason=f"the ranks on {node} were not started"
            f" within {attempt_lifecycle.START_SECONDS:.0f} s",
        )
        fail_attempt(turn, run_id, failure, failed_at=turn.now, rank=None, node=node)


def nothing_loaded(turn: Turn, event: GangRestored, rejections: tuple[str, ...]) -> None:
    """Ranks could load no offered checkpoint: they must not begin again unasked (row 16)."""
    attempt = turn.state.attempts[event.run]
    why = f": {rejections[0]}" if rejections else ""
    failure = Failure(
        failure_class=FailureClass.STORAGE,
        source=Evidence.BABYSIT,
        reason=f"none of {len(attempt.candidates)} checkpoints could be loaded{why}",
        signature=recovery.NOTHING_LOADED,
        evidence=rejections,
    )
    rank = event.ranks[0]
    fail_attempt(turn, event.run, failure, failed_at=event.at, rank=rank, node=None)


def fail_attempt(
    turn: Turn,
    run_id: str,
    failure: Failure,
    *,
    failed_at: dt.datetime,
    rank: int | None,
    node: str | None,
) -> None:
    """Stop the attempt because of a failure; what follows is judged when it is dead.

    Only the first failure of an attempt makes a decision: one that is there already (an anomaly, a
    preemption, a request) stays.

    Args:
        turn: The turn.
        run_id: The run.
        failure: What happened.
        failed_at: Last sign of progress; never later than now.
        rank: The rank it happened to; None: unknown, or no rank.
        node: The node that may be to blame; None: none is.
    """
    run = turn.run(run_id)
    failed_at = min(failed_at, turn.now)
    if run.decision is None:
        restart = Restart(
            attempt=run.attempt + 1,
            cause=failure.cause,
            failure_class=failure.failure_class,
            reason=failure.reason,
            node=node,
            rank=rank,
            failed_at=failed_at,
            detected_at=turn.now,
            best_step=run.best_step,
        )
        turn.change_run(run_id, decision=Retry(restart=restart, stage=Unjudged(failure=failure)))
    book_downtime(turn, run_id, failed_at, failure.reason)
    attempt_lifecycle.stop_attempt(turn, run_id, failure.reason)


def book_downtime(turn: Turn, run_id: str, failed_at: dt.datetime, reason: str) -> None:
    """Book the time from `failed_at` until now as stalled, and from now on as starting."""
    run = turn.run(run_id)
    book = time_ledger.switch(run.ledger, Bucket.STALLED, failed_at)
    book = time_ledger.switch(book, Bucket.STARTING, turn.now)
    turn.change_run(run_id, state=RunState.RECOVERING, reason=reason, ledger=book)


def attempt_dead(turn: Turn, run_id: str, state: AttemptState = AttemptState.ENDED) -> None:
    """End an attempt of which no process is left, and go on to :func:`.judgement.decide`.

    There are three ways to get here: the last agent confirmed its stop, the cluster confirmed that
    the last worker is gone, and the fence timer (`state` is then `fenced`: nothing is confirmed, so
    nothing the attempt still writes counts).
    """
    turn.change_attempt(run_id, state=state, ended_at=turn.now)
    turn.cancel_timer(run_id, Timer.STOP, Timer.FENCE, Timer.STACKS)
    run = turn.run(run_id)
    if run.decision is not None:
        restart = dataclasses.replace(run.decision.restart, stopped_at=turn.now)
        turn.change_run(run_id, decision=dataclasses.replace(run.decision, restart=restart))
    judgement.decide(turn, run_id)
