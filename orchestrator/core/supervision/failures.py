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
from monitors.exits import root_cause
from monitors.failures import Evidence, Failure, FailureClass
from monitors.types import Severity
from orchestrator.core.attempts import lifecycle as attempt_lifecycle
from orchestrator.core.checkpoints import rollback
from orchestrator.core.messages.gang_events import GangFinished, GangRestored
from orchestrator.core.model import time_ledger
from orchestrator.core.model.decisions import (
    CarriedOut,
    Finish,
    Onward,
    Restart,
    Retry,
    Rollback,
    RollbackTo,
    Settled,
    Unjudged,
    Vacate,
)
from orchestrator.core.model.entities import RankFailure, Run
from orchestrator.core.model.states import (
    RUNNABLE_ATTEMPT_STATES,
    AttemptState,
    IncidentState,
    NodeState,
    RunState,
)
from orchestrator.core.model.time_ledger import Bucket
from orchestrator.core.model.vocabulary import Remedy, Response, Timer
from orchestrator.core.placement import workers as worker_placement
from orchestrator.core.policy import exits, recovery
from orchestrator.core.supervision import node_faults
from orchestrator.core.turn import Turn


def on_rank_died(turn: Turn, event: RankExited) -> None:
    """A rank failed: the first of its attempt, which fails with it, or a later one.

    `event.failure` is set: a rank that exited with code 0 is part of a `GangFinished`.
    """
    assert event.failure is not None  # noqa: S101 (the door turned the others into GangFinished)
    run, attempt = turn.run(event.run), turn.state.attempts[event.run]
    turn.change_run(run.id, best_step=max(run.best_step, event.last_step))
    attempt = turn.change_attempt(run.id, step=max(attempt.step, event.last_step))
    node = attempt.seats[turn.state.places_of(run.id)[event.worker]].node
    failure = exits.by_exit_code(run.spec, event.code, event.failure)
    failure = exits.by_ended_peers(failure, attempt.done_ranks, attempt.step)
    death = RankFailure(rank=event.rank, node=node, at=event.at, failure=failure)
    turn.change_attempt(run.id, failures=(*attempt.failures, death))
    if attempt.state is not AttemptState.STOPPING:
        fail_attempt(turn, run.id, failure, failed_at=event.at, rank=event.rank, node=node)


def on_finished(turn: Turn, event: GangFinished) -> None:
    """Ranks exited with code 0; with the last of its ranks the run has succeeded.

    Ranks that finish while the attempt is being stopped do not end the run: it was to go on.
    """
    run, attempt = turn.run(event.run), turn.state.attempts[event.run]
    turn.change_run(run.id, best_step=max(run.best_step, event.last_step))
    done = attempt.done_ranks.union(event.ranks)
    step = max(attempt.step, event.last_step)
    attempt = turn.change_attempt(run.id, step=step, done_ranks=done)
    if len(done) == attempt.world_size and attempt.state is not AttemptState.STOPPING:
        turn.change_attempt(run.id, state=AttemptState.ENDED, ended_at=turn.now)
        reason = f"every rank ended well after step {attempt.step}"
        attempt_lifecycle.finish_run(turn, run.id, RunState.SUCCEEDED, reason)


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
            signature=f"start {node}",
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
    """End an attempt of which no process is left, and go on to :func:`decide`.

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
    decide(turn, run_id)


def decide(turn: Turn, run_id: str) -> None:
    """Carry out what was decided about a run without a live attempt; judge its failure first.

    There are three ways to get here: the attempt is dead (:func:`attempt_dead`), a hold was
    released, and a person asked for a restart or a rollback while nothing ran. Does nothing if
    nothing was decided, if it is carried out already, or under a hold.
    """
    run = turn.run(run_id)
    decision = run.decision
    if isinstance(decision, Finish):
        attempt_lifecycle.finish_run(turn, run_id, decision.state, decision.restart.reason)
        return
    if decision is None or isinstance(decision.stage, CarriedOut):
        return
    if turn.held(run_id):
        turn.record(run_id, f"held: {decision.restart.reason}; no action until released")
        turn.change_run(run_id, ledger=time_ledger.switch(run.ledger, Bucket.QUEUED, turn.now))
        return
    if isinstance(decision, Retry | Rollback) and isinstance(decision.stage, Unjudged):
        _judge(turn, run, decision, decision.stage.failure)
    else:
        _go_on(turn, run_id, decision, delay=0.0)


def _judge(turn: Turn, run: Run, decision: Retry | Rollback, failure: Failure) -> None:
    attempt = turn.state.attempts[run.id]
    restart = decision.restart
    died = failure in [death.failure for death in attempt.failures]
    if isinstance(decision, Retry) and died:
        rank, _, failure = root_cause(
            [(f.rank, f.at.timestamp(), f.failure) for f in attempt.failures]
        )
        node_name = next(f.node for f in attempt.failures if f.rank == rank)
        restart = dataclasses.replace(restart, rank=rank, node=node_name)
    case = recovery.Case(
        failure=failure,
        node=restart.node,
        onset_step=decision.onset_step if isinstance(decision, Rollback) else None,
        onset_batch=decision.onset_batch if isinstance(decision, Rollback) else 0,
    )
    node = turn.state.nodes.get(restart.node or "")
    if failure.failure_class is not FailureClass.WORKER_LOST:  # noted when the worker went
        node = node_faults.note_fault(turn, restart.node, run.id, failure)
    verdict = recovery.judge(run, attempt, case, node, turn.now)
    incident = _incident(turn, run, restart, failure, verdict)
    restart = dataclasses.replace(
        restart,
        cause=verdict.cause,
        failure_class=verdict.failure_class,
        reason=verdict.reason,
        remedy=verdict.remedy,
        incident=incident,
    )
    _remember(turn, run.id, verdict)
    if verdict.remedy is Remedy.STOP:
        turn.notify(run.id, Severity.CRITICAL, f"{run.name} stops: {verdict.reason}", incident)
        attempt_lifecycle.finish_run(turn, run.id, RunState.FAILED, verdict.reason)
        return
    if verdict.remedy is Remedy.HOLD:
        # Judged already: a release must not charge the budget a second time.
        waiting = dataclasses.replace(decision, restart=restart, stage=Settled())
        turn.change_run(run.id, decision=waiting)
        attempt_lifecycle.hold(turn, run.id, verdict.reason, incident)
        return
    decision = dataclasses.replace(decision, restart=restart)
    if isinstance(decision, Rollback):
        decision = dataclasses.replace(decision, skip=verdict.skip)
    turn.record(run.id, f"{verdict.remedy}: {verdict.reason}")
    _go_on(turn, run.id, decision, verdict.delay)


def _incident(
    turn: Turn, run: Run, restart: Restart, failure: Failure, verdict: recovery.Verdict
) -> str:
    """The id of the failure's incident: the one that a monitor opened, or a new one."""
    known = turn.state.incidents.get(restart.incident or "")
    if known is not None and known.state is not IncidentState.RESOLVED:
        turn.change_incident(
            known.id, state=IncidentState.MITIGATING, remedy=verdict.remedy, response=Response.ACTED
        )
        return known.id
    subject = " on ".join(
        part
        for part in (f"rank {restart.rank}" if restart.rank is not None else "", restart.node or "")
        if part
    )
    return turn.open_incident(
        run,
        kind=failure.failure_class,
        severity=Severity.CRITICAL if verdict.remedy is Remedy.STOP else Severity.WARNING,
        reason=verdict.reason,
        subject=subject,
        remedy=verdict.remedy,
        state=IncidentState.MITIGATING,
        evidence={"log": list(failure.evidence), "signature": failure.signature},
    ).id


