"""The skeleton of a post-mortem as Markdown: the record is filled in, the rest asked. Pure."""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from orchestrator.core.text import counted, visible, words
from orchestrator.core.views.logbook import TOLD
from orchestrator.core.views.models import EventView, IncidentView
from orchestrator.core.views.phases import PHASES
from orchestrator.reports.events import RunEvent, run_events
from orchestrator.reports.html_sections import content_of
from orchestrator.reports.ledger import phases
from orchestrator.reports.markdown import escaped, table
from orchestrator.reports.record import RunRecord

BEFORE = dt.timedelta(minutes=5)
"""The timeline begins this long before the first incident, at most."""
_MOST_LINES = 300
Journal = Sequence[EventView]
_QUESTIONS = (
    "What was the root cause? Why did it happen now, and not before?",
    "Who noticed first, babysit or a person? Could it have been noticed earlier?",
    "Was the remedy right? If not: `babysit incidents judge INCIDENT wrong`.",
    "Which other runs or nodes could meet the same?",
    "What made it worse, and what went well by luck?",
    "Which actions follow, who does each, and by when?",
)


def post_mortem(
    record: RunRecord, incidents: Sequence[IncidentView], journal: Journal, version: str
) -> str:
    """The file.

    Args:
        record: The run.
        incidents: Those that it is about, oldest first; empty: a run without any.
        journal: The run's journal from :data:`BEFORE` the first of them on.
        version: Of babysit.
    """
    chosen = {incident.id for incident in incidents}
    events = [e for e in run_events(record) if e.incident is not None and e.incident.id in chosen]
    run = record.run
    what = incidents[0].kind.replace("_", " ") if len(incidents) == 1 else "incidents"
    begin = incidents[0].opened_at if incidents else run.submitted_at
    parts = [
        f"# Post-mortem: {escaped(what)} of {escaped(run.name)}, {begin:%Y-%m-%d}",
        _facts(record, incidents, events),
        "## Summary\n\n_To fill in: what happened, and whom it concerned, in two sentences._",
        "## Timeline (UTC)",
        _timeline(record, incidents, events, journal),
        "## Cause, evidence and remedy",
        *(_incident(event) for event in events),
        "## Lost time",
        _lost(events),
        "## What was asked of whom",
        _asked(incidents, journal),
        "## Open questions",
        "\n".join(f"- [ ] {question}" for question in _QUESTIONS),
        f"Exported by babysit {version} on {record.now:%Y-%m-%d at %H:%M:%S} UTC.",
    ]
    if not events:
        parts.insert(2, "The run has no incident.")
    return "\n\n".join(parts) + "\n"


def _facts(record: RunRecord, incidents: Sequence[IncidentView], events: Sequence[RunEvent]) -> str:
    run = record.run
    rows: list[tuple[str, str]] = [
        ("run", f"{run.name} ({run.id}), {run.state}"),
        ("owner", run.owner or "not named"),
        ("project, queue", f"{run.project}, {run.queue}"),
    ]
    if incidents:
        severities = {incident.severity for incident in incidents}
        worst = next((s for s in ("critical", "warning", "info") if s in severities), "")
        open_ = [incident for incident in incidents if incident.resolved_at is None]
        last = max((i.resolved_at for i in incidents if i.resolved_at), default=None)
        rows += [
            ("incidents", ", ".join(incident.id for incident in incidents[:10])),
            ("severity", worst),
            ("began", f"{incidents[0].opened_at:%Y-%m-%d %H:%M:%S}"),
            ("ended", "not yet" if open_ or last is None else f"{last:%Y-%m-%d %H:%M:%S}"),
            ("cost", "; ".join(event.cost for event in events if event.cost) or "none recorded"),
        ]
    return table(("", ""), rows)


# the timeline


def _timeline(
    record: RunRecord,
    incidents: Sequence[IncidentView],
    events: Sequence[RunEvent],
    journal: Journal,
) -> str:
    if not incidents:
        return "Nothing to tell."
    begin, end = incidents[0].opened_at - BEFORE, _end(record, incidents, events)
    lines = [(line.at, line.text) for line in record.story if begin <= line.at <= end]
    chosen = {"", *(incident.id for incident in incidents)}
    near = (e for e in journal if begin <= e.at <= end and _concern(e) in chosen)
    told = ((entry.at, _sentence(entry)) for entry in near)
    lines += [(at, said) for at, said in told if said]
    lines.sort(key=lambda line: line[0])
    lines = [line for n, line in enumerate(lines) if n == 0 or line[1] != lines[n - 1][1]]
    shown = lines[:_MOST_LINES]
    text = "\n".join(f"- {at:%Y-%m-%d %H:%M:%S} {escaped(said)}" for at, said in shown)
    left = len(lines) - len(shown)
    return text + (f"\n\n{counted(left, 'later line')} left out." if left else "")


def _end(
    record: RunRecord, incidents: Sequence[IncidentView], events: Sequence[RunEvent]
) -> dt.datetime:
    """When the last incident was over, and its restart."""
    ends = [incident.resolved_at or record.end for incident in incidents]
    ends += [e.restart.recovered_at for e in events if e.restart and e.restart.recovered_at]
    return max(ends)


