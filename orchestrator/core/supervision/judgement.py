"""From a dead attempt to the next one: the failure is judged once, and the verdict carried out."""

from __future__ import annotations

import dataclasses
import datetime as dt

from monitors.exits import root_cause
from monitors.failures import Failure, FailureClass
from monitors.types import Severity
from orchestrator.core.attempts import lifecycle as attempt_lifecycle
from orchestrator.core.checkpoints import rollback
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
from orchestrator.core.model.entities import Attempt, RankFailure, Run
from orchestrator.core.model.states import IncidentState, NodeState, RunState
from orchestrator.core.model.time_ledger import Bucket
from orchestrator.core.model.vocabulary import Remedy, Response, Timer
from orchestrator.core.placement import workers as worker_placement
from orchestrator.core.policy import doubt, recovery, siblings
from orchestrator.core.supervision import corruption, node_faults, run_causes
from orchestrator.core.turn import Turn


def decide(turn: Turn, run_id: str) -> None:
    """Carry out what was decided about a run without a live attempt; judge its failure first.

    There are three ways to get here: the attempt is dead (:func:`.failures.attempt_dead`), a hold
    was released, and a person asked for a restart or a rollback while nothing ran. Does nothing if
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
        death = next(f for f in attempt.failures if f.rank == rank)
        restart = dataclasses.replace(restart, rank=rank, node=death.node)
        decision = _asserted(turn, decision, attempt, death)
    is_anomaly = isinstance(decision, Rollback)
    if not is_anomaly:
        failure, cause = run_causes.explained(turn, attempt, failure, restart.node)
        restart = dataclasses.replace(restart, node=cause) if cause is not None else restart
    known = turn.state.checkpoints_of(run.id)
    node = node_faults.known_by_its_machine(turn.state, restart.node)
    case = recovery.Case(
        failure=failure,
        node=restart.node,
        host=node.machine if node is not None else None,
        ruling=doubt.NOTHING if is_anomaly else doubt.rule(attempt, failure, known),
        onset_step=decision.onset_step if isinstance(decision, Rollback) else None,
        onset_batch=decision.onset_batch if isinstance(decision, Rollback) else 0,
    )
    if failure.failure_class is not FailureClass.WORKER_LOST:  # noted when the worker went
        node_faults.note_fault(turn, restart.node, run.id, failure)
        node = node_faults.known_by_its_machine(turn.state, restart.node)
    verdict = recovery.judge(run, attempt, case, node, turn.now)
    verdict = _with_ruling(turn, verdict, case.ruling)
    lesson = siblings.lesson_of(failure, verdict.cause)
    verdict = recovery.with_lesson(
        verdict, failure, siblings.ended_by(turn.state, run, lesson), run
    )
    incident = _incident(turn, run, restart, failure, verdict)
    restart = dataclasses.replace(
        restart,
        cause=verdict.cause,
        failure_class=verdict.failure_class,
        reason=verdict.reason,
        remedy=verdict.remedy,
        incident=incident,
    )
    _remember(turn, run.id, verdict, case.ruling)
    if verdict.remedy is Remedy.STOP:
        turn.notify(run.id, Severity.CRITICAL, f"{run.name} stops: {verdict.reason}", incident)
        attempt_lifecycle.finish_run(turn, run.id, RunState.FAILED, verdict.reason, lesson)
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
    corruption.drain_culprit(turn, run, incident, verdict.avoid)


def _asserted(
    turn: Turn, decision: Retry, attempt: Attempt, death: RankFailure
) -> Retry | Rollback:
    """The decision about a death by numerics: back to before its step, where that helps.

    The onset is the last step that the rank ended, or a later one; its batch is not known. A death
    before any step is a matter of the checkpoint that was loaded.
    """
    if death.failure.failure_class is not FailureClass.NUMERICS or not doubt.stepped(attempt):
        return decision
    onset = death.step or attempt.step  # one that reports no steps has those of the others
    if not rollback.helps(turn, attempt.run, onset):
        return decision
    return Rollback(restart=decision.restart, onset_step=onset, stage=decision.stage)


def _with_ruling(turn: Turn, verdict: recovery.Verdict, ruling: doubt.Ruling) -> recovery.Verdict:
    """The verdict, with a word in its reason on the checkpoints that it doubts or acquits."""
    words = []
    for id_, what in [(ruling.doubt, "doubted")] + [(each, "acquitted") for each in ruling.acquit]:
        known = turn.state.checkpoints.get(id_ or "")
        if known is not None:
            words.append(f"step {known.step} is {what}")
    if not words:
        return verdict
    return dataclasses.replace(verdict, reason="; ".join((verdict.reason, *words)))


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


def _remember(turn: Turn, run_id: str, verdict: recovery.Verdict, ruling: doubt.Ruling) -> None:
    run = turn.run(run_id)
    kept = [node for node in run.avoid if node not in verdict.acquitted]
    if verdict.avoid is not None and verdict.avoid not in kept:
        kept.append(verdict.avoid)
    turn.change_run(
        run_id,
        budgets=dict(verdict.budgets),
        anomalies=verdict.anomalies,
        avoid=tuple(kept[-recovery.AVOIDED :]),
    )
    node_faults.acquit(turn, verdict.acquitted, run_id, verdict.failure_class)
    _mark(turn, run_id, verdict, ruling)
    fault = verdict.cordon
    if fault is not None and turn.state.nodes[fault.node].state is NodeState.READY:
        reason = f"{verdict.reason} (says the {fault.proof.source})"
        turn.change_node(fault.node, state=NodeState.CORDONED, reason=reason, by="babysit")


def _mark(turn: Turn, run_id: str, verdict: recovery.Verdict, ruling: doubt.Ruling) -> None:
    """Put the marks on checkpoints that the death, or the anomaly, leads to."""
    if ruling.loaded is not None:
        turn.change_checkpoint(ruling.loaded, deaths=ruling.deaths)
    if ruling.doubt is not None:
        times = f"{ruling.deaths} attempts in a row died right after loading it"
        rollback.cast_doubt(turn, ruling.doubt, f"{times}: {verdict.reason}")
    if ruling.acquit and ruling.loaded is not None:
        older = turn.state.checkpoints[ruling.loaded]
        why = f"step {older.step} died alike, so the fault is not the checkpoint's"
        rollback.acquit(turn, ruling.acquit, why)
    loaded = turn.state.checkpoints.get(verdict.distrust or "")
    known = turn.state.checkpoints_of(run_id)
    if loaded is not None and doubt.has_older(loaded, known, only_good=True):
        rollback.cast_doubt(turn, loaded.id, f"it came back right after loading: {verdict.reason}")


def _go_on(turn: Turn, run_id: str, decision: Onward, delay: float) -> None:
    """Prepare the next attempt: checkpoints, nodes and the back-off of `delay` seconds.

    A rollback that finds nothing good to go back to is held instead: it cannot be undone.
    """
    run = turn.run(run_id)
    if isinstance(decision, Rollback | RollbackTo) and decision.skip is not None:
        turn.change_run(run_id, skip_batches=merge((*run.skip_batches, decision.skip)))
        _offer(turn, run, decision.skip)
    ask_first = rollback.needs_a_person(turn, run_id, decision)
    if not ask_first:
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
    if ask_first and isinstance(decision, Rollback):
        why = f"no good checkpoint is left from before step {decision.onset_step}"
        attempt_lifecycle.hold(turn, run_id, why, decision.restart.incident, release="begins again")
    turn.schedule_wanted = True


def _offer(turn: Turn, run: Run, skip: tuple[int, int]) -> None:
    """Offer batches that a run skips from now on to its siblings; they decide by themselves."""
    for sibling in siblings.live_siblings(turn.state, run):
        if siblings.may_need(sibling, skip):
            text = siblings.offer(sibling, run.name, [skip])
            turn.notify(sibling.id, Severity.INFO, text, kind="skip_offered")


def merge(ranges: tuple[tuple[int, int], ...]) -> tuple[tuple[int, int], ...]:
    """Sort inclusive ranges, and join those that overlap or touch."""
    joined: list[tuple[int, int]] = []
    for begin, end in sorted(ranges):
        if joined and begin <= joined[-1][1] + 1:
            joined[-1] = (joined[-1][0], max(joined[-1][1], end))
        else:
            joined.append((begin, end))
    return tuple(joined)
