"""What people ask for: submit, cancel, hold, release, restart, roll back; nodes and incidents."""

from __future__ import annotations

import dataclasses
import datetime as dt

from orchestrator.core import (
    admission,
    gang,
    leaving,
    ledger,
    recovering,
    rewinding,
    watching,
)
from orchestrator.core.entities import Decision, Ledger, Node, Restart, Run
from orchestrator.core.events import (
    CapacityChanged,
    IncidentChanged,
    NodeChanged,
    NodeInfo,
    RestartAsked,
    RollbackAsked,
    RunCancelled,
    RunHeld,
    RunReleased,
    RunSubmitted,
)
from orchestrator.core.ledger import Bucket
from orchestrator.core.states import (
    LIVE_ATTEMPT_STATES,
    TERMINAL_RUN_STATES,
    IncidentState,
    NodeState,
    RunState,
    Trust,
)
from orchestrator.core.turn import Turn
from orchestrator.errors import InvalidError, NotFoundError, RefusedError


def on_submitted(turn: Turn, event: RunSubmitted) -> None:
    """A new run joins the queue, unless the cluster could never hold it."""
    if event.run in turn.state.runs:
        turn.record(event.run, "submitted twice: the first counts")
        return
    admission.check(turn.state, event.spec)
    run = Run(
        id=event.run,
        name=event.spec.name,
        spec=event.spec,
        owner=event.owner or event.spec.owner,
        submitted_at=turn.now,
        reason="waits for the scheduler",
        ledger=Ledger(bucket=Bucket.QUEUED.value, since=turn.now),
    )
    turn.put(run)
    turn.schedule_wanted = True


def _live(turn: Turn, run_id: str, verb: str) -> Run:
    run = turn.state.runs.get(run_id)
    if run is None:
        raise RefusedError(f"cannot {verb} {run_id}: it is over")
    if run.state in TERMINAL_RUN_STATES:
        raise RefusedError(f"cannot {verb} {run.name}: it {run.state} already")
    return run


def _has_live_attempt(turn: Turn, run_id: str) -> bool:
    attempt = turn.attempt(run_id)
    return attempt is not None and attempt.state in LIVE_ATTEMPT_STATES


def on_cancelled(turn: Turn, event: RunCancelled) -> None:
    """End a run; nothing it has saved is touched."""
    run = _live(turn, event.run, "cancel")
    reason = f"cancelled by {event.actor}" + (f": {event.reason}" if event.reason else "")
    end(turn, run, RunState.CANCELLED, reason)


def end(turn: Turn, run: Run, state: RunState, reason: str) -> None:
    """Stop the gang if there is one, then end the run in `state`."""
    decision = Decision(restart=leaving.asked(turn, run, reason), finish=state)
    turn.change_run(run.id, decision=decision, reason=reason)
    if _has_live_attempt(turn, run.id):
        gang.stop_attempt(turn, run.id, reason, grace=leaving.GRACE_SECONDS)
    else:
        gang.finish_run(turn, run.id, state, reason)


def on_restart_asked(turn: Turn, event: RestartAsked) -> None:
    """Stop the gang (it may save first) and start it again from the newest checkpoint."""
    run = _live(turn, event.run, "restart")
    _refuse_held(run)
    _again(
        turn,
        run,
        f"restart asked for by {event.actor}" + _because(event.reason),
        grace=leaving.GRACE_SECONDS,
    )


