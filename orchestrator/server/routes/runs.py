"""Runs: submit, list, show, and the requests of operators."""

# ruff: noqa: FAST003 -- path parameters are read by dependencies, which ruff does not see through aliases

from __future__ import annotations

import asyncio
import contextlib
import difflib
import functools
from collections.abc import Iterator
from typing import Annotated, Any

from fastapi import APIRouter, Query
from pydantic import BaseModel, Field
from starlette.concurrency import run_in_threadpool
from ulid import ULID

from jobs.environment import Environment
from jobs.spec import RunSpec
from jobs.spec_file import Source, SpecError
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
from orchestrator.core.requests.cluster import DEFAULT_QUEUE
from orchestrator.core.views.build import attempt_view
from orchestrator.core.views.dry_run import try_out
from orchestrator.core.views.models import (
    AttemptView,
    DryRunView,
    RunDetail,
    RunView,
    SubmittedView,
)
from orchestrator.database.credentials import Token
from orchestrator.errors import ConflictError, InvalidError, TemporaryError
from orchestrator.server.context import (
    Context,
    HasContext,
    Operator,
    TheRun,
    Viewer,
    owner_of,
    permit,
)
from orchestrator.server.idempotency import Key, is_submitted
from orchestrator.server.run_queries import detail, line, lines
from orchestrator.server.spec_notes import CheckedSpec, needs, notes, room_notes
from orchestrator.server.submissions import Submission, read_submission

router = APIRouter(prefix="/runs", tags=["runs"])
_MOST = 1000
"""Runs in one answer; a token with a scope sees those of its scope among the newest."""


class Asked(BaseModel):
    """A reason, for the logbook."""

    reason: str = Field(default="", max_length=1000)


class RollbackBody(Asked):
    """Which checkpoint to load, and which batches to skip."""

    to_step: int | None = Field(
        default=None,
        ge=0,
        description="The step to load (or an older one, if damaged); null: one back.",
    )
    skip: tuple[int, int] | None = Field(
        default=None, description="Batches to skip, both included, counted from 1."
    )
    force: bool = Field(
        default=False,
        description="Load the step of `to_step` even if it is doubted, superseded or bad.",
    )


@router.post("", status_code=201)
async def submit(
    body: Submission, here: HasContext, caller: Operator, key: Key = None
) -> SubmittedView:
    """Check a spec and submit it as a new run. A wrong spec creates nothing."""
    read = await _checked(here, body)
    spec, run = read.spec, key or str(ULID())
    permit(caller, spec)
    owner = owner_of(caller, body.owner or spec.owner)
    bundle = await _bundle(here, read, body.bundle)
    async with here.one_at_a_time(run):
        if key is None or not await is_submitted(here, key, spec):
            here.refuse_unless_leader()
            await _store_environment(here, run, read.environment)
            told = {"run": run, "spec": spec, "owner": owner, "bundle": bundle}
            await _submit(here, caller, read.source, told)
    view = await line(here, await here.store.run(run))
    short = [need for need in await needs(here, spec) if not need.ok]
    warnings = [*notes(here, read), *room_notes(read, short)]
    if bundle is not None and (risk := here.bundles.risk(bundle)):
        warnings.append(risk)
    return SubmittedView(**view.model_dump(), warnings=warnings)


async def _submit(here: Context, caller: Token, source: Source, told: dict[str, Any]) -> None:
    try:
        with _placed(source):
            refuse_unknown_queue(here, told["spec"].queue)
            _refuse_incomplete(here, told["spec"])
            await here.tell(caller, RunSubmitted, **told)
    except (InvalidError, SpecError, ConflictError):  # nothing was changed
        # But a run that was asked of a leader which then stepped down may be stored.
        here.environments.remove(told["run"])
        raise


async def _bundle(here: Context, read: CheckedSpec, bundle: str | None) -> str | None:
    """The run's code; None: the run needs none.

    Raises:
        InvalidError: It was not uploaded.
    """
    if not read.needs_bundle:
        return None
    if bundle is None:
        raise InvalidError(
            "the run is on other machines, and its code was not uploaded: submit it with `babysit"
            " submit` of this version, or set `upload: false` if the image has the code"
        )
    if not await here.bundles.has(bundle):
        raise InvalidError(f"the server does not have the bundle {bundle}: upload it again")
    return bundle


async def _checked(here: Context, body: Submission) -> CheckedSpec:
    read = functools.partial(read_submission, body, here.controller)
    try:
        return await asyncio.get_running_loop().run_in_executor(here.spec_threads, read)
    except OSError as error:  # a name that is too long, a directory that may not be searched
        raise InvalidError(f"the spec names a file: {error.filename}: {error.strerror}") from error


async def _store_environment(here: Context, run: str, environment: Environment) -> None:
    """Store it before the run: a run that is stored must be able to start."""
    try:
        await run_in_threadpool(here.environments.write, run, environment)
    except OSError as error:
        raise TemporaryError(
            f"the environment of the run cannot be stored in {here.settings.home}: "
            f"{error.strerror}; nothing was submitted"
        ) from error


