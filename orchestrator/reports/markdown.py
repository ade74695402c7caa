"""A report as Markdown, for wikis and tickets: all but the pictures. Pure.

Text of programs is escaped: a reason with `|` or `<script>` stays a reason.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from orchestrator.core.text import visible, words
from orchestrator.core.views.models import StoryView
from orchestrator.reports import report as content
from orchestrator.reports.events import RunEvent
from orchestrator.reports.ledger import MEANINGS
from orchestrator.reports.loss_chart import described
from orchestrator.reports.report import Report
from orchestrator.reports.what_if import METHOD

_SPECIAL = re.compile(r"([\\`*_\[\]<>|#~&])")


def escaped(text: object) -> str:
    """Text that Markdown shows as it is, in one line."""
    line = " ".join(visible(str(text)).split())
    line = _SPECIAL.sub(r"\\\1", line)
    return re.sub(r"^([-+]|\d+[.)])(?=\s)", r"\\\1", line)


def table(titles: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table; the cells are escaped."""
    lines = [f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"]
    lines += [f"| {' | '.join(map(escaped, row))} |" for row in rows]
    return "\n".join(lines)


def logbook(run: str, state: str, lines: Sequence[StoryView]) -> str:
    """The logbook alone."""
    story = "\n".join(f"- {line.at:%Y-%m-%d %H:%M:%S} {escaped(line.text)}" for line in lines)
    return f"# Logbook of {escaped(run)}: {state}\n\n{story}\n\nAll times are UTC.\n"


def page(report: Report) -> str:
    """The file."""
    run = report.record.run
    sections = [
        ("Loss", escaped(content.no_curve(report) or described(report.curve, report.events))),
        ("Time", _time(report)),
        ("Events", _events(report.events)),
        ("Other settings", _what_if(report)),
        ("Nodes", _nodes(report)),
        ("Checkpoints", escaped(content.checkpoints_in_words(report))),
        ("Logbook", _logbook(report)),
    ]
    top = [
        f"# {escaped(run.name)}: {run.state}",
        escaped(content.headline(report)),
        table(("", ""), [*content.facts(report), *content.about(report)]),
    ]
    body = [f"## {title}\n\n{text}" for title, text in sections]
    made = f"Made by babysit {report.version} on {report.record.now:%Y-%m-%d at %H:%M:%S} UTC."
    return "\n\n".join([*top, *body, f"{made} All times are UTC."]) + "\n"


def _time(report: Report) -> str:
    ledger = report.time
    if ledger.total <= 0:
        return "No time has passed yet."
    rows: list[Sequence[object]] = [
        (bucket, MEANINGS[bucket], words(seconds), f"{seconds / ledger.total:.1%}")
        for bucket, seconds in ledger.buckets.items()
        if seconds > 0
    ]
    rows.append(("wall time", "since the submission", words(ledger.total), "100.0%"))
    text = table(("where", "what", "time", "share"), rows)
    if not ledger.rows:
        return text
    buckets = [b for b in MEANINGS if any(row.seconds.get(b, 0.0) > 0 for row in ledger.rows)]
    causes = table(
        ("cause", "restarts", *buckets, "together"),
        [
            (
                row.cause,
                row.restarts,
                *(words(row.seconds.get(bucket, 0.0)) for bucket in buckets),
                words(row.total),
            )
            for row in ledger.rows
        ],
    )
    return f"{text}\n\nWhat the lost time was spent on:\n\n{causes}"


def _events(events: Sequence[RunEvent]) -> str:
    if not events:
        return "There was no restart and no incident."
    shown = events[-content.MOST_EVENTS :]
    left = len(events) - len(shown)
    rows = [
        (
            event.number,
            f"{event.at:%Y-%m-%d %H:%M:%S}",
            event.kind,
            event.severity or "-",
            "-" if event.step is None else event.step,
            f"{event.where}: {event.reason}" if event.where else event.reason,
            event.remedy,
            event.cost or "-",
        )
        for event in shown
    ]
    titles = ("no.", "at (UTC)", "what", "severity", "step", "seen", "remedy", "cost")
    more = f"{left:,} older events are left out.\n\n" if left else ""
    return more + table(titles, rows)


def _what_if(report: Report) -> str:
    found = report.what_if
    parts = [" ".join(map(escaped, found.sentences))]
    if found.options:
        rows = [
            (
                option.setting,
                "-" if option.seconds is None else words(option.seconds),
                words(option.lost),
                words(option.saving),
                option.verdict,
            )
            for option in found.options
        ]
        titles = ("setting", "time to the last step", "computed again", "saves", "verdict")
        parts += [table(titles, rows), escaped(METHOD)]
    return "\n\n".join(parts)


def _nodes(report: Report) -> str:
    if not report.nodes.rows:
        return "The run has had no node."
    left = f"{report.nodes.left_out:,} nodes are left out.\n\n" if report.nodes.left_out else ""
    rows = [(row.name, row.held, row.state or "-") for row in report.nodes.rows]
    spares = content.spares_in_words(report)
    return left + table(("node", "held", "now"), rows) + (spares and f"\n{escaped(spares)}")


def _logbook(report: Report) -> str:
    lines = report.record.story[-2 * content.MOST_EVENTS :]
    return "\n".join(f"- {line.at:%Y-%m-%d %H:%M:%S} {escaped(line.text)}" for line in lines)
