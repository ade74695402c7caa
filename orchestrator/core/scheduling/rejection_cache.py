"""What a pass has tried in vain: thousands wait alike, and each kind is tried once.

Only what is plain is remembered or told: a run that has nodes, avoids some or claims some is looked
at by itself.
"""

from __future__ import annotations

import dataclasses

from orchestrator.core.scheduling.types import Demand, Pending

Key = tuple[object, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class Rejection:
    """What one run was told, and so are those of its kind that want as many nodes or more."""

    nodes: int
    why: Pending
    fitting: int
    behind: str | None = None


class RejectionCache:
    """Kinds of demands, and what became of the first of each. Room only shrinks in a pass."""

    def __init__(self) -> None:
        self._failed: dict[Key, Rejection] = {}
        self._told: dict[Key, Rejection] = {}
        self._futile: dict[Key, int] = {}

    def forget(self) -> None:
        """What is kept for others, or may be taken, has changed."""
        self._failed.clear()
        self._told.clear()
        self._futile.clear()

    def failed(self, key: Key, demand: Demand) -> Rejection | None:
        """Why there is no place for such a demand."""
        return _for(self._failed.get(key), demand)

    def told(self, key: Key, demand: Demand) -> Rejection | None:
        """What such a demand is told after everything was tried."""
        return _for(self._told.get(key), demand)

    def futile(self, key: Key, demand: Demand) -> bool:
        """Whether nobody leaves for such a demand."""
        known = self._futile.get(key)
        return known is not None and _plain(demand) and demand.nodes >= known

    def note_failed(self, key: Key, demand: Demand, told: Rejection) -> None:
        """There is no place for it."""
        if _plain(demand):
            self._failed[key] = told

    def note_told(self, key: Key, demand: Demand, told: Rejection) -> None:
        """It was told so."""
        if _plain(demand):
            self._told[key] = told

    def note_futile(self, key: Key, demand: Demand) -> None:
        """Nobody leaves for it."""
        if _plain(demand):
            self._futile[key] = demand.nodes


def _plain(demand: Demand) -> bool:
    return not (demand.keeps or demand.avoid or demand.claim)


def _for(told: Rejection | None, demand: Demand) -> Rejection | None:
    return told if told is not None and demand.nodes >= told.nodes and _plain(demand) else None
