"""Nodes reserved for waiting runs during one pass."""

from __future__ import annotations

import math

import numpy as np

from orchestrator.core.scheduling.node_table import Indices, Mask, NodeTable
from orchestrator.core.scheduling.types import Claim


class Reservations:
    """Nodes reserved for waiting runs, each until a time (EASY: shorter runs may use them)."""

    def __init__(self, table: NodeTable) -> None:
        self._table = table
        self.changes = 0
        """Number of changes so far; what depends on reservations holds until the next one."""
        self._reserved: dict[str, tuple[Indices, float]] = {}
        """Run → node indices and the Unix time until which others may use them; -inf: never."""

    def reserve(self, run: str, claim: Claim) -> None:
        """Reserve the nodes of a run's claim; a claim without nodes reserves nothing."""
        self.changes += 1
        if claim.nodes:
            until = -math.inf if claim.until is None else claim.until.timestamp()
            self._reserved[run] = self._table.places(claim.nodes), until

    def release(self, run: str) -> None:
        """Drop the reservation of a run, if it has one."""
        self.changes += 1
        self._reserved.pop(run, None)

    def open_until(self, ends: float) -> tuple[bool, ...]:
        """For each reservation, True if a run that ends at Unix time `ends` does not delay it."""
        return tuple(ends <= until for _, until in self._reserved.values())

    def beyond(self, ends: float) -> Mask:
        """Nodes whose reservation a run that ends at Unix time `ends` would delay."""
        mask = np.zeros(len(self._table), dtype=np.bool_)
        for places, until in self._reserved.values():
            if not ends <= until:
                mask[places] = True
        return mask

    def reserved(self) -> Mask:
        """Nodes that are reserved for any run."""
        return self.beyond(math.inf)
