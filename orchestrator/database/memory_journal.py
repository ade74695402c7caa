"""The journal of the store in memory, by event."""

from __future__ import annotations

from orchestrator.database.port import JournalEntry
from orchestrator.database.references import ids_of


class MemoryJournal:
    """Finds entries of the journal; see :meth:`orchestrator.database.port.Store.journal_of`."""

    _journal: dict[str, JournalEntry]

    async def journal_of(self, event: str) -> list[JournalEntry]:
        """An event, by its id, with its first instructions."""
        return [self._journal[each] for each in ids_of(event) if each in self._journal]
