"""Which incidents of several runs have one cause, such as a switch: people hear of it once. Pure.

A cause that runs share shows as the same kind of failure in all of them, within seconds of each
other. The first incident names the cascade; later ones bear its key. Nothing but what people are
shown follows from it: each run is judged by itself.
"""

from __future__ import annotations

import datetime as dt

from monitors.failures import FailureClass
from orchestrator.core.model.entities import Incident, Run
from orchestrator.core.model.state import State
from orchestrator.core.model.states import IncidentState
from orchestrator.core.model.vocabulary import IncidentKind

WINDOW = dt.timedelta(minutes=2)
"""Incidents further apart are not taken for one cause. Ours: agents are declared lost, and
collectives time out, at different times after one switch fails."""
LONGEST = dt.timedelta(minutes=10)
"""Nothing joins a cascade that began before that: in a large fleet some run fails every minute, and
all would be one cascade for ever. Ours: NCCL's collectives time out after 10 minutes by default."""
_NETWORK = frozenset(
    {
        FailureClass.NETWORK,
        FailureClass.WORKER_LOST,
        FailureClass.COLLECTIVE_TIMEOUT,
        FailureClass.RENDEZVOUS,
    }
)
_FAMILIES = (_NETWORK, frozenset({FailureClass.STORAGE}))
"""Kinds as which one shared cause shows."""


def began_with(state: State, run: Run, kind: IncidentKind, now: dt.datetime) -> str:
    """The key of the incident of another run that a new incident has its cause in common with.

    Runs with another project, queue or `notify.slack` have other readers, and are left out.

    Returns:
        `RUN/KIND/ATTEMPT` of the first incident; empty if there is none.
    """
    family = next((kinds for kinds in _FAMILIES if kind in kinds), None)
    if family is None:
        return ""
    readers, began = _readers(run), _beginnings(state)

    def has_the_cause(incident: Incident) -> bool:
        other = state.runs.get(incident.run)
        return (
            incident.kind in family
            and incident.state is not IncidentState.RESOLVED
            and now - incident.opened_at <= WINDOW
            and now - began[_cascade(incident)] <= LONGEST
            and other is not None
            and other.id != run.id
            and _readers(other) == readers
        )

    alike = filter(has_the_cause, state.incidents.values())
    first = min(alike, key=lambda i: (i.opened_at, i.id), default=None)
    return "" if first is None else _cascade(first)


def _cascade(incident: Incident) -> str:
    """The key of the incident with which the cascade of an incident began, or of its own."""
    return incident.cascade or f"{incident.run}/{incident.kind}/{incident.attempt}"


def _beginnings(state: State) -> dict[str, dt.datetime]:
    """When each cascade began, as far as the state has its incidents."""
    began: dict[str, dt.datetime] = {}
    for incident in state.incidents.values():
        key = _cascade(incident)
        began[key] = min(began.get(key, incident.opened_at), incident.opened_at)
    return began


def _readers(run: Run) -> tuple[object, ...]:
    return run.spec.project, run.spec.queue, run.spec.notify.slack
