"""A bundle store in the run database, for servers with homes of their own and no shared storage.

It takes small bundles only, as most code is: the database is there for the state of runs first.
Every call blocks, and runs in a thread.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, TypeVar

from jobs.clock import Clock
from orchestrator.database.bundle_parts import SqlBundles
from orchestrator.server.bundles.remote import Stored

MOST_BYTES = 32 * 2**20
"""Largest bundle that the database takes. Code has a few MiB as a rule; larger ones hold data."""
MOST_BYTES_OF_ALL = 2**30
"""Bytes above which bundles of ended runs go earlier than the history of their runs."""
_PART = 2**20
_Result = TypeVar("_Result")


class DatabaseStore:
    """Bundles by id, in the run database. Made in the event loop whose threads call it.

    Raises DatabaseUnavailableError, as the store of runs does.
    """

    def __init__(self, bundles: SqlBundles, clock: Clock) -> None:
        self._bundles, self._clock = bundles, clock
        self._loop = asyncio.get_running_loop()

    def has(self, bundle: str) -> bool:
        """True if the store has a bundle."""
        return self._done(self._bundles.has(bundle))

    def put(self, bundle: str, file: Path) -> None:
        """Store a file under its id; one above :data:`MOST_BYTES` is passed over."""
        size = file.stat().st_size
        if size > MOST_BYTES:
            return
        parts = max(1, -(-size // _PART))
        with file.open("rb") as content:
            for number in range(parts):
                data, now = content.read(_PART), self._clock.now()
                self._done(self._bundles.write(bundle, number, parts, data, now))

    def get(self, bundle: str, file: Path) -> bool:
        """Copy a bundle to a file; False: the store does not have all of it."""
        number, parts = 0, 1
        with file.open("wb") as copy:
            while number < parts:
                found = self._done(self._bundles.read(bundle, number))
                if found is None:
                    return False
                parts, data = found
                copy.write(data)
                number += 1
        return True

    def remove(self, bundle: str) -> None:
        """Delete a bundle, if it is there."""
        self._done(self._bundles.remove(bundle))

    def all(self) -> list[Stored]:
        """All bundles of the store."""
        found = self._done(self._bundles.all())
        return [Stored(bundle, size, stored.timestamp()) for bundle, size, stored in found]

    def _done(self, work: Coroutine[Any, Any, _Result]) -> _Result:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()
