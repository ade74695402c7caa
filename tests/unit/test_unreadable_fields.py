"""Optional fields of agents' events that cannot be read: each one is known to be harmless, or not.

A new field, or a new event, fails the first test here until it stands in one of the two tables.
"""

from __future__ import annotations

from typing import get_args

import pytest
from pydantic import BaseModel

from jobs.clock import ManualClock
from jobs.events import AgentEvent, Hello, WorkerEvent
from orchestrator.controller.event_factory import EventFactory
from orchestrator.server.agent_reports import ReportReader

HELLO = Hello(run="r", worker="w", node="n", attempt=1, next_sequence=1)

HARMLESS = {
    "worker_joined": {
        "pid": "is shown to people",
        "resumed": "is shown to people",
        "checks": "a node of which nothing was measured is blamed for nothing",
    },
    "rank_restored": {
        "checkpoint": "with a step; without one, it says that nothing was loaded",
        "seconds": "is a figure",
        "rejected": "no checkpoint is condemned; ranks at different steps are noticed",
    },
    "rank_exited": {
        "remark": "without it, another code than 0 is a failure",
        "last_step": "is a figure",
    },
    "save_failed": {"full": "the save failed all the same"},
    "storage_trouble": {"full": "is trouble all the same", "over": "the trouble goes on"},
    "engine_saved": {"bytes": "is a figure", "gone": "a later look finds what is gone"},
    "attempt_stopped": {
        "memory_shards": "what cannot be read cannot be loaded; older checkpoints are",
        "port": "another one is asked for",
        "last_step": "is a figure",
    },
    "checkpoint_checked": {"seconds": "is a figure", "medium": "is shown to people"},
    "checkpoint_deleted": {
        "refused": "the deletion is tried again",
        "by_script": "the checkpoint counts as there; loading it is refused by its ranks",
    },
}
"""Kind of event → field whose absence says nothing that is false → why."""
SAYS_THE_WORST = {
    ("rank_exited", "failure"),
    ("storage_trouble", "error"),
    ("checkpoint_checked", "unreadable"),
    ("checkpoint_checked", "error"),
    ("checkpoint_deleted", "error"),
    ("checkpoints_found", "error"),
    ("checkpoints_found", "shards"),
}
MUST: dict[str, dict[str, object]] = {
    "rank_exited": {"rank": 0, "code": 0},
    "storage_trouble": {"place": "spool", "path": "p"},
    "checkpoint_checked": {"checkpoint": "c", "ok": False},
    "checkpoint_deleted": {"checkpoint": "c"},
    "checkpoints_found": {},
}
"""Fields that an event must have, by kind."""


def events(union: object) -> list[type[BaseModel]]:
    """The classes of a union of events, in which there may be unions."""
    if isinstance(union, type):
        return [union]
    parts = get_args(union)
    return [event for part in parts if not isinstance(part, BaseModel) for event in events(part)]


def test_each_optional_field_is_judged() -> None:
    found = {
        (event.model_fields["kind"].default, name)
        for event in events(AgentEvent)
        if issubclass(event, WorkerEvent)
        for name, field in event.model_fields.items()
        if not field.is_required() and name not in {*WorkerEvent.model_fields, "kind"}
    }
    harmless = {(kind, name) for kind, fields in HARMLESS.items() for name in fields}
    assert found == harmless | SAYS_THE_WORST
    assert not harmless & SAYS_THE_WORST


@pytest.mark.parametrize(("kind", "name"), sorted(SAYS_THE_WORST))
def test_what_cannot_be_read_is_not_what_is_missing(kind: str, name: str) -> None:
    """The event differs from one without the field, which would say that all is well."""
    reader = ReportReader(HELLO, EventFactory(ManualClock()), ManualClock())
    told = {"kind": kind, **MUST[kind]}
    place = {"sequence": 7, "attempt": 1}
    *_, without = reader.report({**place, "events": [told]}).events
    kept, event = reader.report({**place, "events": [{**told, name: {"no": "such"}}]}).events
    assert (kept.kind, event.kind) == ("report_unreadable", kind)
    fields = {"id", "at"}
    assert event.model_dump(exclude=fields) != without.model_dump(exclude=fields)
