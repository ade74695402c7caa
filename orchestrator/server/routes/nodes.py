"""Nodes: their health, and whether they take work."""

from __future__ import annotations

import datetime as dt
import difflib
import itertools
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Annotated, Literal

from fastapi import APIRouter, Query
from pydantic import BaseModel, Field

from jobs.checks.results import ALL, CLOCK, LINK
from orchestrator.core.messages.check_events import CheckAsked
from orchestrator.core.messages.events import MaintenanceCancelled, MaintenancePlanned, NodeChanged
from orchestrator.core.model.entities import Node
from orchestrator.core.placement import link_pairs
from orchestrator.core.policy.lemons import lemons
from orchestrator.core.views.build import check_node, node_view
from orchestrator.core.views.models import NodeCheck, NodeView
from orchestrator.core.views.node_checks import NodeChecksView, node_checks_view
from orchestrator.errors import ConflictError, InvalidError, NotFoundError
from orchestrator.server.context import Admin, AnywhereOperator, Context, HasContext, Viewer
from orchestrator.server.hardware.tokens import NodeTokens
from orchestrator.server.hardware.views import hardware_view
from orchestrator.server.present import all_nodes, live_runs, live_workers

router = APIRouter(prefix="/nodes", tags=["nodes"])
MOST = 1000
"""Nodes of one page at most."""


class Why(BaseModel):
    """A reason, for others who look at the node."""

    reason: str = Field(min_length=1, max_length=1000)


async def _node(here: Context, name: str) -> Node:
    return _named(await all_nodes(here), name)


def _named(nodes: Mapping[str, Node], name: str) -> Node:
    if name in nodes:
        return nodes[name]
    near = difflib.get_close_matches(name, nodes, n=3)
    hint = f"; did you mean {' or '.join(near)}?" if near else "; `babysit nodes ls` shows them"
    raise NotFoundError(f"there is no node {name}{hint}")


async def _views(here: Context, names: Iterable[str]) -> list[NodeView]:
    """Some nodes as they are now, judged among all others."""
    nodes = await all_nodes(here)
    return await _judged(here, [_named(nodes, name) for name in names], nodes)


async def _judged(
    here: Context, nodes: Iterable[Node], among: Mapping[str, Node]
) -> list[NodeView]:
    found = lemons(among.values(), here.clock.now())
    workers = defaultdict(list)
    for worker in await live_workers(here):
        workers[worker.node].append(worker)
    names = {run.id: run.name for run in await live_runs(here)}
    views = [node_view(node, workers.get(node.id, ()), names, found.get(node.id)) for node in nodes]
    if not here.controller.is_leader:
        return views
    return [_with_hardware(here, view, readings=False) for view in views]


def _with_hardware(here: Context, view: NodeView, *, readings: bool) -> NodeView:
    hardware = hardware_view(here.hardware, view.id, readings=readings)
    return view.model_copy(update={"hardware": hardware})


@router.get("")
async def list_nodes(
    here: HasContext,
    _: Viewer,
    after: str = "",
    limit: Annotated[int, Query(ge=1, le=MOST)] = MOST,
) -> list[NodeView]:
    """Nodes by name: the first `limit` of those after the name `after`.

    A page that is not full is the last.
    """
    among = await all_nodes(here)
    nodes = itertools.islice((node for node in among.values() if node.id > after), limit)
    return await _judged(here, nodes, among)


@router.get("/{node}")
async def show(node: str, here: HasContext, _: Viewer) -> NodeView:
    """One node, with the newest readings of its hardware."""
    view = (await _views(here, [node]))[0]
    return _with_hardware(here, view, readings=True) if here.controller.is_leader else view


@router.get("/{node}/check")
async def check(node: str, here: HasContext, _: Viewer) -> list[NodeCheck]:
    """Check what the control plane knows about a node. Nothing on the node is touched."""
    workers = await live_workers(here)
    return check_node(await _node(here, node), workers, here.clock.now())


class Measurements(BaseModel):
    """The measurements that are wanted."""

    checks: list[str] = Field(
        default_factory=list, max_length=20, description="Names of checks; empty: all."
    )


