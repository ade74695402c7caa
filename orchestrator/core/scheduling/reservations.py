"""Nodes that are kept for runs that wait, in one pass."""

from __future__ import annotations

import math

import numpy as np

from orchestrator.core.scheduling.node_table import Indices, Mask, NodeTable
from orchestrator.core.scheduling.types import Claim


class Reservations:
    """What is kept for runs that wait, in one pass."""

    def __init__(self, rooms: NodeTable) -> None:
        self._rooms = rooms
        self._kept: dict[str, tuple[Indices, float]] = {}
        """Places, and the Unix time until which others may use them; never: minus infinity."""

    def keep(self, run: str, claim: Claim) -> None:
        """Keep what a run claims."""
        if claim.nodes:
            until = -math.inf if claim.until is None else claim.until.timestamp()
            self._kept[run] = self._rooms.places(claim.nodes), until

    def release(self, run: str) -> None:
        """Keep nothing for a run any more."""
        self._kept.pop(run, None)

    def open_until(self, ends: float) -> tuple[bool, ...]:
        """Which of the reservations a run that ends then does not delay."""
        return tuple(ends <= until for _, until in self._kept.values())

    def beyond(self, ends: float) -> Mask:
        """Nodes that a run that ends then would keep from others."""
        mask = np.zeros(len(self._rooms), dtype=np.bool_)
        for places, until in self._kept.values():
            if not ends <= until:
                mask[places] = True
        return mask

    def kept(self) -> Mask:
        """Nodes that are kept for anybody."""
        return self.beyond(math.inf)
