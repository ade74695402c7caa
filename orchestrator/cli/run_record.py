"""Reads the history of a run from the control plane, for reports."""

from __future__ import annotations

from typing import Any

from orchestrator.cli.errors import CliError, ExitCode
from orchestrator.cli.paths import path
from orchestrator.cli.session import Session
from orchestrator.cli.views import read as read_view
from orchestrator.core.views.models import (
    AttemptView,
    CheckpointView,
    IncidentView,
    RunDetail,
    SeriesView,
    StoryView,
)
from orchestrator.reports.record import NodeNow, RunRecord, lost_stretches

POINTS = 1200
"""Points of the curve: more than a screen has columns."""
_UNDONE = 40
"""Stretches of lost steps that are drawn: the longest."""
_UNDONE_POINTS = 80
_INCIDENTS = 1000
_NODES_PAGE = 1000


def read(here: Session, run: str) -> RunRecord:
    """All that a report shows of a run, in a dozen requests and one for each lost stretch.

    Raises:
        CliError: There is no such run, or it may not be seen.
    """
    api = here.api
    detail = read_view(RunDetail, api.get(path("runs", run)))
    attempts = api.get(path("runs", detail.id, "attempts"))
    incidents = api.get(path("incidents"), run=detail.id, limit=_INCIDENTS)
    checkpoints = api.get(path("runs", detail.id, "checkpoints"))
    story = api.get(path("runs", detail.id, "logbook"))
    undone = {
        attempt: _samples(here, detail.id, points=_UNDONE_POINTS, attempt=attempt, first_step=first)
        for attempt, first in lost_stretches(detail.restarts, _UNDONE)
    }
    return RunRecord(
        run=detail,
        now=here.clock.now(),
        attempts=[read_view(AttemptView, each) for each in attempts],
        incidents=[read_view(IncidentView, each) for each in reversed(incidents)],
        checkpoints=[read_view(CheckpointView, each) for each in checkpoints],
        nodes=_nodes(here),
        spares=_spares(here),
        curve=_samples(here, detail.id, points=POINTS),
        undone=undone,
        story=[read_view(StoryView, line) for line in story],
    )


def _samples(here: Session, run: str, **which: Any) -> SeriesView:
    return read_view(SeriesView, here.api.get(path("runs", run, "samples"), **which))


def _spares(here: Session) -> str:
    """The spares of the cluster; empty if this caller may not see them, or of an older server."""
    try:
        return str(here.api.get(path("spares")).get("standing", ""))
    except CliError as error:
        if error.code is ExitCode.NOT_ALLOWED:
            return ""
        raise


def _nodes(here: Session) -> dict[str, NodeNow]:
    """All nodes by name; none if this caller may not see them."""
    found: dict[str, NodeNow] = {}
    after = ""
    while True:
        try:
            page = here.api.get(path("nodes"), after=after, limit=_NODES_PAGE)
        except CliError as error:
            if error.code is ExitCode.NOT_ALLOWED:
                return {}
            raise
        found |= {each["id"]: NodeNow(each["state"], each["reason"]) for each in page}
        if len(page) < _NODES_PAGE:
            return found
        after = page[-1]["id"]
