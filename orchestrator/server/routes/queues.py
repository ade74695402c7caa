"""Queues and their quotas, and the spares: idle nodes reserved for recoveries."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any, Literal

from fastapi import APIRouter
from fastapi import Path as InPath
from pydantic import BaseModel, ConfigDict, Field

from jobs.spec_types import MOST
from orchestrator.core.messages.events import QueueChanged, QueueRemoved, SparesChanged
from orchestrator.core.model.entities import Queue
from orchestrator.core.model.states import NodeState
from orchestrator.core.policy.spare_pool import sized
from orchestrator.core.scheduling import Quota
from orchestrator.core.views.build import queue_views
from orchestrator.core.views.models import QueueView
from orchestrator.core.views.spares import standing
from orchestrator.errors import InvalidError
from orchestrator.server.context import AnywhereOperator, Context, HasContext, Viewer
from orchestrator.server.present import all_nodes, live_runs, live_workers

router = APIRouter(tags=["queues"])
Number = Annotated[int, Field(ge=0, le=MOST)]
QueueName = Annotated[str, InPath(pattern=r"^[a-z0-9]([-a-z0-9.]{0,61}[a-z0-9])?$")]


class QuotaBody(BaseModel):
    """Changes to a quota: fields left out stay; null removes a limit."""

    model_config = ConfigDict(extra="forbid")

    gpus: Number | None = Field(default=None, description="Nominal quota; null: no limit.")
    cohort: str | None = Field(default=None, description="Queues that lend each other.")
    borrowing_limit: Number | None = Field(default=None, description="GPUs above nominal.")
    lending_limit: Number | None = Field(default=None, description="GPUs that others borrow.")
    weights: dict[str, float] = Field(default_factory=dict, description="Project: its share.")


class SparesBody(BaseModel):
    """Idle nodes reserved for recoveries."""

    spares: Number | Literal["auto"]


class Spares(SparesBody):
    """The setting, the number of nodes it comes to now, and what failures call for."""

    nodes: int
    advised: int
    """The number that `auto` comes to now."""
    why: str
    """The figures behind that number, in a sentence."""
    idle: int
    """Nodes that a recovery could have at once."""
    standing: str
    """The numbers above beside each other, in a sentence."""
    remedy: str
    """The steps that end a shortage; empty: there are enough spares."""


async def _views(here: Context) -> list[QueueView]:
    runs, workers = await live_runs(here), await live_workers(here)
    return queue_views(await here.store.queues(), runs, workers)


@router.get("/queues")
async def queues(here: HasContext, _: Viewer) -> list[QueueView]:
    """All queues, by name."""
    return await _views(here)


@router.patch("/queues/{queue}")
async def change(
    queue: QueueName, body: QuotaBody, here: HasContext, caller: AnywhereOperator
) -> QueueView:
    """Set the quota of a queue, which is created if it does not exist."""
    by_name = {each.name: each for each in await here.store.queues()}
    before = by_name.get(queue) or Queue(name=queue)
    fields: dict[str, Any] = {
        field.name: getattr(before, field.name) for field in dataclasses.fields(Quota)
    }
    given = body.model_dump(exclude_unset=True)
    weights = {**before.weights, **given.pop("weights", {})}
    quota = Quota(**{**fields, **given, "weights": weights})
    await here.tell(caller, QueueChanged, quota=quota)
    return next(view for view in await _views(here) if view.name == queue)


@router.delete("/queues/{queue}", status_code=204)
async def remove(queue: QueueName, here: HasContext, caller: AnywhereOperator) -> None:
    """Remove a queue. Refused while runs use it, and for the default queue."""
    await here.tell(caller, QueueRemoved, queue=queue)


@router.get("/spares")
async def spares(here: HasContext, _: Viewer) -> Spares:
    """Idle nodes reserved for recoveries."""
    return _spares(here)


@router.put("/spares")
async def set_spares(body: SparesBody, here: HasContext, caller: AnywhereOperator) -> Spares:
    """Set a number, or auto: the number that the failures measured so far call for."""
    there = (await all_nodes(here)).values()
    nodes = sum(node.state is not NodeState.GONE for node in there)
    if body.spares != "auto" and 0 < nodes <= body.spares:
        raise InvalidError(
            f"spares: expected fewer than the {nodes} nodes of the cluster, got {body.spares}:"
            " no node would be left for new runs"
        )
    await here.tell(caller, SparesChanged, spares=body.spares)
    return _spares(here)


def _spares(here: Context) -> Spares:
    state, now = here.controller.state, here.clock.now()
    found = standing(state, now)
    return Spares(
        spares=state.fleet.spares,
        nodes=found.reserved,
        advised=found.advised,
        why=sized(state.nodes.values(), now).why,
        idle=found.idle,
        standing=str(found),
        remedy=found.remedy,
    )
