"""The memory of alert channels, and updates in the outbox, in each run database."""

from __future__ import annotations

import datetime as dt
from collections.abc import AsyncIterator

import pytest

from orchestrator.core.model.states import RunState
from orchestrator.database import retention
from orchestrator.database.port import Batch
from orchestrator.database.sql_store import SqlStore
from tests.alert_data import RESOLVED, update
from tests.database_data import NOW, RUN, begin, lead, run


@pytest.fixture
async def sql(store_url: str | None) -> AsyncIterator[SqlStore]:
    if store_url is None:
        pytest.skip("the store in memory keeps nothing for channels")
    opened = await SqlStore.open(store_url)
    yield opened
    await opened.close()


async def test_a_channel_finds_again_what_it_has_last_written(sql: SqlStore) -> None:
    memory = sql.alert_memory
    assert await memory.read("slack/run-1/hang/1") is None
    await memory.write("slack/run-1/hang/1", {"ts": "1.2", "text": "nul \x00 and ü"}, run="run-1")
    await memory.write("slack/run-1/hang/1", {"ts": "3.4", "text": "nul \x00 and ü"}, run="run-1")
    assert await sql.alert_memory.read("slack/run-1/hang/1") == {
        "ts": "3.4",
        "text": "nul \x00 and ü",
    }


async def test_an_update_comes_back_from_the_outbox_as_it_went_in(sql: SqlStore) -> None:
    epoch = await begin(sql)
    sent = update(2, run=RUN, lost_seconds=95.0, **RESOLVED)
    await sql.commit(Batch(outbox=[sent]), epoch=epoch)
    assert (await sql.load()).outbox == [sent]


async def test_what_was_told_of_a_run_goes_with_its_history(sql: SqlStore) -> None:
    epoch = await lead(sql)
    ended = run(state=RunState.SUCCEEDED, ended_at=NOW - dt.timedelta(days=40))
    await sql.commit(Batch(entities=[ended]), epoch=epoch)
    await sql.alert_memory.write("slack/a", {"ts": "1"}, run=RUN)
    await sql.alert_memory.write("slack/b", {"ts": "2"})
    until = NOW - dt.timedelta(days=30)
    await retention.prune(sql._database, until=until, now=NOW)
    assert await sql.alert_memory.read("slack/a") is None
    assert await sql.alert_memory.read("slack/b") == {"ts": "2"}
