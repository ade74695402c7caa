"""The past of a run: events, samples, logs, the logbook, and the explanation of its state."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Path, Query
from pydantic import BaseModel, Field
from starlette.concurrency import run_in_threadpool

from jobs.log_pieces import LogPiece
from orchestrator.core.model.states import TERMINAL_RUN_STATES
from orchestrator.core.text import outcome
from orchestrator.core.views import logbook
from orchestrator.core.views.explain import explain
from orchestrator.core.views.models import (
    EventView,
    ExplanationView,
    MetricsView,
    SeriesView,
    StoryView,
)
from orchestrator.database.port import JournalEntry
from orchestrator.errors import NotFoundError, NotLeaderError
from orchestrator.server.context import AnywhereViewer, Context, HasContext, TheRun
from orchestrator.server.logs import LogFile, read_piece
from orchestrator.server.run_queries import finite, journal, newest_sample

MOST = 2**63 - 1
"""The largest number of the database."""
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


class JournalPage(BaseModel):
    """Which rows of a journal."""

    after: int = Field(default=0, ge=0, le=MOST, description="Only positions greater than this.")
    before: int | None = Field(
        default=None, ge=1, description="Only positions below this, and of those the newest."
    )
    limit: int = Field(default=1000, ge=1, le=5000)
    kind: Literal["event", "instruction"] | None = None


Page = Annotated[JournalPage, Query()]


async def _events(here: Context, run: str | None, page: JournalPage) -> list[EventView]:
    return [_event(entry) for entry in await here.store.journal(run, **page.model_dump())]


@router.get("/events")
async def events(run: TheRun, here: HasContext, page: Page) -> list[EventView]:
    """The journal of a run: events and decisions with their reasons, oldest first."""
    return await _events(here, run.id, page)


@everything.get("/events")
async def all_events(here: HasContext, _: AnywhereViewer, page: Page) -> list[EventView]:
    """The whole journal, oldest first."""
    return await _events(here, None, page)


@router.get("/samples")
async def samples(
    run: TheRun,
    here: HasContext,
    points: Annotated[int, Query(ge=2, le=10_000)] = 500,
    first_step: Annotated[int, Query(ge=0, le=MOST)] = 0,
    attempt: Annotated[int | None, Query(ge=1, le=MOST)] = None,
) -> SeriesView:
    """The loss curve, thinned to about `points`. Where steps repeat, the newest attempt counts."""
    series = await here.store.samples(run.id, points=points, first_step=first_step, attempt=attempt)
    return SeriesView(
        step=series.step,
        attempt=series.attempt,
        loss=finite(series.loss),
        loss_min=finite(series.loss_min),
        loss_max=finite(series.loss_max),
        missing=series.missing,
        grad_norm=finite(series.grad_norm),
        seconds=finite(series.seconds),
        time=series.time,
    )


@router.get("/metrics")
async def metrics(
    run: TheRun,
    here: HasContext,
    points: Annotated[int, Query(ge=1, le=10_000)] = 500,
    first_step: Annotated[int, Query(ge=0, le=MOST)] = 0,
    attempt: Annotated[int | None, Query(ge=1, le=MOST)] = None,
) -> MetricsView:
    """Values that the script reported beside the loss: `report(metrics={"accuracy": 0.9})`.

    Of the lowest rank with a loss, or with metrics if that rank has none. A rank has up to 16
    names; its log has those left out.
    """
    series = await here.store.metrics(run.id, points=points, first_step=first_step, attempt=attempt)
    return MetricsView(
        step=series.step,
        attempt=series.attempt,
        metrics={name: finite(row) for name, row in series.metrics.items()},
    )


@router.get("/explain")
async def explanation(run: TheRun, here: HasContext) -> ExplanationView:
    """Why it is where it is, and what would change that."""
    if run.state in TERMINAL_RUN_STATES:
        return ExplanationView(
            run=run.id,
            state=run.state.value,
            reason=run.reason,
            underlying=None,
            place=None,
            ahead=[],
            unblock="nothing: the run is over",
            starts_at=None,
            sentences=[f"{run.name} {outcome(run.state, run.reason)}."],
        )
    if run.id not in here.controller.state.runs:
        raise NotLeaderError("this server is not the leader: ask the leader, or try again soon")
    found = await here.plan(lambda state, now: explain(state, run.id, now))
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
    entries = [entry async for entry in journal(here, run.id) if logbook.matters(entry)]
    newest = await newest_sample(here, run)
    return logbook.story(
        run,
        await here.store.attempts(run.id),
        await here.store.incidents(run.id, limit=1000),
        entries,
        now=here.clock.now(),
        step=None if newest is None else newest[0],
    )


@router.get("/logs")
async def logs(run: TheRun, here: HasContext) -> list[LogFile]:
    """Which logs there are, by attempt and rank."""
    return await here.logs.files(run)


@router.get("/logs/controller")
async def controller_log(
    run: TheRun,
    here: HasContext,
    offset: Annotated[int, Query(ge=0, le=MOST)] = 0,
    tail: Annotated[int | None, Query(ge=0, le=100_000)] = None,
) -> LogPiece:
    """The lines of the server's log that name this run."""
    path = here.settings.server_log
    if not path.exists():
        raise NotFoundError(f"this server writes no {path.name}: see where its output goes")
    piece = await run_in_threadpool(read_piece, path, offset=offset)
    lines = [line for line in piece.text.splitlines(keepends=True) if run.id in line]
    kept = lines if tail is None else lines[len(lines) - min(tail, len(lines)) :]
    return piece.model_copy(update={"text": "".join(kept)})


@router.get("/logs/{attempt}/{rank}")
async def rank_log(
    run: TheRun,
    attempt: Annotated[int, Path(ge=1, le=MOST)],
    rank: Annotated[int, Path(ge=0, le=MOST)],
    here: HasContext,
    offset: Annotated[int, Query(ge=0, le=MOST)] = 0,
    tail: Annotated[int | None, Query(ge=0, le=100_000)] = None,
) -> LogPiece:
    """Output of one rank, from `offset` on, or its last `tail` lines."""
    return await here.logs.piece(run, attempt, rank, offset=offset, tail=tail)
