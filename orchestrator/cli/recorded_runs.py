"""Reads recorded runs from the control plane, for a backtest."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any

from jobs.events import RankSamples
from jobs.spec import Action
from monitors.types import Sample
from orchestrator.cli.errors import CliError, ExitCode
from orchestrator.cli.output import say
from orchestrator.cli.paths import path
from orchestrator.cli.session import Session
from orchestrator.cli.views import read as read_view
from orchestrator.controller.sample_columns import unpack
from orchestrator.core.views.models import AttemptView, EventView, IncidentView, RunDetail
from orchestrator.errors import InvalidError
from orchestrator.judgement.backtest import History, RunBacktest, RunResult
from orchestrator.judgement.changed_settings import changed

_INCIDENTS = 1000
_RUNS = 1000
_EVENTS = 5000
_NUMBERS = ("loss", "grad_norm", "tokens", "seconds", "blocked_seconds", "learning_rate")
Part = dict[str, Any]


def runs(here: Session, named: Sequence[str], since: str | None) -> list[str]:
    """The ids of runs: those that are named, or those submitted since a time, newest first.

    Raises:
        CliError: A named run does not exist.
    """
    if named:
        return [here.api.get(path("runs", each))["id"] for each in named]
    found = here.api.get(path("runs"), limit=_RUNS)
    first = None if since is None else dt.datetime.fromisoformat(since)
    recent = [each for each in found if first is None or _submitted(each) >= first]
    if len(found) == _RUNS and len(recent) == _RUNS:
        say(f"Only the newest {_RUNS} runs are read: name the others.")
    return [each["id"] for each in recent if each["attempt"]]


def _submitted(run: dict[str, Any]) -> dt.datetime:
    return dt.datetime.fromisoformat(run["submitted_at"])


def history(here: Session, run: str) -> History:
    """The record of a run besides its samples."""
    api = here.api
    incidents = api.get(path("incidents"), run=run, limit=_INCIDENTS)
    if len(incidents) == _INCIDENTS:
        say(f"{run}: only the newest {_INCIDENTS} incidents are read.")
    return History(
        run=read_view(RunDetail, api.get(path("runs", run))),
        attempts=[read_view(AttemptView, each) for each in api.get(path("runs", run, "attempts"))],
        incidents=[read_view(IncidentView, each) for each in reversed(incidents)],
        acts=list(_acts(here, run)),
    )


def _acts(here: Session, run: str) -> Iterator[EventView]:
    after = 0
    while True:
        page = here.api.get(path("runs", run, "events"), after=after, limit=_EVENTS, kind="event")
        yield from (read_view(EventView, each) for each in page if each["name"] == "rollback_asked")
        if len(page) < _EVENTS:
            return
        after = page[-1]["position"]


def backtest(
    here: Session, recorded: History, settings: dict[str, str], policy: Action | None
) -> RunResult:
    """Feed one run to the monitors, with its settings and with other ones.

    Raises:
        CliError: The other settings do not go with the spec of the run.
    """
    run = recorded.run
    try:
        other = changed(run.spec, settings, policy)
    except InvalidError as error:
        raise CliError(f"{run.name}: {error}", ExitCode.USAGE) from error
    test = RunBacktest(recorded, other)
    parts: list[Part] = here.api.get(path("runs", run.id, "records"))
    for attempt, group in groupby(parts, key=lambda part: part["attempt"]):
        ranks = list(group)
        speaker = min(ranks, key=lambda part: (part["losses"] == 0, part["rank"]))["rank"]
        # A rank that never had a finite loss has none to judge: in a pipeline, an early stage.
        told = [part for part in ranks if part["losses"] or part["rank"] == speaker]
        test.attempt(attempt, speaker, [_samples(here, run.id, part) for part in told])
    return test.result()


def _samples(here: Session, run: str, part: Part) -> Iterator[Sample]:
    after = -1
    while after < part["last_step"]:
        place = path("runs", run, "records", str(part["attempt"]), str(part["rank"]))
        page = here.api.get(place, after=after)
        if not page["step"]:
            return
        columns = {name: [float(value) for value in page[name]] for name in _NUMBERS}
        yield from unpack(part["attempt"], RankSamples(rank=part["rank"], **{**page, **columns}))
        after = page["step"][-1]
