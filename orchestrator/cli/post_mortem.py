"""Reads what a post-mortem needs from the control plane."""

from __future__ import annotations

from orchestrator.cli.errors import CliError, ExitCode
from orchestrator.cli.journal import Journal
from orchestrator.cli.paths import path
from orchestrator.cli.run_record import read
from orchestrator.cli.session import Session
from orchestrator.cli.views import read as read_view
from orchestrator.core.views.models import EventView, IncidentView
from orchestrator.reports.post_mortem import BEFORE, post_mortem
from orchestrator.version import package_version


def export(here: Session, what: str) -> str:
    """The post-mortem of one incident, or of all incidents of a run.

    Raises:
        CliError: There is neither.
    """
    run, incident = _resolved(here, what)
    record = read(here, run)
    chosen = [each for each in record.incidents if incident in {None, each.id}]
    if incident is not None and not chosen:  # older than those that a record has
        chosen = [read_view(IncidentView, here.api.get(path("incidents", incident)))]
    since = chosen[0].opened_at - BEFORE if chosen else record.now
    journal = Journal(here.api, path("runs", record.run.id, "events"), since=since)
    entries = [read_view(EventView, row) for row in journal.newest(None)]
    return post_mortem(record, chosen, entries, package_version())


def _resolved(here: Session, what: str) -> tuple[str, str | None]:
    """A run and an incident of it; None: all of them. A name of a run wins over an incident."""
    try:
        run = here.api.get(path("runs", what))
        if what in {run["name"], run["id"]}:
            return run["id"], None
    except CliError as error:
        if error.code is not ExitCode.NOT_FOUND:
            raise
        run = None
    try:
        found = here.api.get(path("incidents", what))
    except CliError as error:
        if error.code is not ExitCode.NOT_FOUND:
            raise
        if run is None:
            message = f"there is no run and no incident {what}; see `babysit incidents ls`"
            raise CliError(message, ExitCode.NOT_FOUND) from error
        return run["id"], None
    return found["run"], found["id"]
