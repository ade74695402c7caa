"""Events about what was said to people."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from jobs.events import Event


class AskDelivered(Event):
    """A question about a remedy has reached people: from now on they have time to answer it."""

    kind: Literal["ask_delivered"] = "ask_delivered"
    run: str
    incident: str


class SummaryDue(Event):
    """The hour of the daily summary has come. One is sent for each day, however often it is due."""

    kind: Literal["summary_due"] = "summary_due"
    day: str = Field(pattern=r"^\d{4}-\d\d-\d\d$")
    """Local date on which people read it."""
    text: str


class IncidentSilenced(Event):
    """Someone wants no pings about an incident for some time; it is shown and handled as before."""

    kind: Literal["incident_silenced"] = "incident_silenced"
    incident: str
    seconds: float = Field(gt=0, le=7 * 86400)
    reason: str = ""
