"""The logbook: what happened to a run and why, in sentences for the person on call. Pure."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

from monitors.failures import Cause
from orchestrator.core.model import time_ledger
from orchestrator.core.model.decisions import Restart
from orchestrator.core.model.derived import is_reporting
from orchestrator.core.model.entities import Attempt, Incident, Run
from orchestrator.core.model.states import LIVE_ATTEMPT_STATES, IncidentState, RunState
from orchestrator.core.model.vocabulary import Remedy
from orchestrator.core.text import counted, words
from orchestrator.core.views.models import StoryView
from orchestrator.core.views.remedy_text import incident_remedy

_ROLLBACKS = frozenset({Remedy.ROLL_BACK, Remedy.ROLL_BACK_AND_SKIP})
_NOTICED_LATE_SECONDS = 2.0
"""Below this, how long a failure went unnoticed is not worth a clause."""


class Entry(Protocol):
    """The fields of a journal entry that the story needs."""

    @property
    def at(self) -> dt.datetime:
        """When it was handled."""

    @property
    def actor(self) -> str:
        """The cause of the entry: an operator, an agent or babysit."""

    @property
    def name(self) -> str:
        """`run_held` …."""

    @property
    def payload(self) -> Mapping[str, Any]:
        """The event as JSON."""


def story(
    run: Run,
    attempts: Sequence[Attempt],
    incidents: Iterable[Incident],
    journal: Iterable[Entry],
    *,
    now: dt.datetime,
    step: int | None = None,
) -> list[StoryView]:
    """The run's story, oldest first.

    Args:
        run: The run.
        attempts: All of its attempts, oldest first.
        incidents: All of its incidents.
        journal: Its lines, in order; only those of :func:`matters` are looked at.
        now: For a run that is not over.
        step: Its newest step; None: the highest that the core has heard of, now and then.
    """
    led_to_restart = {attempt.restart.incident for attempt in attempts if attempt.restart}
    lines = [StoryView(at=run.submitted_at, text=_submitted(run))]
    for before, attempt in zip((None, *attempts), attempts, strict=False):
        lines.append(_attempt_line(before, attempt, known=is_reporting(run)))
    lines += [
        _incident_line(incident) for incident in incidents if incident.id not in led_to_restart
    ]
    lines += _journal_lines(journal)
    lines.sort(key=lambda line: line.at)
    return [*lines, _last_line(run, attempts, now, step)]


def text(lines: Sequence[StoryView]) -> list[str]:
    """The story with times (UTC): `03:12:07 …`, with the date where it spans days."""
    days = {line.at.date() for line in lines}
    pattern = "%H:%M:%S" if len(days) == 1 else "%Y-%m-%d %H:%M:%S"
    return [f"{line.at:{pattern}} {line.text}" for line in lines]


def _submitted(run: Run) -> str:
    resources = run.spec.resources
    ranks = resources.min_nodes * resources.processes_per_node
    who = run.owner or "Someone"
    where = f"{counted(resources.min_nodes, 'node')}, {counted(ranks, 'rank')}"
    return f"{who} submitted {run.name} ({where}): {' '.join(run.spec.command)}"


def _attempt_line(before: Attempt | None, attempt: Attempt, *, known: bool) -> StoryView:
    nodes = ", ".join(dict.fromkeys(seat.node for seat in attempt.seats))
    if attempt.restart is None:
        first = attempt.first_step_at
        waited = (first - attempt.started_at).total_seconds() if first else None
        tail = "" if waited is None else f"; the first step ended {words(waited)} later"
        return StoryView(at=attempt.started_at, text=f"Started on {nodes}{tail}.")
    restart = attempt.restart
    outcome = _outcome(restart, attempt) if known else "no step is known."
    sentences = f"{_what(restart)} {_remedy(restart, before, attempt)} {outcome}"
    return StoryView(at=restart.detected_at, text=sentences)


def _what(restart: Restart) -> str:
    """The failure in words, with the rank and the node where the reason does not name them."""
    reason = restart.reason.rstrip(".")
    place = f"rank {restart.rank}" if restart.rank is not None else ""
    if restart.node:
        place = f"{place} on {restart.node}" if place else restart.node
    if place and restart.cause is not Cause.OPERATOR and place not in reason:
        reason = f"{place}: {reason}"
    late = (restart.detected_at - restart.failed_at).total_seconds()
    noticed = f" (noticed after {words(late)})" if late >= _NOTICED_LATE_SECONDS else ""
    return f"{reason[:1].upper()}{reason[1:]}{noticed}." if not place else f"{reason}{noticed}."


def _remedy(restart: Restart, before: Attempt | None, attempt: Attempt) -> str:
    tier = attempt.restored.split("/")[-2] if attempt.restored else ""
    step = restart.resumed_step if restart.resumed_step is not None else attempt.start_step
    source = f"step {step} ({tier})" if tier else "the beginning"
    if attempt.candidates and not attempt.restored_ranks:
        source = "a checkpoint"
    elif restart.resumed_step is None and attempt.first_step_at is not None:
        source = "where its script resumes"
    elif not tier and step:
        source = f"step {step}, which its script resumed from by itself"
    if restart.remedy in _ROLLBACKS:
        return f"Rolled back to {source}:"
    if restart.cause is Cause.PREEMPTION:
        nodes = ", ".join(seat.node for seat in attempt.seats)
        again = "Came back" if restart.remedy is Remedy.PREEMPTED else "Went on"
        return f"{again} on {nodes}, from {source}:"
    old = {seat.node for seat in before.seats} if before else set()
    new = {seat.node for seat in attempt.seats}
    if old and new != old:
        gone, came = ", ".join(sorted(old - new)), ", ".join(sorted(new - old))
        moved = f"with {came} for {gone}" if gone and came else f"on {', '.join(sorted(new))}"
        return f"Restarted {moved}, from {source}:"
    return f"Restarted in place from {source}:"


def _outcome(restart: Restart, attempt: Attempt) -> str:
    if restart.recovered_at is not None:
        seconds = (restart.recovered_at - restart.failed_at).total_seconds()
        lost = restart.lost_steps
        return (
            f"{words(seconds)}, {'unknown work' if lost is None else counted(lost, 'step')} lost."
        )
    if attempt.state in LIVE_ATTEMPT_STATES:
        return "no new step yet."
    return "it ended before a new step."


def _incident_line(incident: Incident) -> StoryView:
    reason = incident.reason.rstrip(".")
    recorded = incident.remedy in {None, Remedy.RECORD}
    remedy = "Only recorded." if recorded else f"Remedy: {incident_remedy(incident)}."
    still = "" if incident.state is IncidentState.RESOLVED else " It is still open."
    verdict = f" Judged {incident.verdict}." if incident.verdict else ""
    return StoryView(at=incident.opened_at, text=f"{reason}. {remedy}{still}{verdict}")


def _because(payload: Mapping[str, Any]) -> str:
    reason = str(payload.get("reason") or "").rstrip(".")
    return f": {reason}." if reason else "."


def _node_changed(who: str, event: Mapping[str, Any]) -> str:
    verb = {"ready": "took back", "cordoned": "cordoned", "draining": "drained"}[event["state"]]
    return f"{who} {verb} {event['node']}{_because(event)}"


def _rollback(who: str, event: Mapping[str, Any]) -> str:
    to = f" to step {event['to_step']}" if event.get("to_step") is not None else ""
    skip = event.get("skip")
    skipped = f", leaving out batches {skip[0]} to {skip[1]}" if skip else ""
    return f"{who} asked for a rollback{to}{skipped}{_because(event)}"


def _pinned(who: str, event: Mapping[str, Any]) -> str:
    return f"{who} {'pinned' if event['pinned'] else 'unpinned'} checkpoint {event['checkpoint']}."


def _lost(_: str, event: Mapping[str, Any]) -> str:
    how = "is gone" if event["confirmed"] else "is out of contact"
    return f"Agent {event['worker']} {how}{_because(event)}"


TOLD: Mapping[str, Callable[[str, Mapping[str, Any]], str]] = {
    "run_cancelled": lambda who, event: f"{who} cancelled the run{_because(event)}",
    "run_held": lambda who, event: f"{who} held {_scope(event)}{_because(event)}",
    "run_released": lambda who, event: f"{who} released {_scope(event)}{_because(event)}",
    "restart_asked": lambda who, event: f"{who} asked for a restart{_because(event)}",
    "rollback_asked": _rollback,
    "node_changed": _node_changed,
    "checkpoint_pinned": _pinned,
    "checkpoint_removal_asked": lambda who, e: f"{who} removed checkpoint {e['checkpoint']}.",
    "worker_lost": _lost,
}
"""Events of the journal that the story tells, besides attempts and incidents."""


def _scope(event: Mapping[str, Any]) -> str:
    return "the run" if event.get("run") else "everything"


def matters(entry: Entry) -> bool:
    """True if the story has a sentence for a journal entry, or depends on it."""
    return entry.name in TOLD or entry.name == "stop_worker"


def _journal_lines(journal: Iterable[Entry]) -> list[StoryView]:
    """Sentences for the entries in `TOLD`. The end of an agent with orders to stop gets none."""
    lines: list[StoryView] = []
    dismissed: set[str] = set()
    for entry in journal:
        who = entry.actor.removeprefix("operator:")
        if entry.name == "stop_worker":
            dismissed.add(entry.payload["worker"])
        if entry.name in TOLD and entry.payload.get("worker") not in dismissed:
            lines.append(StoryView(at=entry.at, text=TOLD[entry.name](who, entry.payload)))
    return lines


def _last_line(
    run: Run, attempts: Sequence[Attempt], now: dt.datetime, step: int | None
) -> StoryView:
    end = run.ended_at or now
    restarts = [attempt.restart for attempt in attempts if attempt.restart is not None]
    lost = sum(restart.lost_steps or 0 for restart in restarts)
    known = is_reporting(run)
    unknown = any(
        not known or (r.lost_steps is None and r.recovered_at is not None) for r in restarts
    )
    ratio = time_ledger.ettr(run.ledger, end)
    productive = "" if ratio is None or not known else f", {ratio:.0%} of the time productive"
    account = (
        f"{counted(len(restarts), 'restart')},"
        f" {'an unknown number of steps' if unknown else counted(lost, 'step')} computed again"
        f"{productive}"
    )
    if run.ended_at is None:
        newest = run.best_step if step is None else step
        state = f"It is {run.state.value}" + (f" at step {newest}" if known else "")
        return StoryView(at=now, text=f"{state} ({run.reason.rstrip('.')}): {account}.")
    lasted = words((end - run.submitted_at).total_seconds())
    why = "" if run.state is RunState.SUCCEEDED or not run.reason else f" ({run.reason})"
    verb = {
        RunState.SUCCEEDED: "Succeeded",
        RunState.FAILED: "Failed",
        RunState.CANCELLED: "Was cancelled",
    }[run.state]
    at = f"at step {run.best_step}" if known else "at a step that is not known"
    return StoryView(at=end, text=f"{verb} {at}, after {lasted}{why}: {account}.")
