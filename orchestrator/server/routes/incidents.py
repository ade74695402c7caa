"""Incidents: what went wrong, who knows of it, and whether the remedy was right."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Query
from pydantic import BaseModel

from orchestrator.core.messages.events import IncidentChanged
from orchestrator.core.model.states import IncidentState
from orchestrator.core.views.build import incident_view
from orchestrator.core.views.models import IncidentView
from orchestrator.server.context import HasContext, Operator, Viewer

router = APIRouter(prefix="/incidents", tags=["incidents"])


class Judgement(BaseModel):
    """A user's judgement of the finding and its remedy."""

    verdict: Literal["right", "wrong"]


@router.get("")
async def list_incidents(
    here: HasContext,
    _: Viewer,
    run: str | None = None,
    open_only: bool = False,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
) -> list[IncidentView]:
    """Newest first."""
    run_id = None if run is None else (await here.store.run(run)).id
    found = await here.store.incidents(run_id, open_only=open_only, limit=limit)
    return [incident_view(incident) for incident in found]


@router.get("/{incident}")
async def show(incident: str, here: HasContext, _: Viewer) -> IncidentView:
    """One incident, with its evidence."""
    return incident_view(await here.store.incident(incident))


@router.post("/{incident}/acknowledge")
async def acknowledge(incident: str, here: HasContext, caller: Operator) -> IncidentView:
    """Say that someone knows."""
    found = await here.store.incident(incident)
    await here.tell(caller, IncidentChanged, incident=found.id, acknowledge=True)
    return incident_view(await here.store.incident(found.id))


@router.post("/{incident}/resolve")
async def resolve(incident: str, here: HasContext, caller: Operator) -> IncidentView:
    """Close it."""
    found = await here.store.incident(incident)
    await here.tell(caller, IncidentChanged, incident=found.id, state=IncidentState.RESOLVED)
    return incident_view(await here.store.incident(found.id))


@router.post("/{incident}/judge")
async def judge(incident: str, body: Judgement, here: HasContext, caller: Operator) -> IncidentView:
    """Record whether it was handled rightly, so that thresholds can be tuned."""
    found = await here.store.incident(incident)
    await here.tell(caller, IncidentChanged, incident=found.id, verdict=body.verdict)
    return incident_view(await here.store.incident(found.id))
