"""The remedy of an incident as a clause for people: what was done, or would have been."""

from __future__ import annotations

from orchestrator.core.model.entities import Incident
from orchestrator.core.model.vocabulary import Remedy, Response
from orchestrator.core.policy.remedies import in_words


def incident_remedy(incident: Incident) -> str:
    """`roll back`, `none (held); would restart`, …; empty if nothing is to be done.

    The words are for people: programs read the remedy of a restart, or the incident's state.
    """
    if incident.remedy is None:
        return ""
    proposal = in_words(incident.remedy, incident.onset_step, incident.remedy_step)
    seconds = incident.remedy_seconds or 0.0
    if incident.response is Response.ASKED and incident.remedy_seconds is None:
        return f"asked; would {proposal}"
    if incident.response is Response.ASKED and incident.remedy_at is None:
        return f"asking; will {proposal} {seconds:.0f} s after people are reached, unless held"
    if incident.response is Response.ASKED and incident.remedy_at is not None:
        return f"asked; will {proposal} at {incident.remedy_at:%H:%M} UTC unless held"
    if incident.response is Response.ACTED:
        again = incident.remedy is Remedy.NEW_AGENT
        return f"{incident.remedy} in {seconds:.0f} s" if again else incident.remedy.value
    engine = incident.evidence.get("engine")
    why = f"{engine} restarts the run" if engine else "the spec says observe"
    why = "held" if incident.response is Response.HELD else why
    return f"none ({why}); would {proposal}"
