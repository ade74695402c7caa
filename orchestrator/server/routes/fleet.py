"""The fleet and its changes, for the page and for programs that follow many runs."""

# ruff: noqa: FAST003 -- path parameters are read by dependencies, which ruff does not see through aliases

from __future__ import annotations

import gzip
import itertools
import math
from collections.abc import Iterable, Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Header, Query, Request, Response
from fastapi.responses import StreamingResponse

from orchestrator.core.model.entities import Attempt, Node, Run, Worker
from orchestrator.core.model.states import WorkerState
from orchestrator.database.credentials import Token
from orchestrator.server.context import Context, HasContext, TheRun, Viewer
from orchestrator.server.fleet import Covers, Fleet, status_of
from orchestrator.server.fleet_views import FleetRow, FleetView, RanksView, SeatView
from orchestrator.server.run_watch import RunWatches
from orchestrator.server.streams import answer, event

router = APIRouter(tags=["runs"])
LOSS_POINTS = 32
"""Points of a small curve: a row of the fleet has room for that many."""
LOSS_SECONDS = 20.0
"""Seconds for which a small curve is good."""
_LOSSES_KEPT = 2000
_STREAM: dict[int | str, dict[str, Any]] = {
    200: {"content": {"text/event-stream": {}}, "description": "Events until the stream ends."}
}
Resume = Annotated[
    str, Header(alias="Last-Event-ID", description="Browsers send it when they connect again.")
]


def _covers(caller: Token) -> Covers:
    if caller.scope.everything:
        return lambda _: True
    return lambda row: caller.scope.covers(row.project, row.queue)


def _fleet(request: Request) -> Fleet:
    found: Fleet = request.app.state.fleet
    return found


@router.get("/fleet", response_model=FleetView)
async def fleet(request: Request, caller: Viewer) -> Response:
    """All live runs, the newest that ended, nodes and open incidents, as of a second ago."""
    found = _fleet(request)
    await found.refresh()
    body = found.view(_covers(caller)).model_dump_json().encode()
    headers = {"Cache-Control": "no-store", "Vary": "Accept-Encoding"}
    if "gzip" in request.headers.get("accept-encoding", ""):
        body = gzip.compress(body, compresslevel=3)
        headers["Content-Encoding"] = "gzip"
    return Response(body, media_type="application/json", headers=headers)


@router.get("/fleet/changes", response_class=StreamingResponse, responses=_STREAM)
async def fleet_changes(
    request: Request,
    here: HasContext,
    caller: Viewer,
    after: Annotated[str, Query(max_length=60)] = "",
    resume: Resume = "",
) -> StreamingResponse:
    """Changes in the fleet, as server-sent events, at most one a second.

    `changes` has rows that changed, `numbers` (run, step, loss, ETTR) of those that only went on,
    and status, nodes and incidents if one of these changed. `reload`: get `/fleet` anew. `alive`
    comes after ten quiet seconds. `over`: the session has ended.
    """
    found, covers = _fleet(request), _covers(caller)
    sent: str = resume or after

    async def look() -> str:
        nonlocal sent
        await found.refresh()
        version = found.version_of(sent)
        if version is None:
            sent = found.id
            return event("reload", {"at": found.at.isoformat()}, sent)
        changes = found.since(version, covers)
        if not changes:
            return ""
        sent = changes.id
        data: dict[str, Any] = {
            "at": found.at.isoformat(),
            "rows": [row.model_dump(mode="json") for row in changes.rows],
            "numbers": changes.numbers,
            "gone": changes.gone,
        }
        if changes.summary:
            data |= found.summary(covers)
        return event("changes", data, sent)

    return answer(request.app.state.streams, here.clock, request.scope, look)


@router.get("/fleet/losses")
async def fleet_losses(
    request: Request,
    here: HasContext,
    caller: Viewer,
    run: Annotated[list[str], Query(max_length=60)],
) -> dict[str, list[float | None]]:
    """Small loss curves of some runs of the fleet by id; null: no finite loss there."""
    found, covers = _fleet(request), _covers(caller)
    await found.refresh()
    curves = {}
    for key in dict.fromkeys(run):
        row = found.row(key)
        if row is not None and covers(row):
            curves[key] = await _curve(request, here, row)
    return curves


