"""Which bundles of code runs refer to."""

from __future__ import annotations

import datetime as dt

from sqlalchemy import select

from orchestrator.core.model.states import TERMINAL_RUN_STATES
from orchestrator.database.engine import Database
from orchestrator.database.mapping import RUNS


async def bundles_of_runs(database: Database) -> dict[str, dt.datetime | None]:
    """Each bundle that a run refers to, and when the last of its runs ended; None: one is live.

    Raises:
        DatabaseUnavailableError: The database does not answer.
    """
    runs = RUNS.table.c
    query = select(runs.state, runs.ended_at, runs.body["bundle"].as_string().label("bundle"))
    found: dict[str, dt.datetime | None] = {}
    over = {state.value for state in TERMINAL_RUN_STATES}
    async with database.reading() as connection:
        rows = (await connection.execute(query)).all()
    for state, ended_at, bundle in rows:
        if not bundle:
            continue
        ended = ended_at if state in over else None
        before = found.get(bundle, ended)
        found[bundle] = None if ended is None or before is None else max(before, ended)
    return found
