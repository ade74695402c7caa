"""A database without room: named, told without the database, and over by itself."""

from __future__ import annotations

import asyncio

import pytest
import sqlalchemy

from jobs.clock import ManualClock
from monitors.types import Severity
from orchestrator.controller.database_trouble import NOTIFY_SECONDS, DatabaseTrouble, tell
from orchestrator.controller.transaction import commit_when_possible
from orchestrator.core.messages.instructions import Notify
from orchestrator.database.driver_errors import our_errors
from orchestrator.database.memory_store import MemoryStore
from orchestrator.database.port import Batch
from orchestrator.errors import DatabaseFullError, DatabaseUnavailableError


def test_sqlite_without_room_is_named() -> None:
    engine = sqlalchemy.create_engine("sqlite://")
    with engine.connect() as connection:
        connection.exec_driver_sql("CREATE TABLE t (x)")
        connection.exec_driver_sql("PRAGMA max_page_count = 3")
        with pytest.raises(DatabaseFullError, match="no room left"), our_errors(engine.url):
            connection.exec_driver_sql("INSERT INTO t VALUES (zeroblob(100000))")


class FullStore(MemoryStore):
    """Refuses the first commits as a full disk does, and says what was known meanwhile."""

    def __init__(self, trouble: DatabaseTrouble, refusals: int) -> None:
        super().__init__()
        self.trouble, self.refusals = trouble, refusals
        self.seen: list[tuple[str, bool]] = []

    async def commit(self, batch: Batch, *, epoch: int) -> int:
        self.seen.append((self.trouble.reason, self.trouble.full))
        if self.refusals:
            self.refusals -= 1
            raise DatabaseFullError("no room left")
        return 0


async def test_a_transaction_that_waits_for_room_is_known_until_it_is_stored() -> None:
    trouble = DatabaseTrouble()
    store = FullStore(trouble, refusals=2)
    await commit_when_possible(store, Batch(), 1, ManualClock(), trouble)
    assert store.seen == [("", False), ("no room left", True), ("no room left", True)]
    assert not trouble.reason


class Channel:
    """An alert channel that fails the first time."""

    channel, ignored_fields = "test", {}

    def __init__(self) -> None:
        self.tries: list[Notify] = []

    async def notify(self, notice: Notify) -> None:
        self.tries.append(notice)
        if len(self.tries) == 1:
            raise OSError("the channel is away")
        raise asyncio.CancelledError


async def test_people_hear_of_a_full_database_without_it() -> None:
    trouble, channel, clock = DatabaseTrouble(), Channel(), ManualClock()
    trouble.failed("no room left", clock.monotonic(), full=True)
    with pytest.raises(asyncio.CancelledError):
        await tell(trouble, channel, clock)
    first, again = channel.tries
    assert first == again
    assert first.severity is Severity.CRITICAL
    assert "no room left" in first.text


def test_a_database_that_is_away_for_a_moment_wakes_nobody() -> None:
    trouble = DatabaseTrouble()
    trouble.failed(str(DatabaseUnavailableError("away")), 100.0, full=False)
    assert trouble.notice(100.0 + NOTIFY_SECONDS / 2) is None
    notice = trouble.notice(100.0 + NOTIFY_SECONDS)
    assert notice is not None
    trouble.told()
    assert trouble.notice(1000.0) is None
    trouble.over()
    trouble.failed("away again", 2000.0, full=False)
    later = trouble.notice(2000.0 + NOTIFY_SECONDS)
    assert later is not None
    assert later.id != notice.id
