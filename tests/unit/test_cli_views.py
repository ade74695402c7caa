"""The command line reads views of servers of other versions."""

from __future__ import annotations

import datetime as dt
import inspect
from typing import Any, Literal

import pytest

from jobs.spec import RunSpec
from orchestrator.cli.errors import CliError
from orchestrator.cli.views import read
from orchestrator.core.model.states import RunState
from orchestrator.core.views import models
from orchestrator.core.views.models import IncidentView, NodeView, RunDetail

NODE = {
    "id": "n1",
    "state": "ready",
    "reason": "",
    "by": "",
    "gpus": 8,
    "cpus": 4,
    "memory_bytes": 1,
    "labels": {},
    "runs": ["tiny"],
    "refused": [],
    "faults": [],
    "maintenance": [],
}
RUN: dict[str, Any] = {
    "id": "r",
    "name": "tiny",
    "state": "running",
    "restarts": [{"attempt": 2}],
    "submitted_at": "2026-03-01T00:00:00Z",
    "spec": {"name": "tiny", "command": ["true"], "resources": {"nodes": 1, "new": 2}, "later": {}},
}


def test_fields_that_an_older_server_does_not_send_are_null_or_empty() -> None:
    node = read(NodeView, NODE)
    assert (node.lemon_score, node.runs, node.gpus) == (None, ["tiny"], 8)
    for name in set(NODE) - {"id"}:
        older = {key: value for key, value in NODE.items() if key != name}
        assert not getattr(read(NodeView, older), name), name
        assert name not in older, "the answer itself stays"


def test_fields_that_a_newer_server_sends_are_left_out_at_any_depth() -> None:
    run = read(RunDetail, {**RUN, "mood": "good"})
    assert run.spec == RunSpec.model_validate(
        {"name": "tiny", "command": ["true"], "resources": {"nodes": 1}}
    )
    assert (run.restarts[0].attempt, run.restarts[0].failure_class) == (2, "")
    assert (run.loss, run.node_names, run.seconds, run.checkpoint) == (None, [], {}, None)


VIEWS = [
    each
    for _, each in inspect.getmembers(models, inspect.isclass)
    if issubclass(each, models.View) and each is not models.View
]


@pytest.mark.parametrize("kind", VIEWS)
def test_any_field_of_a_plain_kind_may_be_new(kind: type[models.View]) -> None:
    """Fails for a view with a new field for which there is no empty value: give it a default."""
    stays = {RunState: "running", RunSpec: RUN["spec"], Literal["event", "instruction"]: "event"}
    fields: dict[str, Any] = {name: each.annotation for name, each in kind.model_fields.items()}
    read(kind, {name: stays[each] for name, each in fields.items() if each in stays})


@pytest.mark.parametrize("wrong", [{**NODE, "gpus": "many"}, [], None, "x"])
def test_an_answer_of_another_kind_is_refused_with_a_way_on(wrong: object) -> None:
    with pytest.raises(CliError, match="install the version that the server has"):
        read(NodeView, wrong)


def test_an_answer_that_fits_is_read_as_it_is() -> None:
    at = dt.datetime(2026, 3, 1, tzinfo=dt.UTC)
    view = read(
        IncidentView, {"id": "i", "run": "r", "opened_at": at, "remedy_at": None, "evidence": {}}
    )
    assert (view.opened_at, view.response, view.remedy_at) == (at, "acted", None)
