"""What happened to a run: events, samples, logs, the logbook, and why it is where it is."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query
from starlette.concurrency import run_in_threadpool

from orchestrator.core.model.states import TERMINAL_RUN_STATES
from orchestrator.core.views import logbook
from orchestrator.core.views.explain import explain
from orchestrator.core.views.models import EventView, ExplanationView, SeriesView, StoryView
from orchestrator.database.port import JournalEntry
from orchestrator.errors import NotFoundError, NotLeaderError
from orchestrator.server.context import HasContext, TheRun, Viewer
from orchestrator.server.logs import LogFile, LogPiece, log_files, log_path, read_piece
from orchestrator.server.run_queries import finite, journal

router = APIRouter(prefix="/runs/{reference}", tags=["story"])
everything = APIRouter(tags=["story"])


def _event(entry: JournalEntry) -> EventView:
    return EventView(
        position=entry.position,
        id=entry.id,
        at=entry.at,
        run=entry.run,
        attempt=entry.attempt,
        actor=entry.actor,
        kind=entry.kind,
        name=entry.name,
        cause=entry.cause,
        reason=entry.reason,
        payload=dict(entry.payload),
    )


After = Annotated[int, Query(ge=0, description="Only positions greater than this.")]
Limit = Annotated[int, Query(ge=1, le=5000)]


@router.get("/events")
async def events(
    run: TheRun, here: HasContext, after: After = 0, limit: Limit = 1000
) -> list[EventView]:
    """Its journal: every event and every decision with its reason, oldest first."""
    return [_event(e) for e in await here.store.journal(run.id, after=after, limit=limit)]


@everything.get("/events")
async def all_events(
    here: HasContext, _: Viewer, after: After = 0, limit: Limit = 1000
) -> list[EventView]:
    """The whole journal, oldest first."""
    return [_event(e) for e in await here.store.journal(None, after=after, limit=limit)]


@router.get("/samples")
async def samples(
    run: TheRun,
    here: HasContext,
    points: Annotated[int, Query(ge=2, le=10_000)] = 500,
    first_step: Annotated[int, Query(ge=0)] = 0,
    attempt: Annotated[int | None, Query(ge=1)] = None,
) -> SeriesView:
    """Its loss curve, thinned to about `points`. Where steps repeat, the newest attempt counts."""
    series = await here.store.samples(run.id, points=points, first_step=first_step, attempt=attempt)
    return SeriesView(
        step=series.step,
        attempt=series.attempt,
        loss=finite(series.loss),
        loss_max=finite(series.loss_max),
        grad_norm=finite(series.grad_norm),
        seconds=finite(series.seconds),
        time=series.time,
    )


@router.get("/explain")
async def explanation(run: TheRun, here: HasContext) -> ExplanationView:
    """Why it is where it is, and what would change that."""
    if run.state in TERMINAL_RUN_STATES:
        said = f"{run.name} {run.state.value}: {run.reason}" if run.reason else run.state.value
        return ExplanationView(
            run=run.id,
            state=run.state.value,
            reason=run.reason,
            underlying=None,
            place=None,
            ahead=[],
            unblock="nothing: it is over",
            starts_at=None,
            sentences=[said],
        )
    if run.id not in here.controller.state.runs:
        raise NotLeaderError("this server does not lead: ask the leader, or try again in a moment")
    found = explain(here.controller.state, run.id, here.clock.now())
    return ExplanationView(
        run=run.id,
        state=found.state,
        reason=found.reason,
        underlying=found.underlying or None,
        place=found.place,
        ahead=found.ahead,
        unblock=found.unblock,
        starts_at=found.starts_at,
        sentences=found.sentences,
    )


@router.get("/logbook")
async def the_logbook(run: TheRun, here: HasContext) -> list[StoryView]:
    """The story, in sentences."""
    told = [entry async for entry in journal(here, run.id) if logbook.matters(entry)]
    return logbook.story(
        run,
        await here.store.attempts(run.id),
        await here.store.incidents(run.id, limit=1000),
        told,
        now=here.clock.now(),
    )


@router.get("/logs")
async def logs(run: TheRun, here: HasContext) -> list[LogFile]:
    """Which logs there are, by attempt and rank."""
    return await run_in_threadpool(log_files, here.settings.log_directory(run.id))


@router.get("/logs/controller")
async def controller_log(
    run: TheRun,
    here: HasContext,
    offset: Annotated[int, Query(ge=0)] = 0,
    tail: Annotated[int | None, Query(ge=0, le=100_000)] = None,
) -> LogPiece:
    """What the server logged, the lines that name this run only."""
    path = here.settings.server_log
    if not path.exists():
        raise NotFoundError(f"this server keeps no {path.name}: look where its output goes")
    piece = await run_in_threadpool(read_piece, path, offset=offset)
    lines = [line for line in piece.text.splitlines(keepends=True) if run.id in line]
    kept = lines if tail is None else lines[len(lines) - min(tail, len(lines)) :]
    return piece.model_copy(update={"text": "".join(kept)})


@router.get("/logs/{attempt}/{rank}")
async def rank_log(
    run: TheRun,
    attempt: int,
    rank: int,
    here: HasContext,
    offset: Annotated[int, Query(ge=0)] = 0,
    tail: Annotated[int | None, Query(ge=0, le=100_000)] = None,
) -> LogPiece:
    """Output of one rank, from `offset` on, or its last `tail` lines."""
    path = log_path(here.settings.log_directory(run.id), attempt, rank)
    return await run_in_threadpool(read_piece, path, offset=offset, tail=tail)
