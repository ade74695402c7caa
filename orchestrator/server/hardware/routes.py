"""Routes of node monitors: `/agent/nodes/NODE/token` and `/agent/nodes/NODE/reports`.

They stand beside the gateway of agents, and outside of the API: their tokens open nothing else, and
reports are too many for the audit log.
"""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path, Request
from pydantic import BaseModel, ValidationError

from monitors.hardware.types import NodeReport
from orchestrator.errors import InvalidError, NotFoundError, TooLargeError
from orchestrator.server.context import HasContext
from orchestrator.server.hardware.tokens import NodeTokens

MOST_BYTES = 2 * 2**20
"""A report has 200 lines of 2,000 characters and 4,000 readings at most."""
NodeName = Annotated[str, Path(pattern=r"^[A-Za-z0-9]([-A-Za-z0-9._]{0,251}[A-Za-z0-9])?$")]


class NodeToken(BaseModel):
    """The token of one node's monitor."""

    token: str


class Taken(BaseModel):
    """The answer to a report whose findings are stored."""

    now: float
    """Unix seconds on the server's clock, for the skew of the node's."""


def node_routes(tokens: NodeTokens) -> APIRouter:
    """The routes.

    Args:
        tokens: Who may report for which node.
    """
    router = APIRouter(prefix="/agent/nodes", include_in_schema=False)

    @router.post("/{node}/token")
    async def enrol(node: NodeName, request: Request) -> NodeToken:
        return NodeToken(token=tokens.give(_bearer(request), node))

    @router.post("/{node}/reports")
    async def take(node: NodeName, request: Request, here: HasContext) -> Taken:
        tokens.check(_bearer(request), node)
        here.refuse_unless_leader()
        if node not in here.controller.state.nodes:
            raise NotFoundError(
                f"the cluster has no node {node}: BABYSIT_NODE of the monitor is its name in"
                " `babysit nodes ls`"
            )
        report = await _report(request)
        if report.node != node:
            raise InvalidError(f"the report is of {report.node}, and the token of {node}")
        here.hardware.forget_others(here.controller.state.nodes)
        await here.hardware.take(report)
        return Taken(now=here.clock.now().timestamp())

    return router


def _bearer(request: Request) -> str:
    return request.headers.get("authorization", "").removeprefix("Bearer ").strip()


async def _report(request: Request) -> NodeReport:
    """The report in a body of bounded size.

    Raises:
        TooLargeError, InvalidError: The body is too long, or not a report.
    """
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > MOST_BYTES:
            raise TooLargeError(f"a report has {MOST_BYTES:,} bytes at most")
    try:
        return NodeReport.model_validate_json(bytes(body))
    except ValidationError as error:
        first = error.errors(include_input=False)[0]
        place = ".".join(map(str, first["loc"]))
        raise InvalidError(f"the report cannot be read: {place}: {first['msg']}") from error
