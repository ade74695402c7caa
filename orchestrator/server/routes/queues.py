"""Queues: where runs wait, how much each may use, and the spares that all leave alone."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any, Literal

from fastapi import APIRouter
from fastapi import Path as InPath
from pydantic import BaseModel, ConfigDict, Field

from orchestrator.core.messages.events import QueueChanged, SparesChanged
from orchestrator.core.model.entities import Queue
from orchestrator.core.placement.snapshot import spare_pool
from orchestrator.core.scheduling import Quota
from orchestrator.core.views.build import queue_views
from orchestrator.core.views.models import QueueView
from orchestrator.server.context import Context, HasContext, Operator, Viewer
from orchestrator.server.run_queries import LIVE

router = APIRouter(tags=["queues"])
QueueName = Annotated[str, InPath(pattern=r"^[a-z0-9]([-a-z0-9.]{0,61}[a-z0-9])?$")]


class QuotaBody(BaseModel):
    """What is to change; fields that are left out stay as they are, null takes a limit away."""

    model_config = ConfigDict(extra="forbid")

    gpus: int | None = Field(default=None, ge=0, description="Nominal quota; null: no limit.")
    cohort: str | None = Field(default=None, description="Queues that lend each other.")
    borrowing_limit: int | None = Field(default=None, ge=0, description="GPUs above nominal.")
    lending_limit: int | None = Field(default=None, ge=0, description="GPUs that others borrow.")
    weights: dict[str, float] = Field(default_factory=dict, description="Project: its share.")


class SparesBody(BaseModel):
    """Idle nodes that newcomers leave to recoveries."""

    spares: Annotated[int, Field(ge=0)] | Literal["auto"]


class Spares(SparesBody):
    """And how many that is now."""

    nodes: int


async def _views(here: Context) -> list[QueueView]:
    runs = await here.store.runs(states=LIVE, limit=1000)
    return queue_views(await here.store.queues(), runs, await here.store.workers())


@router.get("/queues")
async def queues(here: HasContext, _: Viewer) -> list[QueueView]:
    """All queues, by name."""
    return await _views(here)


@router.patch("/queues/{queue}")
async def change(
    queue: QueueName, body: QuotaBody, here: HasContext, caller: Operator
) -> QueueView:
    """Set a queue's quota; one that nobody has named before is made."""
    known = {each.name: each for each in await here.store.queues()}
    before = known.get(queue) or Queue(name=queue)
    fields: dict[str, Any] = {
        field.name: getattr(before, field.name) for field in dataclasses.fields(Quota)
    }
    given = body.model_dump(exclude_unset=True)
    weights = {**before.weights, **given.pop("weights", {})}
    quota = Quota(**{**fields, **given, "weights": weights})
    await here.tell(caller, QueueChanged, quota=quota)
    return next(view for view in await _views(here) if view.name == queue)


@router.get("/spares")
async def spares(here: HasContext, _: Viewer) -> Spares:
    """How many idle nodes newcomers leave alone."""
    return _spares(here)


@router.put("/spares")
async def set_spares(body: SparesBody, here: HasContext, caller: Operator) -> Spares:
    """A number; or auto: as many as the failures measured so far call for."""
    await here.tell(caller, SparesChanged, spares=body.spares)
    return _spares(here)


def _spares(here: Context) -> Spares:
    state = here.controller.state
    return Spares(spares=state.fleet.spares, nodes=spare_pool(state, here.clock.now()))
