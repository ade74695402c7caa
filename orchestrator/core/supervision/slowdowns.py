"""Slowdowns of a whole run: an incident that is open while the run is slow, and a notice.

The run is healthy: whatever it waits for, a restart would not make it faster, so none follows. A
finding says when the slowdown is over. In shadow, and where a healthy run may look so too, nobody
is alerted.

Limits: where the control plane was restarted, its monitors may not know of the slowdown any more;
the incident is then over with the next recovery, with the end of the run, or when a person says so.
"""

from __future__ import annotations

from monitors.slowdown_findings import OVER
from monitors.types import Finding, Severity
from orchestrator.core.model.entities import Attempt, Incident, Run
from orchestrator.core.policy import remedies
from orchestrator.core.turn import Turn

_UNTOLD = "; in shadow: people would be alerted"


def on_finding(turn: Turn, run: Run, attempt: Attempt, finding: Finding) -> None:
    """Open the incident of a slowdown, or end it. What is known already is only written down."""
    known = _open_one(turn, attempt, finding)
    if finding.evidence.get("form") == OVER:
        turn.record(run.id, finding.reason)
        if known is not None:
            turn.resolve_incident(known.id, finding.reason)
        return
    if known is not None:
        turn.record(run.id, f"{finding.reason}; the incident about it is open")
        return
    shadow = remedies.in_shadow(run.spec, finding.kind)
    incident = turn.open_incident(
        run,
        kind=finding.kind,
        severity=Severity.INFO if shadow else finding.severity,
        reason=finding.reason + (_UNTOLD if shadow else ""),
        onset_step=finding.onset_step,
        remedy=remedies.FINDINGS[finding.kind].remedy,
        evidence={
            **finding.evidence,
            "shadow": shadow,
            "finding": finding.model_dump(mode="json"),
        },
    )
    if not shadow and finding.severity is not Severity.INFO:
        text = f"{run.name}: {finding.reason}"
        turn.notify(run.id, finding.severity, text, incident.id)


def _open_one(turn: Turn, attempt: Attempt, finding: Finding) -> Incident | None:
    for incident in turn.state.incidents_of(attempt.run):
        same = incident.kind == finding.kind and incident.attempt == attempt.number
        if same and remedies.is_slow(incident):
            return incident
    return None
