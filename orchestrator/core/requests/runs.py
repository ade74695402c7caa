"""Requests about runs: submit, cancel, hold, release, restart, roll back; and about incidents."""

from __future__ import annotations

import dataclasses
from typing import Literal

from monitors.types import Severity
from orchestrator.core.attempts import draining, preemption
from orchestrator.core.attempts import lifecycle as attempt_lifecycle
from orchestrator.core.checkpoints import rollback
from orchestrator.core.messages.events import (
    IncidentChanged,
    RestartAsked,
    RollbackAsked,
    RunCancelled,
    RunHeld,
    RunReleased,
    RunSubmitted,
)
from orchestrator.core.model import time_ledger
from orchestrator.core.model.decisions import (
    Decision,
    Finish,
    Restart,
    Retry,
    Rollback,
    RollbackTo,
    Settled,
)
from orchestrator.core.model.entities import Checkpoint, Run
from orchestrator.core.model.states import (
    LIVE_ATTEMPT_STATES,
    TERMINAL_RUN_STATES,
    IncidentState,
    RunState,
    Trust,
)
from orchestrator.core.model.time_ledger import Bucket, Ledger
from orchestrator.core.model.vocabulary import Remedy, Timer
from orchestrator.core.policy import admission, doubt, siblings
from orchestrator.core.policy.time_limits import grace_seconds
from orchestrator.core.supervision import findings, hangs, judgement, node_findings
from orchestrator.core.text import named, outcome
from orchestrator.core.turn import Turn
from orchestrator.errors import ConflictError, InvalidError, NotFoundError


def on_submitted(turn: Turn, event: RunSubmitted) -> None:
    """A new run joins its queue.

    Raises:
        InvalidError: Even the empty cluster is too small for the run.
        ConflictError: A live run uses the same checkpoint directory.
    """
    if event.run in turn.state.runs:
        turn.record(event.run, "submitted twice: the first submission counts")
        return
    admission.check(turn.state, event.spec, turn.now)
    run = Run(
        id=event.run,
        name=event.spec.name,
        spec=event.spec,
        owner=event.owner or event.spec.owner,
        bundle=event.bundle,
        submitted_at=turn.now,
        reason="waits for the scheduler",
        ledger=Ledger(bucket=Bucket.QUEUED, since=turn.now),
    )
    turn.put(run)
    for sibling, ranges in siblings.quarantines(turn.state, run):
        text = siblings.offer(run, sibling, ranges)
        turn.notify(run.id, Severity.INFO, text, kind="skip_offered")
    turn.schedule_wanted = True


def _live(turn: Turn, run_id: str, verb: str) -> Run:
    run = turn.state.runs.get(run_id)
    if run is None:
        raise ConflictError(f"cannot {verb} {run_id}: it has ended", run=run_id)
    if run.state in TERMINAL_RUN_STATES:
        raise ConflictError(
            f"cannot {verb} {run.name}: it {outcome(run.state, run.reason)}",
            run=run.id,
            state=run.state,
        )
    return run


def _has_live_attempt(turn: Turn, run_id: str) -> bool:
    attempt = turn.attempt(run_id)
    return attempt is not None and attempt.state in LIVE_ATTEMPT_STATES


def on_cancelled(turn: Turn, event: RunCancelled) -> None:
    """Cancel a run; its checkpoints stay."""
    run = _live(turn, event.run, "cancel")
    reason = f"cancelled by {event.actor}" + (f": {event.reason}" if event.reason else "")
    end(turn, run, RunState.CANCELLED, reason)


def end(
    turn: Turn, run: Run, state: Literal[RunState.FAILED, RunState.CANCELLED], reason: str
) -> None:
    """Stop the gang if there is one, then end the run in `state`."""
    decision = Finish(restart=preemption.asked(turn, run, reason), state=state)
    turn.change_run(run.id, decision=decision, reason=reason)
    if _has_live_attempt(turn, run.id):
        attempt_lifecycle.stop_attempt(turn, run.id, reason, grace=grace_seconds(run))
    else:
        attempt_lifecycle.finish_run(turn, run.id, state, reason)


def on_restart_asked(turn: Turn, event: RestartAsked) -> None:
    """Stop the gang (it may save first) and start it again from the newest checkpoint."""
    run = _live(turn, event.run, "restart")
    _refuse_held(run)
    _again(
        turn,
        run,
        f"restart requested by {event.actor}" + _because(event.reason),
        grace=grace_seconds(run),
    )


