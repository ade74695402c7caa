"""The messages for Slack: blocks, and the same in plain text for notifications and phones.

Pure. Limits of lengths are Slack's: 3000 characters in the text of a section, 2000 in a field, and
40000 in `text`, of which it recommends 4000.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import math
from collections.abc import Sequence
from typing import Any

from monitors.types import Severity
from orchestrator.alerts.threads import Thread
from orchestrator.core.messages.instructions import IncidentUpdate
from orchestrator.core.model.states import IncidentState
from orchestrator.core.text import counted, named, words
from orchestrator.core.views.remedy_text import incident_remedy

_SECTION, _FIELD, _TEXT = 2900, 1900, 3900
_SUBJECTS = 8
"""Subjects that are named; of the others, the number is said."""


@dataclasses.dataclass(frozen=True)
class Message:
    """A message: its blocks, and the text that stands for them where blocks are not shown."""

    text: str
    blocks: list[dict[str, Any]]


def parent(
    thread: Thread, *, link: str = "", mention: str = "", now: dt.datetime | None = None
) -> Message:
    """The message about a problem, as it is now.

    Args:
        thread: The problem.
        link: URL of the page, in which `{run}` and `{incident}` stand for ids; empty: no link.
        mention: Slack's words for who is pinged, such as `<!here>`; empty: nobody.
        now: The time, for the minutes left until a remedy starts; None: they are not said.
    """
    head = thread.head
    if head is None:
        return _of_notice(thread, mention)
    name, runs = head.run_name or head.run, thread.runs
    who = counted(len(runs), "run") if len(runs) > 1 else escape(name)
    title = f"{_icon(head)} *{who}*: {_heading(thread, head)}"
    facts = _facts(thread, head) + _countdown(thread, now)
    cause = [head.incident.reason]
    if thread.notice is not None and thread.notice.text != head.incident.reason:
        cause.append(thread.notice.text)
    commands = f"`babysit incidents show {head.incident.id}`"
    if len(runs) > 1:
        commands = "`babysit incidents ls --open`"
    link = link.replace("{run}", head.run).replace("{incident}", head.incident.id)
    foot = f"<{link}|Open {escape(name)}> · " if link else ""
    blocks = [
        _section(f"{mention} {title}".strip()),
        *(_section(escape(cut(text, _SECTION // 2))) for text in cause),
        {"type": "section", "fields": [_field(name, value) for name, value in facts]},
        {"type": "context", "elements": [_markdown(foot + commands)]},
    ]
    lines = [title, *map(escape, cause), *(f"{n}: {escape(v)}" for n, v in facts)]
    if link:
        lines.append(link)
    blocks += _note(thread)
    text = f"{mention} ".lstrip() + "\n".join(lines)
    return Message(cut(text, _TEXT), blocks)


def _note(thread: Thread) -> list[dict[str, Any]]:
    if not thread.note:
        return []
    return [{"type": "context", "elements": [_markdown(escape(cut(thread.note, _FIELD)))]}]


def _of_notice(thread: Thread, mention: str) -> Message:
    assert thread.notice is not None  # noqa: S101 (a thread begins with one or the other)
    notice = thread.notice
    icon = ":red_circle:" if notice.severity is Severity.CRITICAL else ":large_yellow_circle:"
    text = cut(f"{mention} {icon} {escape(notice.text)}".strip(), _SECTION)
    return Message(text, [_section(text), *_note(thread)])


def standing(thread: Thread) -> str:
    """Where a problem stands, for a line below its message; with the lost time once it is over."""
    lost = dict(_facts(thread, thread.head)).get("Lost time") if thread.head else None
    return thread.standing + (f". Lost time: {lost}" if lost else "")


def _heading(thread: Thread, head: IncidentUpdate) -> str:
    incident = head.incident
    many = len(thread.updates)
    count = f", {many} of them" if many > 1 else ""
    return f"{incident.kind}{count} ({thread.severity}). {thread.standing}"


def _facts(thread: Thread, head: IncidentUpdate) -> list[tuple[str, str]]:
    """The facts that people look for first, by name; unknown ones are left out."""
    incident = head.incident
    runs = list(thread.runs.values())
    several = [("Runs", named(sorted(runs), _SUBJECTS))] if len(runs) > 1 else []
    subjects = sorted({u.incident.subject for u in thread.updates.values() if u.incident.subject})
    facts = several + ([("Where", named(subjects, _SUBJECTS))] if subjects else [])
    if head.node and not any(head.node in subject for subject in subjects):
        facts.append(("Node", head.node))
    step = f"{head.step}"
    if incident.onset_step is not None:
        step = f"onset {incident.onset_step}, best {head.step}"
    if not several:
        facts += [("Step", step), ("Attempt", str(incident.attempt))]
    if remedy := incident_remedy(incident):
        facts.append(("Remedy", remedy))
    lost = [u.lost_seconds for u in thread.updates.values() if u.lost_seconds is not None]
    if lost:
        # Incidents of one problem overlap: the longest is what the run has lost.
        again = f", {counted(head.lost_steps, 'step')} computed again" if head.lost_steps else ""
        facts.append(("Lost time", words(max(lost)) + again))
    else:
        facts.append(("Since", f"{incident.opened_at:%Y-%m-%d %H:%M} UTC"))
    return facts


def _countdown(thread: Thread, now: dt.datetime | None) -> list[tuple[str, str]]:
    """The minutes until a remedy starts, with the time at which that was so: edits may be late."""
    if now is None or thread.starts_at is None or thread.starts_at <= now:
        return []
    minutes = math.ceil((thread.starts_at - now).total_seconds() / 60)
    return [("Time to answer", f"{minutes} min left at {now:%H:%M} UTC")]


def _icon(head: IncidentUpdate) -> str:
    if head.incident.state is IncidentState.RESOLVED:
        return ":white_check_mark:"
    if head.incident.severity is Severity.CRITICAL:
        return ":red_circle:"
    return ":large_yellow_circle:"


def joined(thread: Thread, runs: Sequence[str]) -> str:
    """The runs that have a problem, each with where it struck, for a line below the message."""
    lines = []
    for run in runs:
        own = thread.of_run(run)
        subjects = sorted({u.incident.subject for u in own.updates.values() if u.incident.subject})
        where = f": {named(subjects, _SUBJECTS)}" if subjects else ""
        lines.append(f"{own.runs[run]}{where}")
    return "Runs with this problem:\n" + "\n".join(lines)


def reply(text: str, *, mention: str = "") -> Message:
    """A line below a message."""
    line = cut(f"{mention} {escape(text)}".strip(), _SECTION)
    return Message(line, [_section(line)])


def escape(text: str) -> str:
    """Text with the three characters that Slack reads as markup written out."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def cut(text: str, most: int) -> str:
    """At most `most` characters of a text, with an ellipsis where some are missing."""
    return text if len(text) <= most else text[: most - 1] + "…"


def _markdown(text: str) -> dict[str, Any]:
    return {"type": "mrkdwn", "text": text}


def _section(text: str) -> dict[str, Any]:
    return {"type": "section", "text": _markdown(cut(text, _SECTION))}


def _field(name: str, value: str) -> dict[str, Any]:
    return _markdown(f"*{name}*\n{cut(escape(value), _FIELD)}")