@router.get("/{node}/checks")
async def measured(node: str, here: HasContext, _: Viewer) -> NodeChecksView:
    """The newest measurements on a node, and whether a check is under way."""
    return await _measured(here, node)


async def _measured(here: Context, name: str) -> NodeChecksView:
    nodes = await all_nodes(here)
    node = _named(nodes, name)
    busy = {worker.node for worker in await live_workers(here)}
    return node_checks_view(node, link_pairs.why_not(node, nodes.values(), busy))


@router.post("/{node}/checks", status_code=202)
async def measure(
    node: str, body: Measurements, here: HasContext, caller: AnywhereOperator
) -> NodeChecksView:
    """Have an idle node measure itself, by an agent that is launched for it."""
    names = (*ALL, CLOCK, LINK)
    if wrong := [name for name in body.checks if name not in names]:
        raise InvalidError(
            f"checks: there is no {', '.join(wrong)}; expected some of {', '.join(names)}"
        )
    found = await _node(here, node)
    if not (here.controller.runs_here or here.controller.takes_bundles):
        raise ConflictError("the nodes of this cluster have no processes: nothing can be measured")
    await here.tell(caller, CheckAsked, node=found.id, checks=tuple(body.checks))
    return await _measured(here, node)


class MonitorToken(BaseModel):
    """The token of one node's monitor, which can report for that node and do nothing else."""

    node: str
    token: str


@router.post("/{node}/token")
async def monitor_token(node: str, here: HasContext, _: Admin) -> MonitorToken:
    """Make the token of a node's monitor. The same each time; it lasts as long as the database."""
    found = await _node(here, node)
    tokens = NodeTokens(await here.store.signing_key())
    return MonitorToken(node=found.id, token=tokens.make(found.id))


class Maintenance(Why):
    """A window in which nodes are not used."""

    nodes: list[str] = Field(min_length=1)
    begins: dt.datetime
    ends: dt.datetime


class MaintenanceOff(BaseModel):
    """Nodes whose planned maintenance is cancelled."""

    nodes: list[str] = Field(min_length=1)
    reason: str = Field(default="", max_length=1000)


@router.post("/maintenance")
async def plan_maintenance(
    body: Maintenance, here: HasContext, caller: AnywhereOperator
) -> list[NodeView]:
    """Plan a window in which nodes are not used: they are drained when it begins."""
    found = [(await _node(here, node)).id for node in body.nodes]
    await here.tell(
        caller,
        MaintenancePlanned,
        nodes=tuple(found),
        begins=_aware(body.begins),
        ends=_aware(body.ends),
        reason=body.reason,
    )
    return await _views(here, found)


@router.post("/maintenance/cancel")
async def cancel_maintenance(
    body: MaintenanceOff, here: HasContext, caller: AnywhereOperator
) -> list[NodeView]:
    """Cancel the planned maintenance of nodes."""
    found = [(await _node(here, node)).id for node in body.nodes]
    await here.tell(caller, MaintenanceCancelled, nodes=tuple(found), reason=body.reason)
    return await _views(here, found)


def _aware(time: dt.datetime) -> dt.datetime:
    """The time in UTC; a time without a zone is taken for UTC.

    Raises:
        InvalidError: In UTC it is not in the years 1 to 9999.
    """
    try:
        return time.replace(tzinfo=dt.UTC) if time.tzinfo is None else time.astimezone(dt.UTC)
    except OverflowError as error:
        raise InvalidError(
            f"{time.isoformat()}: expected a time in the years 1 to 9999 in UTC"
        ) from error


@router.post("/{node}/{verb}")
async def change(
    node: str,
    verb: Literal["cordon", "drain", "uncordon"],
    body: Why,
    here: HasContext,
    caller: AnywhereOperator,
) -> NodeView:
    """Cordon: place no new work. Drain: also move runs away. Uncordon: place work again."""
    found = await _node(here, node)
    state = {"cordon": "cordoned", "drain": "draining", "uncordon": "ready"}[verb]
    await here.tell(caller, NodeChanged, node=found.id, state=state, reason=body.reason)
    return (await _views(here, [node]))[0]