def on_rollback_asked(turn: Turn, event: RollbackAsked) -> None:
    """Stop the gang and start it from an older checkpoint, perhaps skipping batches."""
    run = _live(turn, event.run, "roll back")
    to_step = event.to_step
    if event.skip is not None and not 1 <= event.skip[0] <= event.skip[1]:
        raise InvalidError(
            f"skip: {event.skip[0]}:{event.skip[1]} are no batches: give FIRST:LAST, from 1 on"
        )
    loadable = [
        c
        for c in turn.state.checkpoints_of(run.id)
        if c.deleted_at is None and c.trust not in {Trust.WRITING, Trust.BAD}
    ]
    steps = sorted({c.step for c in loadable})
    if to_step is not None and to_step != 0 and to_step not in steps:
        have = ", ".join(map(str, steps)) or "none"
        raise RefusedError(
            f"{run.name} has no checkpoint of step {to_step} to roll back to; it has: {have}"
        )
    if to_step is None and event.skip is None:
        past = [c.step for c in loadable if c.id not in run.excluded and c.step < run.best_step]
        to_step = _newest(run, past, steps, f"step {run.best_step}, the newest reached")
    if to_step is None and event.skip is not None:
        before = [c.step for c in loadable if c.id not in run.excluded and c.batch < event.skip[0]]
        to_step = _newest(run, before, steps, f"batch {event.skip[0]}")
    where = "" if to_step is None else f" to step {to_step}"
    reason = f"rollback{where} asked for by {event.actor}" + _because(event.reason)
    if event.to_step is None or _has_live_attempt(turn, run.id):
        _refuse_held(run)  # else the choice of a step ends the hold: nothing runs that it protects
    _again(turn, run, reason, to_step=to_step, skip=event.skip)
    if event.to_step is not None:
        rewinding.take_up_again(turn, run.id, event.to_step)


def _refuse_held(run: Run) -> None:
    if run.state is RunState.HELD:
        raise RefusedError(f"{run.name} is held; `babysit release` it first")


def _newest(run: Run, past: list[int], steps: list[int], what: str) -> int:
    """The newest of the steps; to begin again, where there is something to lose, must be said."""
    if steps and not past:
        have = ", ".join(map(str, steps))
        raise RefusedError(
            f"{run.name} has no checkpoint from before {what}; it has: {have};"
            " `--to STEP` takes one of them, `--to 0` begins again"
        )
    return max(past, default=0)


def _again(
    turn: Turn,
    run: Run,
    reason: str,
    *,
    to_step: int | None = None,
    skip: tuple[int, int] | None = None,
    grace: float = 0.0,
) -> None:
    if turn.state.fleet.hold:
        raise RefusedError(f"everything is held ({turn.state.fleet.hold}); `babysit release` first")
    if run.decision is not None and run.decision.finish is not None:
        raise RefusedError(f"{run.name} is being ended: {run.decision.restart.reason}")
    live = _has_live_attempt(turn, run.id)
    if not live and run.attempt == 0:
        raise RefusedError(f"{run.name} has not started yet: {run.reason}")
    if run.state is RunState.HELD:
        run = turn.release_run(run.id, run.held_from or RunState.QUEUED, reason)
    turn.cancel_timer(run.id, "retry")
    decision = _instead_of(run.decision, leaving.asked(turn, run, reason), to_step, skip)
    book = ledger.switch(turn.run(run.id).ledger, Bucket.STARTING, turn.now)
    state = RunState.RECOVERING if live else run.state
    turn.change_run(run.id, decision=decision, state=state, reason=reason, ledger=book)
    if live:
        gang.stop_attempt(turn, run.id, reason, grace=grace)
    else:
        recovering.decide(turn, run.id)


def _instead_of(
    before: Decision | None, restart: Restart, to_step: int | None, skip: tuple[int, int] | None
) -> Decision:
    """A request that names no step does not undo a rollback that is under way."""
    if before is None or to_step is not None:
        return Decision(restart=restart, to_step=to_step, skip=skip)
    return Decision(
        restart=restart,
        onset_step=before.onset_step,
        onset_batch=before.onset_batch,
        to_step=before.to_step,
        skip=skip or before.skip,
    )


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


def on_released(turn: Turn, event: RunReleased) -> None:
    """End a hold, and act on what waited for it."""
    if event.run is None:
        turn.put(dataclasses.replace(turn.state.fleet, hold=None, hold_by=""))
        waiting = [run.id for run in turn.state.live_runs()]
    else:
        run = _live(turn, event.run, "release")
        if run.state is not RunState.HELD:
            raise RefusedError(f"{run.name} is not held: it is {run.state}")
        turn.release_run(run.id, run.held_from or RunState.QUEUED, f"released by {event.actor}")
        waiting = [run.id]
    for run_id in waiting:
        if not _has_live_attempt(turn, run_id):
            recovering.decide(turn, run_id)
        elif not turn.held(run_id):
            watching.resume(turn, run_id)
            _leave_draining(turn, run_id)
    turn.schedule_wanted = True


def _leave_draining(turn: Turn, run_id: str) -> None:
    for seat in turn.state.attempts[run_id].seats:
        node = turn.state.nodes.get(seat.node)
        if node is not None and node.state is NodeState.DRAINING:
            _move_away(turn, run_id, node)


