"""Requests of people about incidents, besides those in :mod:`orchestrator.core.requests.runs`."""

from __future__ import annotations

import datetime as dt

from orchestrator.core.messages.notice_events import IncidentSilenced
from orchestrator.core.turn import Turn
from orchestrator.errors import NotFoundError


def on_silenced(turn: Turn, event: IncidentSilenced) -> None:
    """Have nobody pinged about an incident for some time. It is handled as before.

    Raises:
        NotFoundError: There is no such incident, or it is over.
    """
    if event.incident not in turn.state.incidents:
        raise NotFoundError(f"no incident {event.incident} is open; see `babysit incidents ls`")
    until = turn.now + dt.timedelta(seconds=event.seconds)
    turn.change_incident(event.incident, silenced_until=until)
