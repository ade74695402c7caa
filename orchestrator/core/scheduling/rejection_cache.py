"""Rejections of one pass, by kind of demand, so that each kind is evaluated only once.

Thousands of runs may wait with the same shape, queue and priority. Only plain demands are cached: a
run that holds, avoids or claims nodes is always evaluated by itself.
"""

from __future__ import annotations

from typing import NamedTuple

from orchestrator.core.scheduling.types import Demand, Pending

Key = tuple[int, int]
"""Numbers of the kind of a demand (:mod:`.demand_kinds`), and of what else decides its nodes."""


class Rejection(NamedTuple):
    """Why a demand was rejected; it holds for its kind with as many nodes or more."""

    nodes: int
    why: Pending
    fitting: int
    behind: str | None = None


class RejectionCache:
    """Rejections by kind of demand.

    Entries stay valid because free nodes only shrink during a pass; events that add candidates or
    change reservations must call `forget`.
    """

    def __init__(self) -> None:
        self._failed: dict[Key, Rejection] = {}
        self._rejected: dict[Key, Rejection] = {}
        self._futile: dict[Key, int] = {}
        self._hopeless: dict[Key, list[tuple[float, int, int]]] = {}
        """CPUs, memory and nodes of demands for which not even all victims free enough."""

    def forget(self) -> None:
        """Drop all entries: the reservations or the preemptible nodes have changed."""
        self._failed.clear()
        self._rejected.clear()
        self._futile.clear()
        self._hopeless.clear()

    def failed(self, key: Key, demand: Demand) -> Rejection | None:
        """The rejection by placement alone, without preemption; None: not known."""
        return _for(self._failed.get(key), demand)

    def rejected(self, key: Key, demand: Demand) -> Rejection | None:
        """The final rejection, preemption included; None: not known."""
        return _for(self._rejected.get(key), demand)

    def futile(self, key: Key, demand: Demand) -> bool:
        """True if preemption is known to free too little for such a demand."""
        fewest = self._futile.get(key)
        return fewest is not None and _plain(demand) and demand.nodes >= fewest

    def hopeless(self, family: Key, demand: Demand) -> bool:
        """True if not even all victims free enough for a demand that needs no more than this.

        So each of thousands of runs that differ a little costs a look-up, not a search.
        """
        need, known = demand.need, self._hopeless.get(family)
        return (
            known is not None
            and _plain(demand)
            and any(
                need.cpus_per_node >= cpus
                and need.memory_per_node >= memory
                and demand.nodes >= nodes
                for cpus, memory, nodes in known
            )
        )

    def note_hopeless(self, family: Key, demand: Demand) -> None:
        """Record that not even all victims free enough for the demand."""
        if _plain(demand):
            need = demand.need
            own = need.cpus_per_node, need.memory_per_node, demand.nodes
            self._hopeless.setdefault(family, []).append(own)

    def note_failed(self, key: Key, demand: Demand, rejection: Rejection) -> None:
        """Record that no placement exists for the demand."""
        if _plain(demand):
            self._failed[key] = rejection

    def note_rejected(self, key: Key, demand: Demand, rejection: Rejection) -> None:
        """Record the final rejection of the demand."""
        if _plain(demand):
            self._rejected[key] = rejection

    def note_futile(self, key: Key, demand: Demand) -> None:
        """Record that preemption frees too little for the demand."""
        if _plain(demand):
            self._futile[key] = demand.nodes


def _plain(demand: Demand) -> bool:
    return not (demand.keeps or demand.avoid or demand.claim)


def _for(rejection: Rejection | None, demand: Demand) -> Rejection | None:
    if rejection is None or demand.nodes < rejection.nodes:
        return None
    return rejection if _plain(demand) else None