def _sentence(entry: EventView) -> str:
    """A journal entry in words; empty for those of no interest, or told by the logbook."""
    say = _SENTENCES.get(entry.name)
    return "" if say is None or entry.name in TOLD else say(entry.payload, _who(entry.actor))


def _who(actor: str) -> str:
    return actor.removeprefix("operator:")


def _notice(payload: Mapping[str, Any], _: str) -> str:
    channel = payload.get("channel") or "the default channel"
    return f"Notice ({payload.get('severity', '')}) to {channel}: {payload.get('text', '')}"


def _changed(payload: Mapping[str, Any], who: str) -> str:
    if payload.get("acknowledge"):
        return f"{who} acknowledged the incident."
    if payload.get("verdict"):
        return f"{who} judged it {payload['verdict']}."
    return f"{who} set the incident to {payload.get('state')}."


def _exited(payload: Mapping[str, Any], _: str) -> str:
    failure = payload.get("failure")
    if not isinstance(failure, dict) or _is_aftermath(failure):
        return ""
    return f"Rank {payload.get('rank')} exited: {failure.get('reason', 'reason not known')}."


def _is_aftermath(failure: Mapping[str, Any]) -> bool:
    """True for a rank that died only because another one did: there may be thousands."""
    stopped = str(failure.get("reason", "")).startswith("stopped by")
    return stopped or failure.get("failure_class") in {"cascade", "preemption"}


def _found(payload: Mapping[str, Any], who: str) -> str:
    finding = payload.get("finding", {})
    return f"{who.replace(':', ' ')} found: {finding.get('reason', '')}."


_SENTENCES: Mapping[str, Callable[[Mapping[str, Any], str], str]] = {
    "notify": _notice,
    "incident_changed": _changed,
    "rank_exited": _exited,
    "finding_raised": _found,
    "ask_delivered": lambda _p, _w: "The question about the remedy reached people.",
    "incident_silenced": lambda p, who: f"{who} silenced the incident: {p.get('reason', '')}",
    "incident_update": lambda p, _: f"{str(p.get('reason', '')).capitalize()}.",
}


# the incidents


def _incident(event: RunEvent) -> str:
    incident = event.incident
    assert incident is not None  # noqa: S101 (events of incidents only)
    rows = [
        ("cause", incident.reason),
        ("where", event.where or "the run"),
        ("onset", "not known" if incident.onset_step is None else f"step {incident.onset_step:,}"),
        ("remedy", event.remedy),
        ("cost", event.cost or "it stopped nothing"),
        ("acknowledged by", incident.acknowledged_by or "nobody"),
        ("judged", incident.verdict or "not yet"),
    ]
    title = f"### {event.at:%H:%M:%S} {escaped(event.kind)} ({incident.severity}), {incident.id}"
    evidence = "\n".join(f"{key}: {content_of(value)}" for key, value in incident.evidence.items())
    return "\n\n".join([title, table(("", ""), rows), fenced(evidence or "no evidence stored")])


def fenced(text: str) -> str:
    """A block of text that cannot end its own fence, whatever it contains."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}text\n{visible(text)}\n{fence}"


def _lost(events: Sequence[RunEvent]) -> str:
    restarts = [event for event in events if event.restart is not None]
    if not restarts:
        return "No restart followed."
    rows = []
    for event in restarts:
        assert event.restart is not None  # noqa: S101 (chosen above)
        spent = phases(event.restart)
        steps = "-" if event.restart.lost_steps is None else event.restart.lost_steps
        parts = [words(spent[phase]) for phase in PHASES]
        rows.append(
            (f"{event.at:%Y-%m-%d %H:%M:%S}", event.kind, *parts, words(sum(spent.values())), steps)
        )
    titles = ("at", "what", *PHASES, "together", "steps computed again")
    return table(titles, rows)


def _concern(entry: EventView) -> str:
    """The id of the incident that a journal entry is about; empty: none."""
    about = entry.payload.get("incident")
    return str(about.get("id", "") if isinstance(about, dict) else about or "")


def _asked(incidents: Sequence[IncidentView], journal: Journal) -> str:
    """Notices about the incidents, and the answers of people."""
    chosen = {incident.id for incident in incidents}
    concerned = [entry for entry in journal if _concern(entry) in chosen]
    rows = [
        (
            f"{entry.at:%Y-%m-%d %H:%M:%S}",
            entry.payload.get("channel") or "the default channel",
            entry.payload.get("text", ""),
            "yes" if entry.payload.get("asks") else "no",
        )
        for entry in concerned
        if entry.name == "notify"
    ]
    answers = [
        f"- {entry.at:%Y-%m-%d %H:%M:%S} {escaped(said)}"
        for entry in concerned
        if entry.name in {"incident_changed", "incident_silenced"} and (said := _sentence(entry))
    ]
    notices = table(("at", "to", "notice", "asks"), rows) if rows else "No notice was sent."
    return f"{notices}\n\n" + ("\n".join(answers) or "Nobody answered.")
