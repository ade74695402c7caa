"""The fuzzer's database: one connection for all, of which only what is committed may be checked."""

from __future__ import annotations

import random

from orchestrator.fuzz.event_loop import WORLD, VirtualLoop
from orchestrator.fuzz.fault_rates import FaultRates
from orchestrator.fuzz.flaky_database import FlakyConnection, FlakyDatabase


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
