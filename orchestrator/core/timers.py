"""Timers of a run that are due: one handler for each :class:`Timer`.

A timer is only a reminder. Between setting it and its event anything may have happened, so each
handler looks at the state again and does nothing when its reason has gone.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

from orchestrator.core.attempts import assembly
from orchestrator.core.attempts import lifecycle as attempt_lifecycle
from orchestrator.core.checkpoints import on_disk, trouble
from orchestrator.core.messages.events import TimerFired
from orchestrator.core.model.decisions import CarriedOut, Finish, Onward
from orchestrator.core.model.states import (
    TERMINAL_RUN_STATES,
    AttemptState,
    RunState,
    WorkerState,
)
from orchestrator.core.model.vocabulary import Timer
from orchestrator.core.placement import workers as worker_placement
from orchestrator.core.requests import runs as run_requests
from orchestrator.core.supervision import (
    agent_contact,
    failures,
    findings,
    hangs,
    lost_agents,
    progress,
    reconciliation,
)
from orchestrator.core.turn import Turn


def on_timer(turn: Turn, event: TimerFired) -> None:
    """Run the handler of a timer that is due; a timer that was set again since is ignored."""
    run = turn.run(event.run)
    # An event under way while the timer is cancelled or set again carries the old deadline.
    if run.due(event.timer, event.subject) != event.due:
        turn.record(run.id, f"timer {event.timer} was set again: ignored")
        return
    turn.cancel_timer(run.id, event.timer, subject=event.subject)
    HANDLERS[event.timer](turn, run.id, event.subject)


def _retry(turn: Turn, run_id: str, _subject: str) -> None:
    decision = turn.run(run_id).decision
    if isinstance(decision, Onward) and isinstance(decision.stage, CarriedOut):
        turn.change_run(run_id, decision=dataclasses.replace(decision, stage=CarriedOut()))
    turn.schedule_wanted = True


def _fence(turn: Turn, run_id: str, _subject: str) -> None:
    attempt = turn.attempt(run_id)
    if attempt is not None and attempt.state is AttemptState.STOPPING:
        turn.record(run_id, f"attempt {attempt.number} could not be confirmed dead: fenced")
        on_disk.reports_lost(turn, run_id)
        for seat in attempt.seats:
            worker = turn.state.workers.get(seat.worker)
            if not seat.stopped and worker is not None:
                worker_placement.end_worker(
                    turn, worker, "fenced: no answer, and the cluster cannot tell"
                )
        failures.attempt_dead(turn, run_id, AttemptState.FENCED)


def _launch_timed_out(turn: Turn, run_id: str, worker_id: str) -> None:
    worker = turn.state.workers.get(worker_id)
    if worker is not None and worker.state is WorkerState.LAUNCHING:
        waited = (turn.now - worker.launched_at).total_seconds()
        why = f"has not joined within {waited:.0f} s"
        why = f"{why}: {worker.reason}" if worker.reason else why
        lost_agents.launch_failed(turn, turn.run(run_id), worker, why)
        if turn.run(run_id).state not in TERMINAL_RUN_STATES:
            worker_placement.end_worker(turn, worker, why)
        turn.schedule_wanted = True


def _stacks_due(turn: Turn, run_id: str, _subject: str) -> None:
    hangs.conclude(turn, run_id)


def _suspect_due(turn: Turn, run_id: str, _subject: str) -> None:
    hangs.look_again(turn, run_id)


def _stop_due(turn: Turn, run_id: str, _subject: str) -> None:
    attempt_lifecycle.force_stop(turn, run_id)


def _silent_due(turn: Turn, run_id: str, _subject: str) -> None:
    progress.on_silent(turn, run_id)


def _overdue(turn: Turn, run_id: str, _subject: str) -> None:
    trouble.on_overdue(turn, run_id)


def _max_runtime(turn: Turn, run_id: str, _subject: str) -> None:
    run = turn.run(run_id)
    if isinstance(run.decision, Finish):
        return  # it is being ended already, for a reason of its own
    run_requests.end(
        turn, run, RunState.FAILED, f"max_runtime of {run.spec.max_runtime:.0f} s has passed"
    )


def _disk_due(turn: Turn, run_id: str, worker: str) -> None:
    on_disk.give_up(turn, run_id, worker)
    assembly.start_if_whole(turn, run_id)


def _look_again(turn: Turn, _run_id: str, _subject: str) -> None:
    turn.schedule_wanted = True


def _answer_due(turn: Turn, run_id: str, incident_id: str) -> None:
    findings.act_unanswered(turn, run_id, incident_id)


HANDLERS: Mapping[Timer, Callable[[Turn, str, str], None]] = {
    Timer.RETRY: _retry,
    Timer.STOP: _stop_due,
    Timer.FENCE: _fence,
    Timer.SUSPECT: _suspect_due,
    Timer.STACKS: _stacks_due,
    Timer.LAUNCH: _launch_timed_out,
    Timer.CONTACT: agent_contact.given_up,
    Timer.LOOK: _disk_due,
    Timer.START: failures.start_timed_out,
    Timer.SILENT: _silent_due,
    Timer.OVERDUE: _overdue,
    Timer.MAX_RUNTIME: _max_runtime,
    Timer.GROW: _look_again,
    Timer.STANDBY: _look_again,
    Timer.RECHECK: _look_again,
    Timer.COMPARE: reconciliation.compare_due,
    Timer.ASK: _answer_due,
}
"""The handler of each timer: given the turn, the run's id and the timer's subject."""
