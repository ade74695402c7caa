"""The real store, with a word to the side about what it is about to write."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Protocol

from orchestrator.database.port import Batch, Snapshot
from orchestrator.database.sql_store import SqlStore
from orchestrator.fuzz.flaky_database import INTENT, database


@dataclasses.dataclass(frozen=True, slots=True)
class Turn:
    """A batch to be written."""

    batch: Batch
    epoch: int


@dataclasses.dataclass(frozen=True, slots=True)
class Receipt:
    """Outbox entries to be marked as done."""

    ids: tuple[str, ...]
    epoch: int


Intent = Turn | Receipt | None
"""What a transaction means to write; None: nothing that a promise speaks of."""


class Listener(Protocol):
    """Who hears of what is read."""

    def loaded(self, snapshot: Snapshot) -> None:
        """A new leader has read what is not over."""


class WatchedStore(SqlStore):
    """Says what each transaction of the controller means, for :attr:`Disk.on_commit`."""

    def __init__(self, listener: Listener) -> None:
        super().__init__(database())
        self._listener = listener

    async def load(self) -> Snapshot:
        """See the port."""
        snapshot = await super().load()
        self._listener.loaded(snapshot)
        return snapshot

    async def commit(self, batch: Batch, *, epoch: int) -> int:
        """See the port."""
        INTENT.set(Turn(batch, epoch))
        try:
            return await super().commit(batch, epoch=epoch)
        finally:
            INTENT.set(None)

    async def carried_out(self, ids: Sequence[str], *, epoch: int) -> None:
        """See the port."""
        INTENT.set(Receipt(tuple(ids), epoch))
        try:
            await super().carried_out(ids, epoch=epoch)
        finally:
            INTENT.set(None)
