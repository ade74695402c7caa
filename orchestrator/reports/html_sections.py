"""The sections of an HTML report."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from orchestrator.core.text import words
from orchestrator.core.views.phases import PHASES
from orchestrator.reports import report as content
from orchestrator.reports.events import RunEvent
from orchestrator.reports.ledger import MEANINGS, TimeByCause, phases
from orchestrator.reports.loss_chart import loss_charts
from orchestrator.reports.markup import Child, Markup, element
from orchestrator.reports.node_map import NodeRow
from orchestrator.reports.report import Report
from orchestrator.reports.what_if import METHOD, Option

Section = Callable[[Report], list[Child]]
_COLOURS = dict(
    zip(
        PHASES, ("stalled", "starting", "queued", "checkpointing", "restoring", "lost"), strict=True
    )
)
_LONGEST = 4000
"""Characters of one piece of evidence; stacks of many ranks have more."""


def tiles(report: Report) -> Markup:
    """The figures at the top."""
    rows = [
        element("div", element("dt", name), element("dd", value))
        for name, value in content.facts(report)
    ]
    return element("dl", rows, class_="tiles")


def loss(report: Report) -> list[Child]:
    """The curve, with its key, or why there is none."""
    if why := content.no_curve(report):
        return [element("p", why)]
    saved = [each.step for each in report.loadable]
    key = (
        "Numbers are those of the events below: a circle is a restart, a square a rollback, a "
        "hollow circle an incident that stopped nothing. An arrow goes back to the step from which "
        "the run went on; dashed lines are losses that were computed again; green ticks are "
        "checkpoints that can be loaded."
    )
    said = [key]
    if report.curve.band:
        said.append("The shaded band is the lowest and the highest loss within each point.")
    if report.curve.lost:
        said.append("Red bars: losses that are NaN or infinite, or were not reported.")
    if report.curve.sparse:
        said.append("The script reports a loss for some steps only.")
    chart = loss_charts(report.curve, report.events, saved)
    return [element("figure", chart, element("figcaption", " ".join(said)))]


def time(report: Report) -> list[Child]:
    """The time ledger: by bucket, then its losses by cause."""
    ledger = report.time
    if ledger.total <= 0:
        return [element("p", "No time has passed yet.")]
    rows = [
        element(
            "tr",
            element("th", _swatch(bucket), bucket, scope="row"),
            _cell(MEANINGS[bucket], "meaning"),
            _number(words(seconds), "time"),
            _number(f"{seconds / ledger.total:.1%}", "share"),
        )
        for bucket, seconds in ledger.buckets.items()
        if seconds > 0
    ]
    total = element(
        "tr", element("th", "wall time", scope="row"), _cell("since the submission", "meaning"),
        _number(words(ledger.total), "time"), _number("100.0%", "share"), class_="sum",
    )  # fmt: skip
    table = _table(("where", "what", "#time", "#share"), [*rows, total], "Wall time of the run")
    return [_bar(ledger.buckets, MEANINGS), table, *_by_cause(ledger)]


def _by_cause(ledger: TimeByCause) -> list[Child]:
    if not ledger.rows:
        return []
    buckets = [b for b in MEANINGS if any(row.seconds.get(b, 0.0) > 0 for row in ledger.rows)]
    rows = [
        element(
            "tr",
            element("th", row.cause, scope="row"),
            _number(row.restarts or "-", "restarts"),
            *(_number(words(row.seconds.get(bucket, 0.0)), bucket) for bucket in buckets),
            _number(words(row.total), "together"),
        )
        for row in ledger.rows
    ]
    sums = [sum(row.seconds.get(bucket, 0.0) for row in ledger.rows) for bucket in buckets]
    total = element(
        "tr",
        element("th", "all causes", scope="row"),
        _number(sum(row.restarts for row in ledger.rows), "restarts"),
        *(_number(words(s), b) for s, b in zip(sums, buckets, strict=True)),
        _number(words(sum(sums)), "together"),
        class_="sum",
    )
    titles = ("cause", "#restarts", *(f"#{bucket}" for bucket in buckets), "#together")
    return [
        element("h3", "What the lost time was spent on"),
        _table(titles, [*rows, total], "Lost time by cause; columns add up to the rows above"),
    ]


def restarts(report: Report) -> list[Child]:
    """Every restart with its phases."""
    events = report.restarts
    if not events:
        return [element("p", "There was no restart.")]
    shown = events[-content.MOST_EVENTS :]
    rows = [_restart(event) for event in shown]
    titles = ("event", "what was seen", "remedy", "#steps lost", "phases")
    key = [element("li", _swatch(_COLOURS[phase]), phase) for phase in PHASES]
    return [
        _left_out(len(events) - len(shown), "older restarts"),
        element("ul", key, class_="key"),
        _table(titles, rows, "Restarts, oldest first; times are UTC"),
    ]


def _restart(event: RunEvent) -> Markup:
    restart = event.restart
    assert restart is not None  # noqa: S101 (events of restarts only)
    spent = phases(restart)
    parts = [f"{phase} {words(seconds)}" for phase, seconds in spent.items() if seconds >= 0.05]
    total = words(sum(spent.values())) if restart.recovered_at else "not recovered"
    resumed = "" if restart.resumed_step is None else f", from step {restart.resumed_step:,}"
    return element(
        "tr",
        element("th", _title(event), scope="row"),
        _cell([event.where, ": " if event.where else "", restart.reason], "seen"),
        _cell(f"{restart.remedy}{resumed}", "remedy"),
        _number("-" if restart.lost_steps is None else f"{restart.lost_steps:,}", "steps lost"),
        _cell(
            [
                element("strong", total),
                _bar({_COLOURS[p]: s for p, s in spent.items()}, {}, small=True),
                element("span", ", ".join(parts), class_="dim"),
            ],
            "phases",
        ),
        id=f"event-{event.number}",
        class_=event.tone,
    )


def _title(event: RunEvent) -> list[Child]:
    return [
        element("span", str(event.number), class_="number"),
        event.kind,
        element("br"),
        element("span", f"{event.at:%Y-%m-%d %H:%M:%S}", class_="dim"),
    ]


def what_if(report: Report) -> list[Child]:
    """Savings by another interval or more spares."""
    found = report.what_if
    said: list[Child] = [element("p", sentence) for sentence in found.sentences]
    if not found.options:
        return said
    rows = [_option(option) for option in found.options]
    titles = (
        "setting",
        "#time to the last step",
        "#computed again",
        "#saves",
        "#no nodes",
        "verdict",
    )
    return [
        *said,
        _table(titles, rows, "Replays of the run with other settings"),
        element("p", METHOD, class_="dim"),
    ]


def _option(option: Option) -> Markup:
    return element(
        "tr",
        element("th", option.setting, scope="row"),
        _number("-" if option.seconds is None else words(option.seconds), "time"),
        _number(words(option.lost), "computed again"),
        _number(words(option.saving), "saves"),
        _number(words(option.waiting), "no nodes"),
        _cell(option.verdict, "verdict"),
    )


def incidents(report: Report) -> list[Child]:
    """Every incident with its cause, its remedy and its evidence."""
    events = report.incidents
    if not events:
        return [element("p", "There was no incident.")]
    shown = events[-content.MOST_EVENTS :]
    return [_left_out(len(events) - len(shown), "older incidents"), *map(_incident, shown)]


def _incident(event: RunEvent) -> Markup:
    incident = event.incident
    assert incident is not None  # noqa: S101 (events of incidents only)
    tone = "bad" if incident.severity == "critical" else "dim"
    resolved = incident.resolved_at
    rows: list[tuple[str, Child]] = [
        ("seen", incident.reason),
        ("where", event.where or "the run"),
        ("onset", "" if incident.onset_step is None else f"step {incident.onset_step:,}"),
        ("decided", incident.remedy or "nothing; it was recorded"),
        ("cost", event.cost),
        ("acknowledged", f"by {incident.acknowledged_by}" if incident.acknowledged_by else ""),
        ("resolved", f"{resolved:%Y-%m-%d %H:%M:%S}" if resolved else "not yet"),
        ("judged", incident.verdict or ""),
        ("id", incident.id),
    ]
    listed = [[element("dt", name), element("dd", value)] for name, value in rows if value]
    return element(
        "article",
        element(
            "h3",
            element("span", str(event.number), class_="number"),
            event.kind, " ", element("span", incident.severity, class_=tone),
            " ", element("span", f"{event.at:%Y-%m-%d %H:%M:%S}", class_="dim"),
        ),
        element("dl", listed),
        _evidence(incident.evidence),
        id=None if event.restart else f"event-{event.number}",
        class_=event.tone,
    )  # fmt: skip


def _evidence(evidence: dict[str, Any]) -> Markup | None:
    if not evidence:
        return None
    said = [f"{key}: {content_of(value)}" for key, value in evidence.items()]
    return element("details", element("summary", "Evidence"), element("pre", "\n".join(said)))


def content_of(value: object) -> str:
    """One piece of evidence as text, cut where it is too long to read."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, indent=1)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]} … ({len(text):,} characters)"


