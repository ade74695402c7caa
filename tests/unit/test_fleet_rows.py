"""The rows of the fleet: what is looked at, and when."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from jobs.clock import ManualClock
from orchestrator.core.model.states import IncidentState, RunState
from orchestrator.server.fleet import REFRESH_SECONDS, Fleet
from tests.plane import finished_run, incident


async def test_an_incident_is_in_its_row_at_once_although_the_run_has_moved_too() -> None:
    """Steps and losses wait for their next look; incidents do not."""
    clock, store = ManualClock(), SimpleNamespace(run_numbers=_numbers, runs=_none)
    run = finished_run(state=RunState.RUNNING, ended_at=None, reason="trains")
    state = SimpleNamespace(
        runs={run.id: run}, incidents={}, nodes={}, fleet=SimpleNamespace(hold=None)
    )
    state.live_runs = state.runs.values
    plane = SimpleNamespace(
        is_leader=True, state=state, numbers=SimpleNamespace(runs={}), alerts_trouble={},
        database=SimpleNamespace(reason=""), lag=SimpleNamespace(sentence=""),
    )  # fmt: skip
    here: Any = SimpleNamespace(clock=clock, controller=plane, store=store)
    fleet = Fleet(here)
    await fleet.refresh()
    opened = incident(state=IncidentState.OPEN, resolved_at=None)
    state.incidents[opened.id] = opened
    state.runs[run.id] = finished_run(
        state=RunState.RUNNING, ended_at=None, reason="trains", best_step=run.best_step + 1
    )
    clock.advance(REFRESH_SECONDS)
    await fleet.refresh()
    row = fleet.row(run.id)
    assert row is not None
    assert (row.incidents, row.severity) == (1, "warning")


async def _numbers(runs: Any) -> Any:
    return {run.id: SimpleNamespace(step=None, loss=None, restarts=0) for run in runs}


async def _none(**_: Any) -> list[Any]:
    return []