def _remember(turn: Turn, run_id: str, verdict: recovery.Verdict) -> None:
    run = turn.run(run_id)
    avoid = recovery.avoiding(run, verdict.avoid)
    excluded = run.excluded
    if verdict.distrust is not None and verdict.distrust not in excluded:
        excluded = (*excluded, verdict.distrust)
    turn.change_run(
        run_id,
        budgets=dict(verdict.budgets),
        anomalies=verdict.anomalies,
        avoid=avoid,
        excluded=excluded,
    )
    if verdict.distrust in turn.state.checkpoints:
        rollback.mark_bad(
            turn,
            verdict.distrust,
            f"the same failure came back right after loading it: {verdict.reason}",
        )
    fault = verdict.cordon
    if fault is not None and turn.state.nodes[fault.node].state is NodeState.READY:
        reason = f"{verdict.reason} (says the {fault.proof.source})"
        turn.change_node(fault.node, state=NodeState.CORDONED, reason=reason, by="babysit")


def _go_on(turn: Turn, run_id: str, decision: Onward, delay: float) -> None:
    """Prepare the next attempt: checkpoints, nodes and the back-off of `delay` seconds.

    A rollback that would throw away an hour of work is held instead: it cannot be undone.
    """
    run = turn.run(run_id)
    if isinstance(decision, Rollback | RollbackTo) and decision.skip is not None:
        turn.change_run(run_id, skip_batches=merge((*run.skip_batches, decision.skip)))
    too_much = rollback.would_lose(turn, run_id, decision) >= recovery.LARGE_LOSS_SECONDS
    if not too_much:
        rollback.rewind(turn, run_id, decision)
    if isinstance(decision, Vacate):
        worker_placement.end_workers(turn, run_id, decision.nodes, decision.restart.reason)
    retry_at = turn.now + dt.timedelta(seconds=delay) if delay > 0 else None
    decision = dataclasses.replace(decision, stage=CarriedOut(retry_at=retry_at))
    reason = decision.restart.reason
    if retry_at is not None:
        turn.set_timer(run_id, Timer.RETRY, delay)
        reason = f"{reason}; next try in {delay:.0f} s"
    turn.change_run(run_id, decision=decision, reason=reason)
    if too_much and isinstance(decision, Rollback):
        why = f"no good checkpoint is left from before step {decision.onset_step}"
        attempt_lifecycle.hold(turn, run_id, why, decision.restart.incident, release="begins again")
    turn.schedule_wanted = True


def merge(ranges: tuple[tuple[int, int], ...]) -> tuple[tuple[int, int], ...]:
    """Sort inclusive ranges, and join those that overlap or touch."""
    joined: list[tuple[int, int]] = []
    for begin, end in sorted(ranges):
        if joined and begin <= joined[-1][1] + 1:
            joined[-1] = (joined[-1][0], max(joined[-1][1], end))
        else:
            joined.append((begin, end))
    return tuple(joined)
