"""Incidents of several runs with one cause bear the key of the first."""

from __future__ import annotations

import datetime as dt
from typing import Any

import pytest

from monitors.failures import FailureClass
from monitors.types import FindingKind, Severity
from orchestrator.core.model.entities import Incident
from orchestrator.core.model.states import IncidentState
from orchestrator.core.policy.cascades import WINDOW, began_with
from tests.world import World, spec


def world() -> World:
    world = World(nodes=4)
    for run, project in (("run-1", "default"), ("run-2", "default"), ("run-3", "other")):
        world.submit(spec(project=project), run)
    world.state.put(incident())
    return world


def incident(**changes: Any) -> Incident:
    fields: dict[str, Any] = {
        "id": "inc-1",
        "run": "run-1",
        "attempt": 2,
        "kind": FailureClass.NETWORK,
        "severity": Severity.CRITICAL,
        "reason": "connection reset by peer",
        "opened_at": dt.datetime(2026, 1, 1, tzinfo=dt.UTC),
    }
    return Incident(**{**fields, **changes})


SOON = incident().opened_at + dt.timedelta(seconds=90)


@pytest.mark.parametrize(
    "kind", [FailureClass.NETWORK, FailureClass.WORKER_LOST, FailureClass.COLLECTIVE_TIMEOUT]
)
def test_another_run_that_shows_the_same_cause_joins(kind: FailureClass) -> None:
    here = world()
    assert began_with(here.state, here.run("run-2"), kind, SOON) == "run-1/network/2"


def test_the_key_is_that_of_the_first_of_all() -> None:
    here = world()
    here.state.put(incident(id="inc-2", run="run-2", opened_at=SOON, cascade="run-9/network/1"))
    here.state.put(incident(state=IncidentState.RESOLVED))
    later = SOON + dt.timedelta(seconds=90)
    assert began_with(here.state, here.run("run-1"), FailureClass.NETWORK, later) == (
        "run-9/network/1"
    )


def test_a_chain_of_failures_is_not_one_cascade_for_ever() -> None:
    here = world()
    begins, kind = incident().opened_at, FailureClass.NETWORK
    keys = []
    for minute in range(1, 30):
        run = f"run-{1 + minute % 2}"
        now = begins + dt.timedelta(minutes=minute)
        key = began_with(here.state, here.run(run), kind, now)
        here.state.put(
            incident(id=f"m-{minute}", run=run, attempt=minute, opened_at=now, cascade=key)
        )
        keys.append(key)
    assert keys[:10] == ["run-1/network/2"] * 10
    assert keys[10] == ""  # begins another, which the next ones join
    assert keys[11] == keys[20] == "run-2/network/11"


@pytest.mark.parametrize(
    ("run", "kind", "now"),
    [
        ("run-1", FailureClass.NETWORK, SOON),  # its own
        ("run-3", FailureClass.NETWORK, SOON),  # other readers
        ("run-2", FailureClass.STORAGE, SOON),  # another cause
        ("run-2", FailureClass.USER_CODE, SOON),  # of one run's own making
        ("run-2", FindingKind.LOSS_SPIKE, SOON),
        ("run-2", FailureClass.NETWORK, incident().opened_at + WINDOW * 2),  # too late
    ],
)
def test_what_has_another_cause_does_not_join(
    run: str, kind: FailureClass, now: dt.datetime
) -> None:
    here = world()
    assert began_with(here.state, here.run(run), kind, now) == ""