def on_rollback_asked(turn: Turn, event: RollbackAsked) -> None:
    """Stop the gang and start it from an older checkpoint, perhaps skipping batches."""
    run = _live(turn, event.run, "roll back")
    to_step = event.to_step
    if event.skip is not None and not 1 <= event.skip[0] <= event.skip[1]:
        raise InvalidError(
            f"invalid --skip {event.skip[0]}:{event.skip[1]}:"
            " expected FIRST:LAST with 1 <= FIRST <= LAST"
        )
    if event.force and to_step is None:
        raise InvalidError("--force needs a step: add --to STEP")
    known = turn.state.checkpoints_of(run.id)
    loadable = [c for c in known if doubt.may_load(c)]
    steps = sorted({c.step for c in loadable})
    if to_step is not None and to_step != 0 and to_step not in steps:
        _refuse_step(run, to_step, known, steps, forced=event.force)
    if to_step is None and event.skip is None:
        past = [c.step for c in loadable if c.step < run.best_step]
        to_step = _newest(run, past, steps, f"step {run.best_step}, the newest reached")
    if to_step is None and event.skip is not None:
        before = [c.step for c in loadable if c.batch < event.skip[0]]
        to_step = _newest(run, before, steps, f"batch {event.skip[0]}")
    where = "" if to_step is None else f" to step {to_step}"
    reason = f"rollback{where} requested by {event.actor}" + _because(event.reason)
    if event.to_step is None or _has_live_attempt(turn, run.id):
        _refuse_held(run)  # else the choice of a step ends the hold: nothing runs that it protects
    asked = _Target(step=to_step, skip=event.skip, force=event.force)
    _refuse_restart(turn, run)
    if event.force and to_step is not None:
        rollback.overrule(turn, run.id, to_step, event.actor)
    _again(turn, run, reason, asked)


def _refuse_step(
    run: Run, step: int, known: list[Checkpoint], steps: list[int], *, forced: bool
) -> None:
    """Refuse a step that has no checkpoint, or only one that must be forced.

    Raises:
        ConflictError: As said, with the steps that can be loaded.
    """
    here = [
        c for c in known if c.step == step and c.deleted_at is None and c.trust is not Trust.WRITING
    ]
    if here and forced:
        return
    have = ", ".join(map(str, steps)) or "none"
    why = f"{run.name} has no checkpoint of step {step}"
    if here:
        first = here[0]
        marks = {"superseded": first.superseded, "doubted": first.doubted}
        mark = next((mark for mark, applies in marks.items() if applies), first.trust.value)
        why = (
            f"the checkpoint of step {step} of {run.name} is {mark} ({first.reason});"
            " `--force` loads it all the same"
        )
    raise ConflictError(
        f"{why}; it has checkpoints of steps: {have}",
        run=run.id,
        state=run.state,
        allowed=[str(step) for step in steps],
    )


def _refuse_held(run: Run) -> None:
    if run.state is RunState.HELD:
        raise ConflictError(
            f"{run.name} is held: `babysit release {run.name}` first", run=run.id, state=run.state
        )


def _newest(run: Run, past: list[int], steps: list[int], what: str) -> int:
    """The newest of the steps. A restart from step 0 that loses work must be asked for by name.

    Raises:
        ConflictError: There are checkpoints, and none is old enough.
    """
    if steps and not past:
        have = ", ".join(map(str, steps))
        raise ConflictError(
            f"{run.name} has no checkpoint from before {what}; it has checkpoints of steps: {have}."
            " `--to STEP` takes one of these, `--to 0` restarts from the beginning",
            run=run.id,
            state=run.state,
            allowed=["0", *map(str, steps)],
        )
    return max(past, default=0)


@dataclasses.dataclass(frozen=True, slots=True)
class _Target:
    """Where a requested restart goes on from."""

    step: int | None = None
    """None: from the newest checkpoint."""
    skip: tuple[int, int] | None = None
    force: bool = False


_NEWEST = _Target()


def _refuse_restart(turn: Turn, run: Run) -> None:
    """Refuse a restart that could not follow.

    Raises:
        ConflictError: Everything is held, the run is about to end, or it has never started.
    """
    if turn.state.fleet.hold:
        raise ConflictError(
            f"all automatic action is {turn.state.fleet.hold}; `babysit release` first",
            run=run.id,
            state=run.state,
        )
    if isinstance(run.decision, Finish):
        raise ConflictError(
            f"{run.name} is about to end: {run.decision.restart.reason}",
            run=run.id,
            state=run.state,
        )
    if not _has_live_attempt(turn, run.id) and run.attempt == 0:
        raise ConflictError(
            f"{run.name} has not started yet: {run.reason}", run=run.id, state=run.state
        )


