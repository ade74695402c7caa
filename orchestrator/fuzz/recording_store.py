"""The real store, which also tells the checks what each transaction means to write.

The meaning travels in a context variable, since the transaction takes effect in the database
driver, far below: only there is it certain that it does.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Protocol

from orchestrator.database.port import Batch, Snapshot
from orchestrator.database.sql_store import SqlStore
from orchestrator.fuzz.flaky_database import INTENT, database


@dataclasses.dataclass(frozen=True, slots=True)
class TurnIntent:
    """A batch to be written."""

    batch: Batch
    epoch: int


@dataclasses.dataclass(frozen=True, slots=True)
class ReceiptIntent:
    """Outbox entries to be marked as done."""

    ids: tuple[str, ...]
    epoch: int


Intent = TurnIntent | ReceiptIntent | None
"""The intended writes of a transaction; None: no invariant depends on them."""


class Listener(Protocol):
    """Hears of what is read.

    Attributes:
        writes: How many transactions have taken effect, of whatever server.
    """

    writes: int

    def loaded(self, snapshot: Snapshot) -> None:
        """A new leader has read what is not over."""


class RecordingStore(SqlStore):
    """Says what each transaction of the controller means, for :attr:`FlakyDatabase.on_commit`."""

    def __init__(self, listener: Listener) -> None:
        super().__init__(database())
        self._listener = listener

    async def load(self) -> Snapshot:
        """See the port."""
        before = self._listener.writes
        snapshot = await super().load()
        # A server may be paused between the read and here while another leads and writes; what it
        # read is then old, and rightly so: it finds out when it writes.
        if self._listener.writes == before:
            self._listener.loaded(snapshot)
        return snapshot

    async def commit(self, batch: Batch, *, epoch: int) -> int:
        """See the port."""
        INTENT.set(TurnIntent(batch, epoch))
        try:
            return await super().commit(batch, epoch=epoch)
        finally:
            INTENT.set(None)

    async def carried_out(self, ids: Sequence[str], *, epoch: int) -> None:
        """See the port."""
        INTENT.set(ReceiptIntent(tuple(ids), epoch))
        try:
            await super().carried_out(ids, epoch=epoch)
        finally:
            INTENT.set(None)
