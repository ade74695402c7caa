"""Why a run is where it is, and what would move it. Pure."""

from __future__ import annotations

import datetime as dt
from typing import Any

from pydantic import BaseModel, ConfigDict

from orchestrator.core import placing
from orchestrator.core.entities import Run
from orchestrator.core.scheduling import Pending
from orchestrator.core.state import State
from orchestrator.core.states import (
    LIVE_ATTEMPT_STATES,
    TERMINAL_RUN_STATES,
    RunState,
    WorkerState,
)


class Explanation(BaseModel):
    """Why a run is where it is."""

    model_config = ConfigDict(frozen=True)

    state: str
    reason: str
    underlying: str = ""
    """The word of the scheduler's vocabulary, where it waits."""
    place: int | None = None
    """Place in the queue, from 1."""
    ahead: list[str] = []
    """Names of the runs ahead of it."""
    unblock: str = ""
    """What would move it on."""
    sentences: list[str] = []


def explain(state: State, run_id: str, now: dt.datetime) -> Explanation:
    """Explain one run that the state knows."""
    run = state.runs[run_id]
    if run.state in TERMINAL_RUN_STATES:
        return _say(run, sentences=[f"{run.name} {run.state}: {run.reason}."])
    if run.state is RunState.HELD or state.fleet.hold:
        return _held(state, run)
    if run.decision is not None and run.decision.retry_at is not None:
        seconds = max(0.0, (run.decision.retry_at - now).total_seconds())
        return _say(
            run,
            underlying=Pending.BACK_OFF,
            unblock=f"nothing: the next try is in {seconds:.0f} s",
            sentences=[
                f"{run.name} recovers: {run.decision.restart.reason}.",
                f"It tries again in {seconds:.0f} s.",
            ],
        )
    if placing.wants_nodes(state, run):
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
    sentences = [f"All automatic action for {run.name} is held: {reason}.", "Monitoring goes on."]
    if run.decision is not None:
        sentences.append(f"Waiting to be acted on: {run.decision.restart.reason}.")
    return _say(run, reason=reason, underlying=Pending.HELD, unblock=what, sentences=sentences)


def _waiting(state: State, run: Run, now: dt.datetime) -> Explanation:
    need = run.spec.resources
    shape = f"{need.gpus_per_node} GPUs, {need.cpus_per_node:g} CPUs"
    plan = placing.current_plan(state, now)
    wait = plan.waits.get(run.id)
    if wait is None:
        lost = [w.node for w in state.workers_of(run.id) if w.state is WorkerState.LOST]
        if lost:
            return _say(
                run,
                underlying=Pending.WORKERS,
                unblock=f"the agents on {', '.join(lost)} being back in contact, or given up",
                sentences=[f"{run.name} has no contact with its agents on {', '.join(lost)}."],
            )
        coming = [w for w in state.workers_of(run.id) if w.state is WorkerState.LAUNCHING]
        nodes = ", ".join(w.node for w in coming) or "its nodes"
        return _say(
            run,
            underlying=Pending.WORKERS,
            unblock=f"the agents on {nodes} joining",
            sentences=[f"{run.name} has its nodes; its agents on {nodes} are coming up."],
        )
    demand = placing.demand_of(state, run)
    ahead = [state.runs[other].name for other in plan.ahead(run.id)]
    users = _users(state, run) if wait.why is not Pending.TOO_LARGE else []
    missing = f"{demand.nodes} of {need.min_nodes} nodes with {shape} each"
    behind = f", behind {', '.join(ahead)}" if ahead else ""
    sentences = [
        f"{run.name} waits for {missing}; {wait.fitting} of those free fit.",
        f"It is number {wait.place} in the queue{behind}.",
    ]
    if users:
        sentences.append(f"The nodes that would fit are used by {', '.join(users)}.")
    unblock = (
        f"{' or '.join(users)} ending or giving nodes back"
        if users
        else "more nodes, or uncordoning some"
    )
    if wait.why is Pending.BEHIND and wait.behind:
        unblock = f"{state.runs[wait.behind].name}, which is ahead, getting its nodes"
    return _say(
        run,
        underlying=wait.why,
        place=wait.place,
        ahead=ahead,
        unblock=unblock,
        sentences=[*sentences, f"What would unblock it: {unblock}."],
    )


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