def _again(
    turn: Turn, run: Run, reason: str, target: _Target = _NEWEST, *, grace: float = 0.0
) -> None:
    _refuse_restart(turn, run)
    live = _has_live_attempt(turn, run.id)
    if run.state is RunState.HELD:
        run = turn.release_run(run.id, run.held_from or RunState.QUEUED, reason)
    turn.cancel_timer(run.id, Timer.RETRY)
    remedy = Remedy.AS_ASKED if target.step is None else Remedy.ROLL_BACK
    restart = preemption.asked(turn, run, reason, remedy=remedy)
    decision = _instead_of(run.decision, restart, target)
    book = time_ledger.switch(turn.run(run.id).ledger, Bucket.STARTING, turn.now)
    state = RunState.RECOVERING if live else run.state
    turn.change_run(run.id, decision=decision, state=state, reason=reason, ledger=book)
    if live:
        attempt_lifecycle.stop_attempt(turn, run.id, reason, grace=grace)
    else:
        judgement.decide(turn, run.id)


def _instead_of(before: Decision | None, restart: Restart, target: _Target) -> Decision:
    """The decision for a request. One without a step does not undo a rollback that is under way."""
    if target.step is not None:
        return RollbackTo(restart=restart, step=target.step, skip=target.skip, force=target.force)
    if isinstance(before, Rollback | RollbackTo):
        return dataclasses.replace(before, restart=restart, stage=Settled())
    return Retry(restart=restart, stage=Settled())


def _because(reason: str) -> str:
    return f": {reason}" if reason else ""


# holds


def on_held(turn: Turn, event: RunHeld) -> None:
    """Stop all automatic action, for one run or for everything; monitoring goes on."""
    reason = f"held by {event.actor}" + _because(event.reason)
    if event.run is None:
        turn.put(dataclasses.replace(turn.state.fleet, hold=reason, hold_by=event.actor))
        return
    run = _live(turn, event.run, "hold")
    if run.state is not RunState.HELD:
        turn.change_run(run.id, state=RunState.HELD, held_from=run.state, reason=reason)
        turn.schedule_wanted = True  # others may have waited for it to leave, or it for them


def on_released(turn: Turn, event: RunReleased) -> None:
    """End a hold, and act on what waited for it."""
    if event.run is None:
        _refuse_not_held(turn)
        turn.put(dataclasses.replace(turn.state.fleet, hold=None, hold_by=""))
        node_findings.resume(turn)
        waiting = [run.id for run in turn.state.live_runs()]
    else:
        run = _live(turn, event.run, "release")
        if run.state is not RunState.HELD:
            raise ConflictError(
                f"{run.name} is not held: it is {run.state}", run=run.id, state=run.state
            )
        turn.release_run(run.id, run.held_from or RunState.QUEUED, f"released by {event.actor}")
        waiting = [run.id]
    for run_id in waiting:
        if not _has_live_attempt(turn, run_id):
            judgement.decide(turn, run_id)
        elif not turn.held(run_id):
            findings.resume(turn, run_id)
            draining.leave_draining(turn, run_id)
    turn.schedule_wanted = True


def _refuse_not_held(turn: Turn) -> None:
    """Refuse to end a hold over everything that is not there; say which runs are held.

    Raises:
        ConflictError: Nothing is held globally.
    """
    if turn.state.fleet.hold:
        return
    held = [run.name for run in turn.state.live_runs() if run.state is RunState.HELD]
    which = f"held runs: {named(held)}" if held else "no run is held either"
    raise ConflictError(f"nothing is held globally; {which}", allowed=held)


# incidents


def on_incident_changed(turn: Turn, event: IncidentChanged) -> None:
    """Acknowledge, resolve or judge."""
    incident = turn.state.incidents.get(event.incident)
    if incident is None:
        raise NotFoundError(f"no incident {event.incident}; see `babysit incidents ls`")
    if event.acknowledge:
        turn.change_incident(incident.id, acknowledged_by=event.actor)
        turn.cancel_timer(incident.run, Timer.ASK, subject=incident.id)
    if event.verdict is not None:
        turn.change_incident(incident.id, verdict=event.verdict)
    if event.state is IncidentState.RESOLVED:
        turn.cancel_timer(incident.run, Timer.ASK, subject=incident.id)
        if incident.run:
            hangs.called_over(turn, incident)
        turn.resolve_incident(incident.id, f"by {event.actor}")
