"""Samples of a run as they were reported, in pages: for `babysit monitors backtest`."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from fastapi import APIRouter, Path, Query

from orchestrator.core.views.hardware import View
from orchestrator.server.context import HasContext, TheRun

MOST = 2**63 - 1
"""The largest number of the database."""
Number = float | Literal["nan", "inf", "-inf"]
"""JSON has no word for not-a-number, and a monitor must know it from a loss that is not there."""
router = APIRouter(prefix="/runs/{reference}/records", tags=["story"])


class PartView(View):
    """The stored samples of one rank in one attempt, in figures."""

    attempt: int
    rank: int
    first_step: int
    last_step: int
    samples: int
    losses: int


class RecordsView(View):
    """Samples of one rank, in columns of equal length; units as in the reports of agents."""

    step: list[int]
    batch: list[int]
    time: list[float]
    loss: list[Number]
    grad_norm: list[Number]
    tokens: list[Number]
    seconds: list[Number]
    blocked_seconds: list[Number]
    learning_rate: list[Number]
    expected_until: list[int]


@router.get("")
async def parts(run: TheRun, here: HasContext) -> list[PartView]:
    """The stored parts, by attempt and rank. The samples of most ranks are not stored."""
    return [PartView(**part._asdict()) for part in await here.store.sample_parts(run.id)]


@router.get("/{attempt}/{rank}")
async def page(
    run: TheRun,
    here: HasContext,
    attempt: Annotated[int, Path(ge=1, le=MOST)],
    rank: Annotated[int, Path(ge=0, le=MOST)],
    after: Annotated[int, Query(ge=-1, le=MOST)] = -1,
) -> RecordsView:
    """Some thousand samples after a step, in order; empty: there are no more."""
    found = await here.store.sample_page(run.id, attempt, rank, after=after)
    return RecordsView(
        step=found.step,
        batch=found.batch,
        time=found.time,
        loss=[_number(math.nan if value is None else value) for value in found.loss],
        grad_norm=[_number(value) for value in found.grad_norm],
        tokens=[_number(value) for value in found.tokens],
        seconds=[_number(value) for value in found.seconds],
        blocked_seconds=[_number(value) for value in found.blocked_seconds],
        learning_rate=[_number(value) for value in found.learning_rate],
        expected_until=found.expected_until,
    )


def _number(value: float) -> Number:
    if math.isfinite(value):
        return value
    return "nan" if math.isnan(value) else "inf" if value > 0 else "-inf"
