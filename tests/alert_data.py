"""Notices and updates of incidents for tests of alert channels."""

from __future__ import annotations

import datetime as dt
from typing import Any

from monitors.failures import FailureClass
from monitors.types import Severity
from orchestrator.core.messages.instructions import IncidentUpdate, Notify
from orchestrator.core.model.entities import Incident
from orchestrator.core.model.states import IncidentState
from orchestrator.core.model.vocabulary import Remedy

BEGIN = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
RESOLVED = {
    "state": IncidentState.RESOLVED,
    "resolved_at": BEGIN + dt.timedelta(seconds=95),
    "evidence": {"resolved": "training passed step 120 again"},
}


def update(number: int = 1, *, incident: str = "inc-1", **changes: Any) -> IncidentUpdate:
    """Update `number` of an incident; `changes` are fields of the incident or of the update."""
    of_update = {
        key: changes.pop(key)
        for key in ("run", "run_name", "channel", "lost_seconds", "lost_steps", "node", "rank")
        if key in changes
    }
    fields: dict[str, Any] = {
        "run": of_update.get("run", "run-1"),
        "attempt": 2,
        "kind": FailureClass.GPU_HARDWARE,
        "severity": Severity.CRITICAL,
        "state": IncidentState.MITIGATING,
        "subject": "rank 9 on node-2",
        "onset_step": 120,
        "remedy": Remedy.REPLACE_NODE,
        "reason": "GPU 3 of node-2 has fallen off the bus <Xid 79>",
        "opened_at": BEGIN,
    }
    head: dict[str, Any] = {"run": "run-1", "run_name": "tiny-gpt", "channel": None}
    return IncidentUpdate(
        id=f"{incident}-event-{number}.2",
        cause=f"{incident}-event-{number}",
        reason="",
        at=BEGIN + dt.timedelta(seconds=number),
        project="llm",
        queue="default",
        step=140,
        steps=(120, 100),
        incident=Incident(id=incident, **{**fields, **changes}),
        **{**head, **of_update},
    )


def notice(id_: str = "n-1", **changes: Any) -> Notify:
    """A notice about the incident of :func:`update`, of another problem if `changes` say so."""
    fields: dict[str, Any] = {
        "cause": "e-1",
        "run": "run-1",
        "reason": "",
        "severity": Severity.CRITICAL,
        "text": "tiny-gpt stops: no node is left",
        "incident": "inc-1",
        "incident_kind": "gpu_hardware",
        "attempt": 2,
        "actor": "controller",
    }
    return Notify(id=id_, **{**fields, **changes})
