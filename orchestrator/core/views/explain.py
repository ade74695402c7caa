"""Why a run is in its state, and what would let it go on. Pure.

Words for the scheduler's reasons come from :mod:`orchestrator.core.placement.wait_reasons`; the
figures are those of the moment, from a scheduling pass that changes nothing.
"""

from __future__ import annotations

import datetime as dt
from typing import Any

from pydantic import BaseModel, ConfigDict

from orchestrator.core.model.decisions import back_off_ends
from orchestrator.core.model.entities import Run
from orchestrator.core.model.state import State
from orchestrator.core.model.states import (
    LIVE_ATTEMPT_STATES,
    TERMINAL_RUN_STATES,
    RunState,
    WorkerState,
)
from orchestrator.core.placement import snapshot
from orchestrator.core.placement import workers as worker_placement
from orchestrator.core.policy import remedies
from orchestrator.core.scheduling import Pending, plan
from orchestrator.core.text import named
from orchestrator.core.views import waiting


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
        return _held(state, run, now)
    retry_at = back_off_ends(run.decision)
    if run.decision is not None and retry_at is not None:
        seconds = max(0.0, (retry_at - now).total_seconds())
        return _say(
            run,
            underlying=Pending.BACK_OFF,
            unblock=f"the pause before the next attempt ends, in {waiting.roughly(seconds)}",
            sentences=[
                f"{run.name} recovers: {run.decision.restart.reason}.",
                f"The next attempt starts in {waiting.roughly(seconds)}.",
            ],
        )
    if snapshot.wants_nodes(state, run):
        return _waiting(state, run, now)
    attempt = state.attempts.get(run_id)
    sentences = [f"{run.name} is {run.state}: {run.reason}."]
    slow = (each for each in state.incidents_of(run_id) if remedies.is_slow(each))
    sentences += [f"It is slow: {each.reason}." for each in slow]
    if attempt is not None and attempt.state in LIVE_ATTEMPT_STATES:
        places = ", ".join(f"ranks {_ranks(s.ranks)} on {s.node}" for s in attempt.seats)
        sentences.append(f"Attempt {attempt.number} is {attempt.state}: {places}.")
    return _say(run, sentences=sentences)


def _held(state: State, run: Run, now: dt.datetime) -> Explanation:
    reason = run.reason if run.state is RunState.HELD else str(state.fleet.hold)
    what = f"babysit release {run.name}" if run.state is RunState.HELD else "babysit release"
    why = reason.removeprefix("held ")
    joint = " " if why != reason else ": "
    held = f"All automatic action for {run.name} is held{joint}{why}."
    sentences = [held, "Monitoring continues."]
    if run.decision is not None:
        sentences.append(f"On release it acts on: {run.decision.restart.reason}.")
    sentences += _without_hold(state, run, now)
    return _say(run, reason=reason, underlying=Pending.HELD, unblock=what, sentences=sentences)


def _without_hold(state: State, run: Run, now: dt.datetime) -> list[str]:
    """The reasons for which a run that needs nodes would wait without the hold over everything."""
    if not snapshot.wants_when_released(state, run):
        return []
    released = plan(snapshot.snapshot(state, now, released=True), now)
    if (wait := released.waits.get(run.id)) is None:
        return ["It has what it needs to start on the release."]
    return [
        "Without the hold it would wait:",
        *waiting.told(state, run, released, wait, now)["sentences"],
    ]


def _waiting(state: State, run: Run, now: dt.datetime) -> Explanation:
    current = worker_placement.current_plan(state, now)
    wait = current.waits.get(run.id)
    if wait is None:
        return _coming_up(state, run)
    return _say(run, **waiting.told(state, run, current, wait, now))


def _coming_up(state: State, run: Run) -> Explanation:
    lost = [w.node for w in state.workers_of(run.id) if w.state is WorkerState.LOST]
    if lost:
        return _say(
            run,
            underlying=Pending.WORKERS,
            unblock=f"the agents on {named(lost)} are back in contact or declared lost",
            sentences=[f"{run.name} has no contact with its agents on {named(lost)}."],
        )
    coming = [w for w in state.workers_of(run.id) if w.state is WorkerState.LAUNCHING]
    nodes = named([w.node for w in coming]) or "its nodes"
    return _say(
        run,
        underlying=Pending.WORKERS,
        unblock=f"the agents on {nodes} join",
        sentences=[f"{run.name} has its nodes; its agents on {nodes} are starting."],
    )


def _ranks(ranks: tuple[int, ...]) -> str:
    return str(ranks[0]) if len(ranks) == 1 else f"{ranks[0]}-{ranks[-1]}"


def _say(run: Run, *, sentences: list[str], **facts: Any) -> Explanation:
    return Explanation(
        **{"state": run.state, "reason": run.reason, "sentences": sentences, **facts}
    )