async def _curve(request: Request, here: Context, row: FleetRow) -> list[float | None]:
    kept: dict[str, tuple[float, int, list[float | None]]] = request.app.state.curves
    now = here.clock.monotonic()
    at, step, curve = kept.get(row.id, (-math.inf, -1, []))
    if step == row.step or now - at < LOSS_SECONDS:
        return curve
    series = await here.store.samples(row.id, points=LOSS_POINTS)
    curve = [float(f"{loss:.5g}") if math.isfinite(loss) else None for loss in series.loss]
    kept.pop(row.id, None)
    kept[row.id] = now, row.step, curve
    while len(kept) > _LOSSES_KEPT:
        del kept[next(iter(kept))]
    return curve


@router.get("/runs/{reference}/changes", response_class=StreamingResponse, responses=_STREAM)
async def run_changes(request: Request, run: TheRun, here: HasContext) -> StreamingResponse:
    """Changes about a run, as server-sent events, at most one a second.

    `run` has its row, the server's status, and a revision: another revision means that attempts,
    incidents, checkpoints or agents have changed too. The other events are those of
    `/fleet/changes`.
    """
    watches: RunWatches = request.app.state.watches
    watch, sent = watches.of(run), ""

    async def look() -> str:
        nonlocal sent
        row, revision = await watch.look()
        status = await status_of(here)
        data = {
            "row": row.model_dump(mode="json"),
            "revision": revision,
            "status": status.model_dump(mode="json"),
        }
        text = event("run", data)
        if text == sent:
            return ""
        sent = text
        return event("run", {**data, "at": here.clock.now().isoformat()})

    return answer(request.app.state.streams, here.clock, request.scope, look)


@router.get("/runs/{reference}/ranks")
async def ranks(run: TheRun, here: HasContext) -> RanksView:
    """Where the newest attempt has its ranks, how far they are, and how their nodes are."""
    attempts = await here.store.attempts(run.id)
    if not attempts:
        return RanksView(
            attempt=0, state=None, world_size=0, started=0, ready=0, restored=0, done=0, seats=[]
        )
    newest = attempts[-1]
    workers = await here.store.workers(run.id)
    live = here.controller.state.nodes
    return RanksView(
        attempt=newest.number,
        state=newest.state.value,
        world_size=newest.world_size,
        started=len(newest.started_ranks),
        ready=len(newest.ready_ranks),
        restored=len(newest.restored_ranks),
        done=len(newest.done_ranks),
        seats=_seats(run, newest, workers, live.values() if live else await here.store.nodes()),
    )


def _seats(
    run: Run, attempt: Attempt, workers: Sequence[Worker], nodes: Iterable[Node]
) -> list[SeatView]:
    states = {w.id: w.state for w in workers if w.run == run.id}
    wanted = {seat.node for seat in attempt.seats}
    at = {node.id: node.state.value for node in nodes if node.id in wanted}
    failures: dict[int, str] = {f.rank: f.failure.reason for f in attempt.failures}
    found = []
    for seat in attempt.seats:
        state = states.get(seat.worker, WorkerState.ENDED)
        found.append(
            SeatView(
                node=seat.node,
                node_state=at.get(seat.node),
                worker=seat.worker,
                worker_state=None if state is WorkerState.ENDED else state.value,
                ranks=in_ranges(seat.ranks),
                count=len(seat.ranks),
                failures=[f"rank {r}: {failures[r]}" for r in seat.ranks if r in failures],
            )
        )
    return found


def in_ranges(numbers: Iterable[int]) -> str:
    """`0-7`, `3`, `0, 4-6`: numbers in order, those in a row as a range."""
    runs = itertools.groupby(enumerate(sorted(numbers)), key=lambda pair: pair[1] - pair[0])
    parts = [[number for _, number in group] for _, group in runs]
    return ", ".join(str(p[0]) if len(p) == 1 else f"{p[0]}-{p[-1]}" for p in parts)
