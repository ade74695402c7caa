"""The fuzzer's database: one connection for all, of which only what is committed may be checked."""

from __future__ import annotations

import contextvars
import random

import pytest

from orchestrator.database.port import Snapshot
from orchestrator.fuzz.event_loop import WORLD, VirtualLoop, rest
from orchestrator.fuzz.fault_rates import FaultRates
from orchestrator.fuzz.flaky_database import CURRENT, FlakyConnection, FlakyDatabase
from orchestrator.fuzz.recording_store import RecordingStore


def test_what_a_server_is_about_to_write_is_undone_and_the_next_gets_in() -> None:
    loop = VirtualLoop()
    database = FlakyDatabase(loop, random.Random(1), FaultRates({}))
    first, second = FlakyConnection(database), FlakyConnection(database)

    async def write(connection: FlakyConnection, name: str) -> None:
        await connection.begin("BEGIN")
        database.raw.execute(f"CREATE TABLE {name} (x)")

    def tables() -> set[str]:
        query = "SELECT name FROM sqlite_master WHERE name IN ('one', 'two')"
        return {name for (name,) in database.raw.execute(query)}

    assert loop.run(loop.spawn(WORLD, write(first, "one")))
    waiting = loop.spawn(WORLD, write(second, "two"))
    assert not loop.run(waiting), "one transaction at a time"
    assert tables() == {"one"}
    database.undo_open()
    assert tables() == set()
    assert loop.run(waiting)
    assert tables() == {"two"}
    loop.close()


class Reader:
    """Compares what is read with what is in the database when it hears of it."""

    def __init__(self, database: FlakyDatabase) -> None:
        self.database, self.writes = database, 0
        self.heard: list[tuple[int, int]] = []

    def queues(self) -> int:
        (count,) = self.database.raw.execute("SELECT count(*) FROM queues").fetchone()
        return int(count)

    def write(self) -> None:
        self.database.raw.execute("INSERT INTO queues VALUES ('research', '{}')")
        self.writes += 1

    def loaded(self, snapshot: Snapshot) -> None:
        self.heard.append((len(snapshot.queues), self.queues()))


@pytest.mark.parametrize("steps", range(12))
def test_what_a_paused_server_read_long_ago_is_not_held_against_it(steps: int) -> None:
    """It is paused between any two steps of its load, and another writes where it can."""
    heard = contextvars.copy_context().run(_load_with_a_pause, steps)
    assert heard in ([], [(0, 0)], [(1, 1)])


def _load_with_a_pause(steps: int) -> list[tuple[int, int]]:
    loop = VirtualLoop()
    database = FlakyDatabase(loop, random.Random(1), FaultRates({}))
    CURRENT.set(database)
    reader = Reader(database)

    async def main() -> None:
        loading = loop.spawn("server", RecordingStore(reader).load())
        loop.interrupt("server", steps, lambda: loop.pause("server"))
        await rest(loop, 5.0)
        if database.holder is None:
            reader.write()
        loop.resume("server")
        await loading

    assert loop.run(loop.spawn(WORLD, main()))
    loop.close()
    return reader.heard