# nodes


def on_capacity(turn: Turn, event: CapacityChanged) -> None:
    """Take the cluster's inventory over; what is known of a node's past and its cordon stays."""
    for info in event.nodes:
        known = turn.state.nodes.get(info.id)
        if known is None:
            turn.put(_node(info, turn.now))
        elif known.state is NodeState.GONE:
            _back(turn, known, info)
        elif any(getattr(known, field) != value for field, value in _shape(info).items()):
            turn.change_node(info.id, **_shape(info))
    present = {info.id for info in event.nodes}
    for node in list(turn.state.nodes.values()):
        if node.id not in present and node.state is not NodeState.GONE:
            why = f"no longer in the cluster; {node.reason}" if node.by else "no longer there"
            turn.change_node(node.id, state=NodeState.GONE, reason=why)
    turn.schedule_wanted = True


def _back(turn: Turn, node: Node, info: NodeInfo) -> None:
    """A node that was cordoned (or drained) when it left takes no work before someone says so."""
    if node.by:
        why = node.reason.removeprefix("no longer in the cluster; ")
        turn.change_node(node.id, state=NodeState.CORDONED, reason=why, **_shape(info))
    else:
        turn.change_node(
            node.id, state=NodeState.READY, reason="back in the cluster", **_shape(info)
        )


def _shape(info: NodeInfo) -> dict[str, object]:
    return {
        "gpus": info.gpus,
        "cpus": info.cpus,
        "memory": info.memory,
        "labels": dict(info.labels),
    }


def _node(info: NodeInfo, now: dt.datetime) -> Node:
    return Node(
        id=info.id,
        gpus=info.gpus,
        cpus=info.cpus,
        memory=info.memory,
        labels=dict(info.labels),
        since=now,
    )


def on_node_changed(turn: Turn, event: NodeChanged) -> None:
    """Cordon: no new work. Drain: its runs move away (they may save first).

    Ready: takes work again.
    """
    node = turn.state.nodes.get(event.node)
    if node is None or node.state is NodeState.GONE:
        have = ", ".join(
            sorted(n.id for n in turn.state.nodes.values() if n.state is not NodeState.GONE)
        )
        raise NotFoundError(f"no such node: {event.node}; the cluster has {have or 'no nodes'}")
    turn.schedule_wanted = True
    if event.state == "draining":
        drain(turn, node.id, event.reason, event.actor)
        return
    ready = event.state == "ready"
    by = "" if ready else event.actor
    # Who takes a node back into service during its maintenance calls the maintenance off.
    planned = [w for w in node.maintenance if not ready or w.begins > turn.now]
    turn.change_node(
        node.id,
        state=NodeState(event.state),
        reason=event.reason,
        by=by,
        maintenance=tuple(planned),
    )


def drain(turn: Turn, node_id: str, reason: str, by: str) -> None:
    """No new work, and its runs move away; they may save first."""
    node = turn.change_node(node_id, state=NodeState.DRAINING, reason=reason, by=by)
    for worker in turn.state.workers_on(node.id):
        _move_away(turn, worker.run, node)


def _move_away(turn: Turn, run_id: str, node: Node) -> None:
    run = turn.run(run_id)
    reason = f"{node.id} is being drained by {node.by}: {node.reason}"
    restart = leaving.asked(turn, run, reason, remedy="move away")
    leaving.ask(turn, run, dataclasses.replace(restart, node=node.id))


# incidents


def on_incident_changed(turn: Turn, event: IncidentChanged) -> None:
    """Acknowledge, resolve or judge."""
    incident = turn.state.incidents.get(event.incident)
    if incident is None:
        raise NotFoundError(f"no open incident {event.incident}; see `babysit incidents ls`")
    if event.acknowledge:
        turn.change_incident(incident.id, acknowledged_by=event.actor)
        turn.cancel_timer(incident.run, f"ask:{incident.id}")
    if event.verdict is not None:
        turn.change_incident(incident.id, verdict=event.verdict)
    if event.state is IncidentState.RESOLVED:
        turn.cancel_timer(incident.run, f"ask:{incident.id}")
        turn.resolve_incident(incident.id, f"by {event.actor}")