def nodes(report: Report) -> list[Child]:
    """Which node held which ranks in which attempt."""
    found = report.nodes
    if not found.rows:
        return [element("p", "The run has had no node.")]
    titles = ("node", "over the wall time", "held", "now")
    return [
        _left_out(found.left_out, "nodes"),
        element(
            "ul",
            element("li", _swatch("checkpointing"), "an attempt"),
            element("li", _swatch("lost"), "an attempt that ended because of this node"),
            class_="key",
        ),
        _table(titles, map(_node, found.rows), "Nodes of the run; those with failures first"),
        element("p", content.spares_in_words(report)),
    ]


def _node(row: NodeRow) -> Markup:
    bars = [
        element(
            "span",
            style=f"--of:var(--{'lost' if stay.failed else 'checkpointing'});"
            f"left:{100 * stay.begin:.2f}%;width:{max(0.3, 100 * (stay.end - stay.begin)):.2f}%",
        )
        for stay in row.stays
    ]
    return element(
        "tr",
        element("th", row.name, scope="row"),
        _cell(element("div", bars, class_="track", aria_hidden="true"), None),
        _cell(row.held, "held"),
        _cell(row.state or "-", "now"),
    )


def checkpoints(report: Report) -> list[Child]:
    """The stored checkpoints."""
    said = element("p", content.checkpoints_in_words(report))
    stored = report.record.checkpoints
    if not stored:
        return [said]
    rows = [
        element(
            "tr",
            element("th", f"step {each.step:,}", scope="row"),
            _cell(each.tier, "tier"),
            _cell(each.trust, "trust"),
            _number(each.attempt, "attempt"),
            _number(content.size(each.bytes), "size"),
            _cell(f"{each.created_at:%Y-%m-%d %H:%M:%S}", "written"),
            _cell(content.notes_of(each), "notes"),
        )
        for each in stored[: content.MOST_CHECKPOINTS]
    ]
    titles = ("step", "tier", "trust", "#attempt", "#size", "written", "notes")
    table = _table(titles, rows, "Checkpoints, newest step first")
    return [said, _left_out(len(stored) - len(rows), "older checkpoints"), table]