@contextlib.contextmanager
def _placed(source: Source) -> Iterator[None]:
    """Turn a refusal of one field of a spec into a problem with its line and column."""
    try:
        yield
    except InvalidError as error:
        if not error.field:
            raise
        message = str(error).removeprefix(f"{error.field}: ")
        raise SpecError([source.problem(tuple(error.field.split(".")), message)]) from error


def refuse_unknown_queue(here: Context, queue: str) -> None:
    """Refuse a queue that is mistyped: it would have no quota, or a token for it no runs.

    Raises:
        InvalidError: The queue does not exist. The default queue always does.
    """
    known = {DEFAULT_QUEUE, *here.controller.state.queues}
    if not here.controller.is_leader or queue in known:
        return
    near = difflib.get_close_matches(queue, known, n=1)
    hint = f"did you mean {near[0]}?" if near else f"there are: {', '.join(sorted(known))}."
    raise InvalidError(
        f"no queue {queue}; {hint} `babysit queues set {queue} --gpus N` creates it",
        field="queue",
    )


def _refuse_incomplete(here: Context, spec: RunSpec) -> None:
    """Refuse a spec without a field that the cluster needs: it could be launched on no node.

    Raises:
        InvalidError: A field is missing.
    """
    for field, what in here.controller.needed_fields.items():
        if not getattr(spec, field):
            raise InvalidError(what, field=field)


@router.post("/dry-run")
async def dry_run(body: Submission, here: HasContext, caller: Operator) -> DryRunView:
    """Check a spec; say where it would start, or why it would wait. Nothing is changed.

    Needs the role operator: the server looks at the files that the spec names.
    """
    read = await _checked(here, body)
    permit(caller, read.spec)
    owner_of(caller, body.owner or read.spec.owner)
    here.refuse_unless_leader()
    with _placed(read.source):
        refuse_unknown_queue(here, read.spec.queue)
        _refuse_incomplete(here, read.spec)
        tried = await here.plan(lambda state, now: try_out(state, read.spec, now))
    room = await needs(here, read.spec)
    short = [need for need in room if not need.ok]
    sentences = [*tried.sentences, *(f"{need}." for need in room if need.ok)]
    warnings = [*notes(here, read), *room_notes(read, short)]
    return tried.model_copy(update={"warnings": warnings, "sentences": sentences})


@router.get("")
async def list_runs(
    here: HasContext,
    caller: Viewer,
    state: Annotated[list[RunState], Query()] = [],  # noqa: B006 (FastAPI copies defaults)
    name: str | None = None,
    limit: Annotated[int, Query(ge=1, le=_MOST)] = 100,
) -> list[RunView]:
    """Runs, newest first."""
    most = limit if caller.scope.everything else _MOST
    runs = await here.store.runs(states=state, name=name, limit=most)
    mine = [run for run in runs if caller.scope.covers(run.spec.project, run.spec.queue)]
    return await lines(here, mine[:limit])


@router.get("/{reference}")
async def show(run: TheRun, here: HasContext) -> RunDetail:
    """One run with its restarts and incidents."""
    return await detail(here, run)


@router.get("/{reference}/attempts")
async def list_attempts(run: TheRun, here: HasContext) -> list[AttemptView]:
    """The attempts of a run, oldest first."""
    attempts: list[Attempt] = await here.store.attempts(run.id)
    return [attempt_view(attempt) for attempt in attempts]


async def _after(here: HasContext, run: Run) -> RunView:
    return await line(here, await here.store.run(run.id))


@router.post("/{reference}/cancel")
async def cancel(run: TheRun, body: Asked, here: HasContext, caller: Operator) -> RunView:
    """Cancel a run. Its ranks may save first."""
    await here.tell(caller, RunCancelled, run=run.id, reason=body.reason)
    return await _after(here, run)


@router.post("/{reference}/hold")
async def hold(run: TheRun, body: Asked, here: HasContext, caller: Operator) -> RunView:
    """Stop all automatic action for a run; monitoring goes on."""
    await here.tell(caller, RunHeld, run=run.id, reason=body.reason)
    return await _after(here, run)


@router.post("/{reference}/release")
async def release(run: TheRun, body: Asked, here: HasContext, caller: Operator) -> RunView:
    """End a hold."""
    await here.tell(caller, RunReleased, run=run.id, reason=body.reason)
    return await _after(here, run)


@router.post("/{reference}/restart")
async def restart(run: TheRun, body: Asked, here: HasContext, caller: Operator) -> RunView:
    """Restart a run from its newest checkpoint."""
    await here.tell(caller, RestartAsked, run=run.id, reason=body.reason)
    return await _after(here, run)


@router.post("/{reference}/rollback")
async def rollback(run: TheRun, body: RollbackBody, here: HasContext, caller: Operator) -> RunView:
    """Restart a run from an older checkpoint, and skip batches."""
    if body.skip is not None and not 1 <= body.skip[0] <= body.skip[1]:
        first, last = body.skip
        raise InvalidError(
            f"skip: expected [first, last] with 1 <= first <= last, got [{first}, {last}]"
        )
    await here.tell(
        caller,
        RollbackAsked,
        run=run.id,
        to_step=body.to_step,
        skip=body.skip,
        force=body.force,
        reason=body.reason,
    )
    return await _after(here, run)
