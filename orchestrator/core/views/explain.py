"""Why a run is in its state, and what would let it go on. Pure.

Words for the scheduler's reasons come from :mod:`orchestrator.core.placement.wait_reasons`; the
figures are those of the moment, from a scheduling pass that changes nothing.
"""

from __future__ import annotations

import datetime as dt
from typing import Any, TypedDict

from pydantic import BaseModel, ConfigDict

from orchestrator.core.model.decisions import back_off_ends
from orchestrator.core.model.entities import Run
from orchestrator.core.model.state import State
from orchestrator.core.model.states import (
    LIVE_ATTEMPT_STATES,
    TERMINAL_RUN_STATES,
    NodeState,
    RunState,
    WorkerState,
)
from orchestrator.core.placement import snapshot, wait_reasons
from orchestrator.core.placement import workers as worker_placement
from orchestrator.core.policy import time_limits, usage_history
from orchestrator.core.scheduling import Pending, Plan, Wait
from orchestrator.core.scheduling.eligibility import MAINTENANCE_LEAD_SECONDS
from orchestrator.core.text import named


class Explanation(BaseModel):
    """Why a run is in its state."""

    model_config = ConfigDict(frozen=True)

    state: str
    reason: str
    underlying: str = ""
    """The reason as one word (:class:`Pending`), while it waits; otherwise empty."""
    place: int | None = None
    """Position in the queue, from 1; None: it is not in the queue."""
    ahead: list[str] = []
    """Names of the runs ahead of it."""
    unblock: str = ""
    """The condition for a start: a clause, or the command that ends a hold."""
    starts_at: dt.datetime | None = None
    """When it is expected to have its nodes, by limits of others or by history; None: unknown."""
    sentences: list[str] = []


def explain(state: State, run_id: str, now: dt.datetime) -> Explanation:
    """Explain one run of the state.

    Raises:
        KeyError: The state has no run of this id: it is over, or never was.
    """
    run = state.runs[run_id]
    if run.state in TERMINAL_RUN_STATES:
        return _say(run, sentences=[f"{run.name} {run.state}: {run.reason}."])
    if run.state is RunState.HELD or state.fleet.hold:
        return _held(state, run)
    retry_at = back_off_ends(run.decision)
    if run.decision is not None and retry_at is not None:
        seconds = max(0.0, (retry_at - now).total_seconds())
        return _say(
            run,
            underlying=Pending.BACK_OFF,
            unblock=f"the pause before the next attempt ends, in {seconds:.0f} s",
            sentences=[
                f"{run.name} recovers: {run.decision.restart.reason}.",
                f"The next attempt starts in {seconds:.0f} s.",
            ],
        )
    if snapshot.wants_nodes(state, run):
        return _waiting(state, run, now)
    attempt = state.attempts.get(run_id)
    sentences = [f"{run.name} is {run.state}: {run.reason}."]
    if attempt is not None and attempt.state in LIVE_ATTEMPT_STATES:
        places = ", ".join(f"ranks {_ranks(s.ranks)} on {s.node}" for s in attempt.seats)
        sentences.append(
            f"Attempt {attempt.number} is {attempt.state} at step {attempt.step}: {places}."
        )
    return _say(run, sentences=sentences)


def _held(state: State, run: Run) -> Explanation:
    reason = run.reason if run.state is RunState.HELD else str(state.fleet.hold)
    what = f"babysit release {run.name}" if run.state is RunState.HELD else "babysit release"
    sentences = [f"All automatic action for {run.name} is held: {reason}.", "Monitoring continues."]
    if run.decision is not None:
        sentences.append(f"On release it acts on: {run.decision.restart.reason}.")
    return _say(run, reason=reason, underlying=Pending.HELD, unblock=what, sentences=sentences)


def _waiting(state: State, run: Run, now: dt.datetime) -> Explanation:
    plan = worker_placement.current_plan(state, now)
    wait = plan.waits.get(run.id)
    if wait is None:
        return _coming_up(state, run)
    ahead = [state.runs[other].name for other in plan.ahead(run.id)]
    leaving = _leaving(state, run, plan)
    facts = _facts(state, run, wait, leaving, now)
    unblock = _unblock(state, run, wait, facts)
    starts_at, estimate = _estimate(state, run, wait, now)
    sentences = [*_shortage(run, wait, facts), _in_line(wait, ahead)]
    if (users := _users(state, run)) and wait.why is Pending.NO_CAPACITY:
        sentences.append(f"Nodes that would fit are used by {', '.join(users)}.")
    sentences.append(f"It starts when {unblock}.")
    return _say(
        run,
        underlying=wait.why,
        place=wait.place,
        ahead=ahead,
        unblock=unblock,
        starts_at=starts_at,
        sentences=[*sentences, *estimate],
    )


def _coming_up(state: State, run: Run) -> Explanation:
    lost = [w.node for w in state.workers_of(run.id) if w.state is WorkerState.LOST]
    if lost:
        return _say(
            run,
            underlying=Pending.WORKERS,
            unblock=f"the agents on {', '.join(lost)} are back in contact or declared lost",
            sentences=[f"{run.name} has no contact with its agents on {', '.join(lost)}."],
        )
    coming = [w for w in state.workers_of(run.id) if w.state is WorkerState.LAUNCHING]
    nodes = ", ".join(w.node for w in coming) or "its nodes"
    return _say(
        run,
        underlying=Pending.WORKERS,
        unblock=f"the agents on {nodes} join",
        sentences=[f"{run.name} has its nodes; its agents on {nodes} are starting."],
    )