def logbook(report: Report) -> list[Child]:
    """The story in sentences."""
    lines = report.record.story
    shown = lines[-2 * content.MOST_EVENTS :]
    rows = [
        element(
            "tr", element("th", f"{line.at:%Y-%m-%d %H:%M:%S}", scope="row"), _cell(line.text, None)
        )
        for line in shown
    ]
    return [
        _left_out(len(lines) - len(shown), "older lines"),
        _table(("time", "what happened"), rows, "The logbook, oldest first"),
    ]


def about(report: Report) -> list[Child]:
    """The owner, the command and the spec, without the values of its environment."""
    rows = [[element("dt", key), element("dd", value)] for key, value in content.about(report)]
    spec = report.record.run.spec.model_dump(mode="json", exclude_defaults=True)
    if "env" in spec:
        spec["env"] = dict.fromkeys(spec["env"], "(left out)")
    text = json.dumps(spec, indent=2, ensure_ascii=False)
    return [
        element("article", element("dl", rows)),
        element("details", element("summary", "Spec"), element("pre", text)),
    ]


# parts


def _swatch(colour: str) -> Markup:
    return element("span", class_="swatch", style=f"--of:var(--{colour})", aria_hidden="true")


def _bar(parts: dict[str, float] | Any, meanings: Any, *, small: bool = False) -> Markup:
    """A stacked bar; its figures are in the text beside it."""
    spans = [
        element(
            "span",
            style=f"--of:var(--{colour});flex:{seconds:.4f} 1 0",
            title=f"{colour}: {words(seconds)}" if meanings else None,
        )
        for colour, seconds in parts.items()
        if seconds > 0
    ]
    return element("div", spans, class_=f"bar{' small' if small else ''}", aria_hidden="true")


def _left_out(count: int, what: str) -> Markup | None:
    return element("p", f"{count:,} {what} are left out.") if count > 0 else None


def _cell(value: Child, label: str | None) -> Markup:
    return element("td", value, class_="text", data_label=label if value else None)


def _number(value: object, label: str) -> Markup:
    return element("td", str(value), class_="n", data_label=label)


def _table(titles: Sequence[str], rows: Iterable[Markup], caption: str) -> Markup:
    """A table, which becomes a list of cards where it is narrow; `#` before a title: numbers."""
    head = [
        element("th", title.removeprefix("#"), scope="col", class_="n" if title[0] == "#" else None)
        for title in titles
    ]
    table = element(
        "table",
        element("caption", caption),
        element("thead", element("tr", head)),
        element("tbody", rows),
        class_="cards",
    )
    return element("div", table, class_="scroll")
