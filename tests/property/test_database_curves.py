"""Curves drawn from summaries agree with the samples, whatever attempts went back and forth."""

from __future__ import annotations

import asyncio
from unittest import mock

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from orchestrator.core.model.states import AttemptState
from orchestrator.database import sample_rows
from orchestrator.database import samples as arrays
from orchestrator.database.port import Batch, Series
from orchestrator.database.sql_store import SqlStore
from tests.database_data import RUN, attempt, begin, columns, run, samples

Ranges = list[tuple[int, int]]


async def curve(ranges: Ranges, points: int, first_step: int) -> Series:
    """Of a run whose attempts reported these steps; the loss names attempt and step."""
    store = await SqlStore.open("sqlite://")
    try:
        epoch = await begin(store)
        for number, (first, last) in enumerate(ranges, 1):
            if number > 1:
                turn = [attempt(number - 1, state=AttemptState.ENDED), attempt(number)]
                await store.commit(Batch(entities=[run(attempt=number), *turn]), epoch=epoch)
            report = columns(first, last)
            report = report.model_copy(update={"loss": [loss(number, s) for s in report.step]})
            await store.commit(Batch(samples=[samples(report, attempt=number)]), epoch=epoch)
        return await store.samples(RUN, points=points, first_step=first_step)
    finally:
        await store.close()


def loss(number: int, step: int) -> float:
    """Different for each sample, and in no order."""
    return ((step * 7919 + number * 104729) % 10007) / 7


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.lists(
        st.tuples(st.integers(1, 40), st.integers(0, 25)).map(lambda x: (x[0], x[0] + x[1])),
        min_size=1,
        max_size=6,
    ),
    st.integers(1, 40),
    st.integers(0, 50),
)
def test_summaries_and_samples_agree(ranges: Ranges, points: int, first_step: int) -> None:
    with mock.patch.object(arrays, "CHUNK", 4), mock.patch.object(sample_rows, "UNPACKED", 2):
        series = asyncio.run(curve(ranges, points, first_step))
    newest = {
        step: number
        for number, (first, last) in enumerate(ranges, 1)
        for step in range(max(first, first_step), last + 1)
    }
    assert len(series.step) <= points
    assert series.step == sorted(set(series.step))
    assert dict(zip(series.step, series.attempt, strict=True)).items() <= newest.items()
    assert series.loss == [loss(newest[step], step) for step in series.step]
    assert max(series.step, default=0) == max(newest, default=0)
    for before, step, highest in zip([0, *series.step], series.step, series.loss_max, strict=False):
        within = [loss(number, s) for s, number in newest.items() if before < s <= step]
        assert highest == max(within)
