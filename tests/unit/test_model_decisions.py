"""Decisions about a run: what can be built, and what a run with one waits for."""

from __future__ import annotations

import dataclasses
import datetime as dt

import pytest
from pydantic import TypeAdapter, ValidationError

from monitors.failures import Failure, FailureClass
from orchestrator.core.model.decisions import (
    CarriedOut,
    Decision,
    Finish,
    Retry,
    Rollback,
    RollbackTo,
    Settled,
    Unjudged,
    Vacate,
    awaits_attempt,
    back_off_ends,
)
from orchestrator.core.model.states import RunState
from tests.plane import restart

LATER = dt.datetime(2026, 3, 1, tzinfo=dt.UTC)
FAILURE = Failure(failure_class=FailureClass.HANG, reason="no step for 12 s", signature="hang")
DECISION: TypeAdapter[Decision] = TypeAdapter(Decision)


@pytest.mark.parametrize(
    ("decision", "waits", "retry_at"),
    [
        # Nothing was decided: the run may have nodes.
        (None, True, None),
        # The attempt is not dead yet, or a hold applies: nothing starts.
        (Retry(restart=restart(), stage=Unjudged(failure=FAILURE)), False, None),
        (Retry(restart=restart(), stage=Settled()), False, None),
        (RollbackTo(restart=restart(), step=3), False, None),
        (Vacate(restart=restart(), nodes=("node-1",)), False, None),
        # Carried out, without a back-off: the run wants nodes.
        (Rollback(restart=restart(), onset_step=9, stage=CarriedOut()), True, None),
        # Carried out, and the back-off is not over.
        (Retry(restart=restart(), stage=CarriedOut(retry_at=LATER)), False, LATER),
        # A run that is being ended never wants nodes.
        (Finish(restart=restart(), state=RunState.CANCELLED), False, None),
    ],
)
def test_what_a_run_waits_for(
    decision: Decision | None, waits: bool, retry_at: dt.datetime | None
) -> None:
    assert awaits_attempt(decision) is waits
    assert back_off_ends(decision) == retry_at
    if decision is not None:
        assert DECISION.validate_json(DECISION.dump_json(decision)) == decision


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        # Only a failure is judged: people, other runs and drains have their reasons.
        ("rollback_to", {"stage": {"stage": "unjudged", "failure": FAILURE.model_dump()}}),
        ("vacate", {"stage": {"stage": "unjudged", "failure": FAILURE.model_dump()}}),
        # What is to be judged names its failure.
        ("retry", {"stage": {"stage": "unjudged"}}),
        # A rollback knows where to.
        ("rollback", {"stage": {"stage": "settled"}}),
        ("rollback_to", {}),
        # A run ends in a state that is an end, and not as a success that nobody saw.
        ("finish", {"state": "succeeded"}),
        ("finish", {"state": "running"}),
    ],
)
def test_a_combination_that_means_nothing_is_not_loaded(
    kind: str, change: dict[str, object]
) -> None:
    cause = TypeAdapter(type(restart())).dump_python(restart())
    with pytest.raises(ValidationError):
        DECISION.validate_python({"kind": kind, "restart": cause, **change})


def test_no_decision_but_a_vacation_gives_nodes_back() -> None:
    has = {cls for cls in (Retry, Rollback, RollbackTo, Vacate, Finish) if "nodes" in names(cls)}
    assert has == {Vacate}


def names(cls: type) -> set[str]:
    """Fields of a decision."""
    return {field.name for field in dataclasses.fields(cls)}
