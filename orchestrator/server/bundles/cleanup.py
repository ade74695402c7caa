"""Deletes bundles that no run needs any more.

A bundle stays while a run that refers to it lives, and as long after the end of the last one as the
history of runs stays (`retention_days`). Above `retention_bytes`, or 1 GiB where they are in the
run database, the bundles of the runs that ended first go earlier, but none that was used within a
day: a submission may be under way with it.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable

import structlog

from jobs.clock import Clock
from orchestrator.database.bundle_parts import SqlBundles
from orchestrator.database.bundle_references import bundles_of_runs
from orchestrator.database.engine import Database
from orchestrator.database.retention import RECENT
from orchestrator.errors import BabysitError
from orchestrator.server.bundles.remote import Stored
from orchestrator.server.bundles.store import BundleStore
from orchestrator.settings import Settings

_log = structlog.get_logger(__name__)
PERIOD_SECONDS = 3600.0


async def clean(settings: Settings, store: BundleStore, database: Database, clock: Clock) -> int:
    """Delete the bundles that are due; their number.

    Raises:
        BabysitError: The database or the store does not answer; nothing more was deleted.
    """
    await store.remove_parts()
    if settings.retention_days == 0:
        return 0
    # The list comes first: a run that is submitted meanwhile finds its bundle used just now.
    stored = await store.all()
    due = _due(stored, await bundles_of_runs(database), settings, store.most, clock.now())
    for each in due:
        await store.remove(each.id)
    return len(due)


def _due(
    stored: list[Stored],
    runs: dict[str, dt.datetime | None],
    settings: Settings,
    most: int,
    now: dt.datetime,
) -> list[Stored]:
    """The bundles to delete, those first that were needed last the longest ago."""
    ends: list[tuple[dt.datetime, Stored]] = []
    for each in stored:
        used = dt.datetime.fromtimestamp(each.changed, dt.UTC)
        ended = runs.get(each.id, used)  # a bundle without a run: an upload, and no submission
        if ended is None or used > now - RECENT:
            continue
        ends.append((max(ended, used), each))
    ends.sort(key=lambda pair: pair[0])
    until = now - dt.timedelta(days=settings.retention_days)
    total, due = sum(each.size for each in stored), list[Stored]()
    for ended, each in ends:
        if ended < until or (total > most and ended < now - RECENT):
            total -= each.size
            due.append(each)
    return due


async def keep_clean(settings: Settings, clock: Clock, leads: Callable[[], bool]) -> None:
    """Clean up once an hour while this server leads; for ever. An error waits for the next hour."""
    database = Database(settings.database)
    store = BundleStore(settings, clock, SqlBundles(database))
    try:
        while True:
            await clock.sleep(PERIOD_SECONDS)
            if not leads():
                continue
            try:
                removed = await clean(settings, store, database, clock)
            except (BabysitError, OSError) as error:
                _log.warning(
                    "old bundles were not deleted; tried again in an hour", error=str(error)
                )
                continue
            if removed:
                _log.info("old bundles deleted", count=removed)
    finally:
        await database.close()
