"""GPU-hours by project, queue, user, cause or run."""

from __future__ import annotations

import asyncio
import datetime as dt
from typing import Annotated

from fastapi import APIRouter, Query
from pydantic import AwareDatetime, BaseModel, Field

from orchestrator.core.views.usage import MICROSECONDS_PER_HOUR, By, RunUsage, Sum, summed, usage_of
from orchestrator.errors import InvalidError
from orchestrator.server.context import HasContext, Viewer

router = APIRouter(tags=["system"])
_PAGE = 100
"""Runs that are read at a time."""
_DAYS = 30


class UsageRow(BaseModel):
    """The usage of one key. Hours are exact to a microsecond of a GPU."""

    key: str = Field(description="The project, the queue …; of runs, the id.")
    name: str | None = Field(default=None, description="Of a run: its name.")
    runs: int = Field(description="Runs that held nodes in the period.")
    gpu_hours: float
    node_hours: float = Field(description="Also of runs without GPUs.")
    causes: dict[str, float] = Field(
        description="GPU-hours by use: `productive`, `checkpointing`, `unknown`, `starting`, "
        "`waiting`, `stopping`, and `lost: ` with the class of the failure."
    )


class UsageView(BaseModel):
    """GPU-hours within a period."""

    by: By
    since: dt.datetime
    until: dt.datetime = Field(description="Runs that are not over are counted up to here.")
    rows: list[UsageRow] = Field(description="The most GPU-hours first.")
    total: UsageRow = Field(description="The sum over all runs of the period.")


class UsageQuery(BaseModel):
    """Which usage."""

    by: By = By.PROJECT
    since: AwareDatetime | None = Field(default=None, description="Default: 30 days before.")
    until: AwareDatetime | None = Field(default=None, description="Default: now.")


@router.get("/usage")
async def usage(
    here: HasContext, caller: Viewer, asked: Annotated[UsageQuery, Query()]
) -> UsageView:
    """GPU-hours of a period, of the runs that the caller may see."""
    now = here.clock.now()
    until = min(asked.until or now, now)
    since = asked.since or _before(until)
    if since >= until:
        raise InvalidError("since: expected a time before `until`, and in the past")
    found: list[RunUsage] = []
    after = ""
    while page := await here.store.usage_records(since, until, after=after, limit=_PAGE):
        after = page[-1].run.id
        for record in page:
            spec = record.run.spec
            if caller.scope.covers(spec.project, spec.queue):
                found.append(usage_of(record, since, until, now))
            await asyncio.sleep(0)  # noqa: TID251 (it only lets others in; no time passes)
    total = Sum()
    for each in found:
        if each.node_time:
            total.add(each.node_time, each.gpus_per_node)
    names = {each.run.id: each.run.name for each in found} if asked.by is By.RUN else {}
    rows = [_row(key, each, names.get(key)) for key, each in summed(found, asked.by).items()]
    rows.sort(key=lambda row: (-row.gpu_hours, -row.node_hours, row.key))
    return UsageView(
        by=asked.by, since=since, until=until, rows=rows, total=_row("total", total, None)
    )


def _before(until: dt.datetime) -> dt.datetime:
    return until - min(dt.timedelta(days=_DAYS), until - dt.datetime.min.replace(tzinfo=dt.UTC))


def _row(key: str, found: Sum, name: str | None) -> UsageRow:
    return UsageRow(
        key=key,
        name=name,
        runs=found.runs,
        gpu_hours=found.gpu_time.total() / MICROSECONDS_PER_HOUR,
        node_hours=found.node_time.total() / MICROSECONDS_PER_HOUR,
        causes={use: time / MICROSECONDS_PER_HOUR for use, time in sorted(found.gpu_time.items())},
    )
