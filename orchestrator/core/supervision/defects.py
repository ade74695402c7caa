"""Runs over which babysit itself fails: they are set aside, so that no other run waits for them."""

from __future__ import annotations

from monitors.types import Severity
from orchestrator.core.attempts import lifecycle as attempt_lifecycle
from orchestrator.core.messages.cluster_events import LaunchRefused
from orchestrator.core.messages.events import EventSetAside, RunSetAside
from orchestrator.core.model.states import TERMINAL_RUN_STATES, RunState, WorkerState
from orchestrator.core.placement import workers as worker_placement
from orchestrator.core.turn import Turn


def on_set_aside(turn: Turn, event: RunSetAside) -> None:
    """A scheduling pass failed over a run: hold it with the error as its reason, and page.

    What it runs goes on. The next pass plans without it.
    """
    turn.schedule_wanted = True
    if turn.run(event.run).state is RunState.HELD:
        turn.record(event.run, f"a scheduling pass failed over it again: {event.reason}")
        return
    why = f"the scheduler failed over it, which is a defect to report: {event.reason}"
    attempt_lifecycle.hold(turn, event.run, why)


def on_event_set_aside(turn: Turn, event: EventSetAside) -> None:
    """An event was left out since babysit fails over it: hold its run, and page.

    What the event said is missing from the state, so no further step of that run is safe. An event
    without a run, or of one that has ended, leads to a page alone.
    """
    run = turn.state.runs.get(event.run or "")
    what = f"babysit failed twice over the event {event.event}, which is a defect to report"
    if run is None or run.state in TERMINAL_RUN_STATES:
        text = f"{what}; the event is left out: {event.reason}"
        turn.notify(None, Severity.CRITICAL, text, kind="event_set_aside")
    elif run.state is RunState.HELD:
        turn.record(run.id, f"{event.event} was left out, too: {event.reason}")
    else:
        attempt_lifecycle.hold(turn, run.id, f"{what}: {event.reason}")


def on_launch_refused(turn: Turn, event: LaunchRefused) -> None:
    """A spec cannot be launched anywhere: no node is blamed, and no other one is tried.

    A run that never started fails with the error. One that has something to lose is held, since the
    cluster has changed rather than the spec.
    """
    worker = turn.state.workers.get(event.worker)
    if worker is None or worker.state is not WorkerState.LAUNCHING:
        turn.record(event.run, f"{event.worker} is not being launched any more: ignored")
        return
    why = f"its spec cannot be launched: {event.reason}"
    if turn.run(event.run).attempt == 0:
        attempt_lifecycle.finish_run(turn, event.run, RunState.FAILED, why)
        return
    worker_placement.end_worker(turn, worker, why)
    if turn.run(event.run).state is not RunState.HELD:
        attempt_lifecycle.hold(turn, event.run, why)
