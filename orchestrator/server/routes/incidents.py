"""Incidents: what went wrong, who knows of it, and whether the remedy was right."""

# ruff: noqa: FAST003 -- path parameters are read by dependencies, which ruff does not see through aliases

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Depends, Query, Request
from pydantic import BaseModel, Field

from orchestrator.core.messages.events import IncidentChanged
from orchestrator.core.messages.notice_events import IncidentSilenced
from orchestrator.core.model.entities import Incident
from orchestrator.core.model.states import IncidentState
from orchestrator.core.views.build import incident_view
from orchestrator.core.views.models import IncidentView
from orchestrator.database.credentials import Token
from orchestrator.errors import PermissionDeniedError
from orchestrator.server.context import Context, HasContext, Operator, Viewer, permit
from orchestrator.server.run_queries import alerts_of

router = APIRouter(prefix="/incidents", tags=["incidents"])


class Judgement(BaseModel):
    """A user's judgement of the finding and its remedy."""

    verdict: Literal["right", "wrong"]


class Silence(BaseModel):
    """For how long nobody is pinged about an incident."""

    seconds: float = Field(default=3600.0, gt=0, le=7 * 86400)
    reason: str = Field(default="", max_length=1000)


@router.get("")
async def list_incidents(
    here: HasContext,
    caller: Viewer,
    run: str | None = None,
    open_only: bool = False,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
) -> list[IncidentView]:
    """Newest first."""
    if run is None:
        found = await here.store.incidents(open_only=open_only, limit=limit)
        return [incident_view(each) for each in found if await _in_scope(each, here, caller)]
    of = await here.store.run(run)
    permit(caller, of.spec)
    found = await here.store.incidents(of.id, open_only=open_only, limit=limit)
    return [incident_view(incident) for incident in found]


async def _in_scope(incident: Incident, here: Context, caller: Token) -> bool:
    """True if the caller may see an incident: nodes are for everybody to see."""
    if caller.scope.everything or not incident.run:
        return True
    spec = (await here.store.run(incident.run)).spec
    return caller.scope.covers(spec.project, spec.queue)


async def _incident(incident: str, here: HasContext, caller: Viewer, request: Request) -> Incident:
    found = await here.store.incident(incident)
    if caller.scope.everything:
        return found
    if found.run:
        permit(caller, (await here.store.run(found.run)).spec)
    elif request.method != "GET":
        raise PermissionDeniedError(
            f"the incident {found.id} is about {found.subject}, which all runs use; the token"
            f" {caller.name} is for some runs only"
        )
    return found


TheIncident = Annotated[Incident, Depends(_incident)]
"""The incident of `{incident}` in the path: an id, or 4 of its characters."""


@router.get("/{incident}")
async def show(found: TheIncident, here: HasContext) -> IncidentView:
    """One incident, with its evidence, and why people do not hear of it if they do not."""
    if not found.run:
        return incident_view(found)
    alerts = alerts_of(here, await here.store.run(found.run))
    return incident_view(found).model_copy(update={"alerts": alerts})


@router.post("/{incident}/acknowledge")
async def acknowledge(found: TheIncident, here: HasContext, caller: Operator) -> IncidentView:
    """Say that someone knows."""
    await here.tell(caller, IncidentChanged, incident=found.id, acknowledge=True)
    return incident_view(await here.store.incident(found.id))


@router.post("/{incident}/silence")
async def silence(
    found: TheIncident, body: Silence, here: HasContext, caller: Operator
) -> IncidentView:
    """Send no pings about it for some time; it is shown and handled as before."""
    await here.tell(
        caller, IncidentSilenced, incident=found.id, seconds=body.seconds, reason=body.reason
    )
    return incident_view(await here.store.incident(found.id))


@router.post("/{incident}/resolve")
async def resolve(found: TheIncident, here: HasContext, caller: Operator) -> IncidentView:
    """Close it."""
    await here.tell(caller, IncidentChanged, incident=found.id, state=IncidentState.RESOLVED)
    return incident_view(await here.store.incident(found.id))


@router.post("/{incident}/judge")
async def judge(
    found: TheIncident, body: Judgement, here: HasContext, caller: Operator
) -> IncidentView:
    """Record whether it was handled rightly, so that thresholds can be tuned."""
    await here.tell(caller, IncidentChanged, incident=found.id, verdict=body.verdict)
    return incident_view(await here.store.incident(found.id))
