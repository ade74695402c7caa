"""Updates of incidents for people: each change of a turn reaches the message about its incident.

An alert channel shows an incident in one place and edits it. It must not miss a change, whatever
dies in between, so each change goes through the outbox, like a notice.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
from typing import Any

from orchestrator.core.messages.instructions import IncidentUpdate
from orchestrator.core.model.decisions import Restart
from orchestrator.core.model.entities import Incident, Run
from orchestrator.core.model.states import IncidentState, RunState
from orchestrator.core.model.vocabulary import Response
from orchestrator.core.policy import doubt
from orchestrator.core.turn import Turn

_STEPS = 10
"""Steps that a person is offered; `babysit checkpoints ls` has all."""
_SHOWN_EVIDENCE = ("resolved", "engine")
"""The rest (stacks, log lines, series) is large, and `babysit incidents show` has it."""


def show_changes(turn: Turn) -> None:
    """Emit an update for each incident that people would see change in this turn.

    Call this last in a turn: ids of the other instructions must not depend on it. Of a run that is
    over, only what the incident says of itself is known.
    """
    changed = {**turn.incidents_before, **dict.fromkeys(_asked(turn))}
    for id_, before in changed.items():
        now = turn.state.incidents.get(id_)
        if now is None:
            continue
        if before is None or _shown(before) != _shown(now):
            _show(turn, now)


def _asked(turn: Turn) -> list[str]:
    """Incidents whose question a hold, or its release, answers for now."""
    if not turn.holds_changed:
        return []
    everything = None in turn.holds_changed
    return [
        incident.id
        for incident in turn.state.incidents.values()
        if (everything or incident.run in turn.holds_changed)
        and incident.state is IncidentState.OPEN
        and incident.response is Response.ASKED
    ]


def _hold(turn: Turn, run: Run) -> str:
    held = turn.state.fleet.hold
    return held or (run.reason if run.state is RunState.HELD else "")


def _shown(incident: Incident) -> tuple[Any, ...]:
    return (
        incident.state,
        incident.severity,
        incident.reason,
        incident.subject,
        incident.remedy,
        incident.response,
        incident.remedy_at,
        incident.remedy_step,
        incident.acknowledged_by,
        incident.silenced_until,
        incident.verdict,
    )


def _show(turn: Turn, incident: Incident) -> None:
    run, attempt = turn.state.runs.get(incident.run), turn.attempt(incident.run)
    restart = attempt.restart if attempt is not None else None
    ours = restart if restart is not None and restart.incident == incident.id else None
    rank, node = _place(incident, ours)
    turn.emit(
        IncidentUpdate,
        incident.run,
        f"incident {incident.kind} is {incident.state}",
        at=turn.now,
        run_name=run.name if run else "" if incident.run else incident.subject,
        project=run.spec.project if run else "",
        queue=run.spec.queue if run else "",
        channel=run.spec.notify.slack if run else None,
        step=run.best_step if run else 0,
        node=node,
        rank=rank,
        lost_seconds=_lost_seconds(incident, ours),
        held=_hold(turn, run) if run else "",
        steps=_steps(turn, incident),
        lost_steps=ours.lost_steps if ours else None,
        incident=dataclasses.replace(
            incident,
            evidence={k: v for k, v in incident.evidence.items() if k in _SHOWN_EVIDENCE},
        ),
    )


def _steps(turn: Turn, incident: Incident) -> tuple[int, ...]:
    """Steps that the run may be rolled back to, newest first; none once the incident is over."""
    if incident.state is IncidentState.RESOLVED:
        return ()
    known = turn.state.checkpoints_of(incident.run)
    return tuple(sorted({c.step for c in known if doubt.may_load(c)}, reverse=True)[:_STEPS])


def _place(incident: Incident, restart: Restart | None) -> tuple[int | None, str | None]:
    """Rank and node, as far as known; the subject has them in words."""
    finding = incident.evidence.get("finding", {})
    rank = restart.rank if restart else finding.get("rank")
    node = restart.node if restart else None
    if not incident.run:
        node = incident.subject
    elif node is None and " on " in incident.subject:
        node = incident.subject.rpartition(" on ")[2]
    return rank, node


def _lost_seconds(incident: Incident, restart: Restart | None) -> float | None:
    if incident.state is not IncidentState.RESOLVED or incident.resolved_at is None:
        return None
    onset = incident.evidence.get("finding", {}).get("onset_time")
    began = incident.opened_at
    if restart is not None:
        began = restart.failed_at
    elif onset is not None:
        began = min(began, dt.datetime.fromtimestamp(onset, dt.UTC))
    return (incident.resolved_at - began).total_seconds()
