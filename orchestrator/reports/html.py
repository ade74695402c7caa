"""A report as one HTML file without scripts and requests, readable on a phone and on paper."""

from __future__ import annotations

from orchestrator.core.text import counted
from orchestrator.reports import html_sections as sections
from orchestrator.reports.markup import Markup, element
from orchestrator.reports.report import Report, headline
from orchestrator.reports.style import STYLE

_POLICY = "default-src 'none'; style-src 'unsafe-inline'"
"""Should anything ever slip through the escaping, a browser loads and runs nothing of it."""
_SECTIONS = (
    ("loss", "Loss", sections.loss),
    ("time", "Time", sections.time),
    ("restarts", "Restarts", sections.restarts),
    ("what-if", "Other settings", sections.what_if),
    ("incidents", "Incidents", sections.incidents),
    ("nodes", "Nodes", sections.nodes),
    ("checkpoints", "Checkpoints", sections.checkpoints),
    ("logbook", "Logbook", sections.logbook),
    ("run", "About the run", sections.about),
)


def page(report: Report) -> str:
    """The file."""
    name = report.record.run.name
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", http_equiv="Content-Security-Policy", content=_POLICY),
        element("meta", name="robots", content="noindex"),
        element("title", f"{name}: report of a training run"),
        element("style", Markup(STYLE)),
    )
    body = element(
        "body",
        element("header", _top(report), _contents()),
        element("main", [_section(report, *each) for each in _SECTIONS]),
        element("footer", _made(report)),
    )
    return f"<!doctype html>\n{element('html', head, body, lang='en')}\n"


def _top(report: Report) -> list[Markup]:
    run = report.record.run
    tone = {"succeeded": "good", "running": "good", "failed": "bad"}.get(run.state, "dim")
    return [
        element("h1", run.name, " ", element("span", run.state, class_=f"state {tone}")),
        element("p", headline(report), class_="text"),
        sections.tiles(report),
    ]


def _contents() -> Markup:
    links = [element("a", title, href=f"#{id_}") for id_, title, _ in _SECTIONS]
    return element("nav", links, aria_label="Contents")


def _section(report: Report, name: str, title: str, content: sections.Section) -> Markup:
    return element("section", element("h2", title), content(report), id=name, aria_label=title)


def _made(report: Report) -> str:
    run, now = report.record.run, report.record.now
    open_ = "" if run.ended_at else " The run was not over."
    return (
        f"Made by babysit {report.version} on {now:%Y-%m-%d at %H:%M:%S} UTC from run {run.id}."
        f"{open_} All times are UTC. {counted(len(report.events), 'event')}."
    )
