"""Rejections of one pass, by kind of demand, so that each kind is evaluated only once.

Thousands of runs may wait with the same shape, queue and priority. Only plain demands are cached: a
run that holds, avoids or claims nodes is always evaluated by itself.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

from orchestrator.core.scheduling.demand_kinds import Kind
from orchestrator.core.scheduling.types import Demand, Pending

Key = tuple[int, int]
"""Numbers of the kind of a demand (:mod:`.demand_kinds`), and of what else decides its nodes."""


Needs = tuple[float, int, int]
"""CPUs, memory and nodes."""


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
        self._hopeless: dict[Key, list[Needs]] = {}
        """Demands for which not even all victims free enough."""
        self._tight: set[Key] = set()
        """Families of which some could preempt if they needed neither CPUs nor memory."""
        self._barren: dict[Key, tuple[int, bool]] = {}
        """Of the smallest demand without a node of enough GPUs: nodes, and what `barren` says."""

    def forget(self) -> None:
        """Drop all entries: the reservations or the preemptible nodes have changed."""
        self._failed.clear()
        self._rejected.clear()
        self._futile.clear()
        self._hopeless.clear()
        self._barren.clear()
        self._tight.clear()

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
        return _plain(demand) and self._is_hopeless(family, _needs(demand))

    def _is_hopeless(self, family: Key, needs: Needs) -> bool:
        known = self._hopeless.get(family)
        return known is not None and any(
            needs[0] >= cpus and needs[1] >= memory and needs[2] >= nodes
            for cpus, memory, nodes in known
        )

    def note_hopeless(
        self, family: Key, demand: Demand, hopeless: Callable[[Demand], bool]
    ) -> None:
        """Record that not even all victims free enough for the demand.

        Args:
            family: The demands that differ at most in CPUs and memory.
            demand: The demand.
            hopeless: Tells whether all victims are too few for another demand: if they are for one
                that needs neither CPUs nor memory, they are for all of its like.
        """
        if not _plain(demand):
            return
        cpus, memory, nodes = _needs(demand)
        if family not in self._tight:
            need = demand.need.model_copy(update={"cpus_per_node": 0, "memory_per_node": 0})
            if hopeless(dataclasses.replace(demand, need=need)):
                cpus, memory = 0, 0
            else:
                self._tight.add(family)
        known = self._hopeless.get(family, [])
        # The new one stands for those that need no less.
        left = [k for k in known if k[0] < cpus or k[1] < memory or k[2] < nodes]
        self._hopeless[family] = [*left, (cpus, memory, nodes)]

    def barren(self, demand: Demand, kind: Kind, key: Key) -> bool | None:
        """How a demand fares for which no node has enough GPUs, and neither victims nor a claim.

        Returns:
            None: not known. False: it waits, as does every run of the family with as many nodes,
            whatever CPUs and memory it needs. True: it waits as the pass has preempted for enough
            runs already, and the next pass should follow.
        """
        known = self._barren.get((kind.family, key[1]))
        if known is None or demand.nodes < known[0] or not _plain(demand):
            return None
        if self.failed((kind.placement, key[1]), demand):
            return None
        self._rejected[key] = Rejection(demand.nodes, Pending.NO_CAPACITY, 0)
        return known[1] and not self.futile(key, demand)

    def note_barren(self, family: Key, demand: Demand, *, short: bool) -> None:
        """Record that no node has as many GPUs as the demand needs, and that nothing helps it."""
        if _plain(demand) and (short or self._is_hopeless(family, (0, 0, demand.nodes))):
            self._barren[family] = 0 if short else demand.nodes, short

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


def _needs(demand: Demand) -> Needs:
    return demand.need.cpus_per_node, demand.need.memory_per_node, demand.nodes


def _plain(demand: Demand) -> bool:
    return not (demand.keeps or demand.avoid or demand.claim)


def _for(rejection: Rejection | None, demand: Demand) -> Rejection | None:
    if rejection is None or demand.nodes < rejection.nodes:
        return None
    return rejection if _plain(demand) else None
