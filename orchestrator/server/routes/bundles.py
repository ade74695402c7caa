"""Bundles of code: uploaded by those who submit, fetched by the agents of their runs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Annotated

import structlog
from fastapi import APIRouter, Path, Request, Response
from fastapi.responses import FileResponse
from pydantic import BaseModel
from starlette.requests import ClientDisconnect
from starlette.types import Message, Receive, Scope, Send

from orchestrator.errors import (
    InvalidError,
    NotFoundError,
    PermissionDeniedError,
    TemporaryError,
    TooLargeError,
)
from orchestrator.server.context import HasContext, Operator
from orchestrator.server.gateway import WorkerTokens

_log = structlog.get_logger(__name__)
UPLOADS = 8
"""Uploads under way at a time; more are refused, and tried again by their clients."""
DOWNLOADS = 16
"""Downloads under way at a time; more wait. They share the event loop with the controller."""
STALL_SECONDS = 60.0
"""A transfer whose other side does nothing for this time is dropped."""
router = APIRouter(prefix="/bundles", tags=["runs"])
BundleId = Annotated[
    str, Path(pattern="^[0-9a-f]{64}$", description="sha256 of the bundle, in hexadecimal digits.")
]
_BINARY = {
    "requestBody": {
        "required": True,
        "description": "The tar itself, uncompressed.",
        "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
    }
}


class StoredBundle(BaseModel):
    """A bundle that the server has."""

    id: str
    bytes: int


@router.head("/{bundle}", status_code=204)
async def look(bundle: BundleId, here: HasContext, _: Operator) -> Response:
    """Say whether the server has a bundle: 204, or 404."""
    if not await here.bundles.has(bundle):
        raise NotFoundError(f"there is no bundle {bundle}: upload it")
    return Response(status_code=204)


@router.put("/{bundle}", status_code=201, openapi_extra=_BINARY)
async def upload(bundle: BundleId, request: Request, here: HasContext, _: Operator) -> StoredBundle:
    """Upload the code of a run: a tar, which is kept under the sha256 of its bytes."""
    announced = request.headers.get("content-length", "0")
    if announced.isdigit() and int(announced) > here.bundles.limit:
        raise TooLargeError(
            f"the bundle has {int(announced):,} bytes, and the server takes"
            f" {here.bundles.limit:,} (BABYSIT_BUNDLE_BYTES): list in .babysitignore what the run"
            " does not need"
        )
    if here.uploads >= UPLOADS:
        raise TemporaryError(f"{UPLOADS} uploads are under way: try again soon")
    here.uploads += 1
    try:
        size = await here.bundles.receive(bundle, _arriving(request))
    except (ClientDisconnect, TimeoutError) as error:
        raise InvalidError("the upload broke off: send it again") from error
    finally:
        here.uploads -= 1
    return StoredBundle(id=bundle, bytes=size)


async def _arriving(request: Request) -> AsyncIterator[bytes]:
    """The chunks of a body, each within :data:`STALL_SECONDS`."""
    chunks = request.stream()
    while True:
        try:
            async with asyncio.timeout(STALL_SECONDS):
                chunk = await anext(chunks)
        except StopAsyncIteration:
            return
        yield chunk


def agents_route(tokens: WorkerTokens) -> APIRouter:
    """The route from which an agent gets the code of its own run, by the token of its worker."""
    agents = APIRouter()
    places = asyncio.Semaphore(DOWNLOADS)

    @agents.get("/agent/bundles/{bundle}", include_in_schema=False)
    async def fetch(bundle: BundleId, request: Request, here: HasContext) -> Response:
        run_id = tokens.run_of(request.headers.get("authorization", "").removeprefix("Bearer "))
        run = await here.store.run(run_id)
        if run.id != run_id or run.bundle != bundle:
            raise PermissionDeniedError(
                f"the bundle {bundle} is not that of the run {run_id}, for which the token is"
            )
        return _Waiting(await here.bundles.file(bundle), places)

    return agents


class _Waiting(FileResponse):
    """A file that is sent when it has one of few places; an agent that stalls gives it up."""

    def __init__(self, path: object, places: asyncio.Semaphore) -> None:
        super().__init__(str(path), media_type="application/x-tar")
        self._places = places

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def sent(message: Message) -> None:
            async with asyncio.timeout(STALL_SECONDS):
                await send(message)

        async with self._places:
            try:
                await super().__call__(scope, receive, sent)
            except TimeoutError:  # a frozen node; it asks again, and a server closes what is left
                _log.warning("an agent stalled while it fetched code", path=scope["path"])
