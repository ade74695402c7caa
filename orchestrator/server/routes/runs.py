"""Runs: submit, list, show, and everything a person can ask of one."""

# ruff: noqa: FAST003 -- path parameters are read by dependencies, which ruff does not see through aliases

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Query
from pydantic import BaseModel, Field
from starlette.concurrency import run_in_threadpool
from ulid import ULID

from jobs.spec import RunSpec
from jobs.spec_file import Source, parse, resolve, validate
from orchestrator.core.messages.events import (
    RestartAsked,
    RollbackAsked,
    RunCancelled,
    RunHeld,
    RunReleased,
    RunSubmitted,
)
from orchestrator.core.model.entities import Attempt, Run
from orchestrator.core.model.states import RunState
from orchestrator.core.views.build import attempt_view
from orchestrator.core.views.dry_run import try_out
from orchestrator.core.views.models import (
    AttemptView,
    DryRunView,
    RunDetail,
    RunView,
    SubmittedView,
)
from orchestrator.errors import InvalidError, NotLeaderError
from orchestrator.server.context import HasContext, Operator, TheRun, Viewer
from orchestrator.server.run_queries import detail, line

router = APIRouter(prefix="/runs", tags=["runs"])


class Submission(BaseModel):
    """A run to be. Either `spec` (JSON) or `yaml` (text)."""

    spec: dict[str, Any] | None = None
    yaml: str | None = Field(default=None, max_length=1_000_000)
    name: str = Field(default="run.yaml", description="What problems are reported under.")
    base_directory: str = Field(
        description="Absolute; what a relative workdir is relative to: the spec file's directory."
    )
    owner: str = ""


class Asked(BaseModel):
    """Why, for the logbook."""

    reason: str = Field(default="", max_length=1000)


class RollbackBody(Asked):
    """Which checkpoint, and what to leave out."""

    to_step: int | None = Field(
        default=None, ge=0, description="That step or an older one; null: the newest good."
    )
    skip: tuple[int, int] | None = Field(
        default=None, description="Batches to leave out, inclusive, counted from 1."
    )


def _read(body: Submission) -> RunSpec:
    if (body.spec is None) == (body.yaml is None):
        raise InvalidError("give either `spec` or `yaml`")
    if not body.base_directory.startswith("/"):
        raise InvalidError(f"base_directory: expected an absolute path, got {body.base_directory}")
    if body.yaml is not None:
        spec, source = parse(body.yaml, body.name)
    else:
        source = Source(body.name)
        spec = validate(body.spec or {}, source)
    return resolve(spec, body.base_directory, source)


@router.post("", status_code=201)
async def submit(body: Submission, here: HasContext, caller: Operator) -> SubmittedView:
    """Check a spec and submit it as a new run. Nothing is made of one that is wrong."""
    spec = await run_in_threadpool(_read, body)
    run = str(ULID())
    owner = body.owner or spec.owner or caller.name
    await here.tell(caller, RunSubmitted, run=run, spec=spec, owner=owner)
    view = await line(here, await here.store.run(run))
    return SubmittedView(
        **view.model_dump(), warnings=_without_effect(spec, here.controller.ignored_fields)
    )


def _without_effect(spec: RunSpec, ignored: Mapping[str, str]) -> list[str]:
    """One sentence for each field that the spec sets and this server ignores.

    Such fields are accepted, so that one spec is good for every cluster.
    """
    return [
        f"{field}: has no effect here: {reason}"
        for field, reason in ignored.items()
        if _is_set(spec, field.split("."))
    ]


def _is_set(model: BaseModel, path: Sequence[str]) -> bool:
    """Whether the field at `path` differs from its default."""
    name, *below = path
    value = getattr(model, name)
    if below:
        return _is_set(value, below)
    return bool(value != type(model).model_fields[name].get_default(call_default_factory=True))


@router.post("/dry-run")
async def dry_run(body: Submission, here: HasContext, _: Viewer) -> DryRunView:
    """Check a spec and say where it would run, or why it would wait. Nothing is changed."""
    spec = await run_in_threadpool(_read, body)
    if not here.controller.is_leader:
        raise NotLeaderError("this server does not lead: ask the leader, or try again in a moment")
    return try_out(here.controller.state, spec, here.clock.now())


@router.get("")
async def list_runs(
    here: HasContext,
    _: Viewer,
    state: Annotated[list[RunState], Query()] = [],  # noqa: B006 (FastAPI copies defaults)
    name: str | None = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
) -> list[RunView]:
    """Runs, newest first."""
    runs = await here.store.runs(states=state, name=name, limit=limit)
    return [await line(here, run) for run in runs]


@router.get("/{reference}")
async def show(run: TheRun, here: HasContext) -> RunDetail:
    """One run in full."""
    return await detail(here, run)


@router.get("/{reference}/attempts")
async def list_attempts(run: TheRun, here: HasContext) -> list[AttemptView]:
    """Its attempts, oldest first."""
    attempts: list[Attempt] = await here.store.attempts(run.id)
    return [attempt_view(attempt) for attempt in attempts]


async def _after(here: HasContext, run: Run) -> RunView:
    return await line(here, await here.store.run(run.id))


@router.post("/{reference}/cancel")
async def cancel(run: TheRun, body: Asked, here: HasContext, caller: Operator) -> RunView:
    """End it."""
    await here.tell(caller, RunCancelled, run=run.id, reason=body.reason)
    return await _after(here, run)


@router.post("/{reference}/hold")
async def hold(run: TheRun, body: Asked, here: HasContext, caller: Operator) -> RunView:
    """Stop all automatic action; monitoring goes on."""
    await here.tell(caller, RunHeld, run=run.id, reason=body.reason)
    return await _after(here, run)


@router.post("/{reference}/release")
async def release(run: TheRun, body: Asked, here: HasContext, caller: Operator) -> RunView:
    """End a hold."""
    await here.tell(caller, RunReleased, run=run.id, reason=body.reason)
    return await _after(here, run)


@router.post("/{reference}/restart")
async def restart(run: TheRun, body: Asked, here: HasContext, caller: Operator) -> RunView:
    """Restart the gang from its newest checkpoint."""
    await here.tell(caller, RestartAsked, run=run.id, reason=body.reason)
    return await _after(here, run)


@router.post("/{reference}/rollback")
async def rollback(run: TheRun, body: RollbackBody, here: HasContext, caller: Operator) -> RunView:
    """Load an older checkpoint, and perhaps leave batches out."""
    if body.skip is not None and not 1 <= body.skip[0] <= body.skip[1]:
        raise InvalidError(f"skip: expected A:B with 1 <= A <= B, got {body.skip}")
    await here.tell(
        caller,
        RollbackAsked,
        run=run.id,
        to_step=body.to_step,
        skip=body.skip,
        reason=body.reason,
    )
    return await _after(here, run)