def _leaving(state: State, run: Run, plan: Plan) -> list[str]:
    """Names of the runs preempted for it, in this pass or before."""
    asked = {eviction.run for eviction in plan.evictions if eviction.by == run.id}
    claim = plan.claims.get(run.id)
    for node in claim.nodes if claim is not None else ():
        for worker in state.workers_on(node):
            other = state.runs.get(worker.run)
            if other is not None and other is not run and snapshot.leaving(other, [worker]):
                asked.add(other.id)
    return sorted(state.runs[other].name for other in asked)


def _shortage(run: Run, wait: Wait, facts: Facts) -> list[str]:
    """How many nodes are missing, and why."""
    need = run.spec.resources
    shape = f"{need.gpus_per_node} GPUs, {need.cpus_per_node:g} CPUs"
    more = "" if wait.missing == need.min_nodes else f" more (of {need.min_nodes})"
    count = f"{wait.missing}{more} {'node' if wait.missing == 1 else 'nodes'}"
    sentences = [f"{run.name} needs {count} with {shape} each; {wait.fitting} are free and fit."]
    if cause := wait_reasons.WORDS[wait.why].cause.format_map(facts):
        sentences.append(cause)
    return sentences


def _in_line(wait: Wait, ahead: list[str]) -> str:
    behind = f", behind {', '.join(ahead)}" if ahead else ""
    return f"It is number {wait.place} in the queue{behind}."


class Facts(TypedDict):
    """Values for the `{names}` in the words of a reason."""

    pack: str
    missing: str
    detail: str
    queue: str
    behind: str
    victims: str
    leaving: str
    maintenance: str


def _facts(state: State, run: Run, wait: Wait, leaving: list[str], now: dt.datetime) -> Facts:
    victims = ", ".join(leaving) or "Other runs"
    one = len(leaving) == 1
    return {
        "pack": run.spec.placement.pack,
        "missing": str(wait.missing),
        "detail": wait.detail,
        "queue": run.spec.queue,
        "behind": state.runs[wait.behind].name if wait.behind in state.runs else "another run",
        "victims": f"{victims} {'saves and leaves its' if one else 'save and leave their'} nodes",
        "leaving": f"{', '.join(leaving) or 'other runs'} {'has' if one else 'have'}",
        "maintenance": _after_maintenance(state, run, now),
    }


def _unblock(state: State, run: Run, wait: Wait, facts: Facts) -> str:
    """The condition for a start, as a clause after `when`."""
    if wait.behind is None and wait.why is Pending.RESERVED:
        words = (
            ""  # nobody in the queue has them: they were left by one that waits as this one does
        )
    else:
        words = wait_reasons.WORDS[wait.why].unblock.format_map(facts)
    users = _users(state, run)
    leave = f"{' or '.join(users)} ends or releases nodes" if users else ""
    return words or leave or wait_reasons.CAPACITY


def _after_maintenance(state: State, run: Run, now: dt.datetime) -> str:
    within = time_limits.ends_within(run, now)
    lead = MAINTENANCE_LEAD_SECONDS if within is None else within
    until = now + dt.timedelta(seconds=lead)
    nodes = [
        node.id
        for node in state.nodes.values()
        if node.state is NodeState.READY and any(w.begins < until for w in node.maintenance)
    ]
    shorter = "a `max_runtime`" if within is None else "a shorter `max_runtime`"
    return (
        f"the maintenance of {named(nodes)} is over or is called off with"
        f" `babysit nodes maintain NODE --off`, or with {shorter} that ends before it"
    )


def _estimate(
    state: State, run: Run, wait: Wait, now: dt.datetime
) -> tuple[dt.datetime | None, list[str]]:
    """When it gets its nodes: by the ends of other runs, or else by the history of its queue."""
    if wait.why is Pending.PREEMPTING:
        sentence = f"They have {time_limits.GRACE_SECONDS:.0f} s to save and stop."
        return now + dt.timedelta(seconds=time_limits.GRACE_SECONDS), [sentence]
    if wait.starts_at is not None and wait.starts_at > now:
        minutes = (wait.starts_at - now).total_seconds() / 60
        return wait.starts_at, [f"Its nodes are expected to be free in {minutes:.0f} min."]
    nodes = run.spec.resources.min_nodes
    usual = usage_history.usual_wait(state.queues.get(run.spec.queue), nodes)
    if usual is None or wait.why is Pending.TOO_LARGE:
        return None, []
    seconds, runs = usual
    sentence = f"Runs of its size waited {seconds / 60:.0f} min here (median of {runs})."
    starts_at = run.submitted_at + dt.timedelta(seconds=seconds)
    return (starts_at if starts_at > now else None), [sentence]


def _users(state: State, run: Run) -> list[str]:
    """Names of the runs on nodes that would fit this one if they were empty."""
    names = {
        state.runs[worker.run].name
        for node in state.nodes.values()
        if node.gpus >= run.spec.resources.gpus_per_node
        and node.cpus >= run.spec.resources.cpus_per_node
        for worker in state.workers_on(node.id)
        if worker.run != run.id and worker.state is not WorkerState.ENDED
    }
    return sorted(names)


def _ranks(ranks: tuple[int, ...]) -> str:
    return str(ranks[0]) if len(ranks) == 1 else f"{ranks[0]}-{ranks[-1]}"


def _say(run: Run, *, sentences: list[str], **facts: Any) -> Explanation:
    return Explanation(
        **{"state": run.state, "reason": run.reason, "sentences": sentences, **facts}
    )
