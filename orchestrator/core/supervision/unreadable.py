"""Agents of other versions: what they report cannot be read, or they are refused.

The problem: an agent stays at the version that it was started with. What it reports in words that
this server does not know must neither be lost without a trace, nor end a healthy run.

The design: whatever cannot be read is in the journal, and people hear of the first of each
connection. Only the exit of a rank needs more: nobody would ever hear of it again. The attempt is
then judged as one that ended without a word. All other events have a timer or a monitor behind
them, which goes off when they never come.
"""

from __future__ import annotations

from jobs.events import RankExited
from monitors.failures import Failure, FailureClass
from monitors.types import Severity
from orchestrator.core.messages.version_events import AgentRefused, ReportUnreadable
from orchestrator.core.model.states import LIVE_ATTEMPT_STATES, RunState, WorkerState
from orchestrator.core.supervision import failures
from orchestrator.core.text import REFUSED
from orchestrator.core.turn import Turn

_EXIT = RankExited.model_fields["kind"].default
_NO_CODE = 0
"""Exit code of a rank whose code is not known; it matches no `recovery.stop_on`."""


def on_unreadable(turn: Turn, event: ReportUnreadable) -> None:
    """Notify people of the first of a connection, and judge an exit that says nothing more."""
    run, worker = turn.run(event.run), turn.state.workers.get(event.worker)
    node = worker.node if worker is not None else "an unknown node"
    what = f"the event {event.event}" if event.event else "a part of a report"
    if event.first:
        text = (
            f"{run.name}: {what} of the agent on {node} cannot be read ({event.reason});"
            " agent and server may be of different versions"
        )
        turn.notify(run.id, Severity.WARNING, text, kind="report_unreadable")
    if event.event == _EXIT and not event.partly:
        _judge_exit(turn, event, node)


def _judge_exit(turn: Turn, event: ReportUnreadable, node: str) -> None:
    attempt = turn.attempt(event.run)
    place = turn.state.places_of(event.run).get(event.worker)
    if (
        attempt is None
        or attempt.number != event.attempt
        or attempt.state not in LIVE_ATTEMPT_STATES
        or place is None
        or not attempt.seats[place].ranks  # taken over: its ranks are compared first
    ):
        turn.record(event.run, f"an exit of attempt {event.attempt} cannot be read: ignored")
        return
    failure = Failure(
        failure_class=FailureClass.UNKNOWN,
        reason=f"a rank on {node} ended, and how cannot be read ({event.reason})",
        signature="unreadable exit",
    )
    died = RankExited(
        id=event.id,
        at=event.at,
        actor=event.actor,
        run=event.run,
        worker=event.worker,
        attempt=event.attempt,
        rank=attempt.seats[place].ranks[0],
        code=_NO_CODE,
        failure=failure,
        last_step=attempt.step,
    )
    failures.on_rank_died(turn, died)


def on_refused(turn: Turn, event: AgentRefused) -> None:
    """Notify people, and show with the run and its node, why an agent is refused; once."""
    worker, reason = turn.state.workers.get(event.worker), f"{REFUSED}{event.reason}"
    if worker is None or worker.state is WorkerState.ENDED or worker.reason == reason:
        return
    turn.change_worker(worker.id, reason=reason)
    run = turn.run(event.run)
    told = f"the agent on {worker.node} is {reason}"
    if run.state is not RunState.HELD:
        turn.change_run(run.id, reason=told)
    turn.notify(run.id, Severity.WARNING, f"{run.name}: {told}", kind="agent_refused")
