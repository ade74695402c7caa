"""Nodes reserved for waiting runs during one pass, by the part of each node that a run needs.

A reservation keeps resources, not nodes: another run may use a reserved node if it ends before the
reservation begins (EASY backfill), or if the node has room for both at that time. The order of a
pass decides whom a reservation binds: it is made when its run is considered, so only runs further
back respect it. Claims with preempted runs are reserved before any run is considered.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jobs.spec import Resources
from orchestrator.core.scheduling.free_resources import FreeResources
from orchestrator.core.scheduling.node_table import Indices, Mask, NodeTable

Amounts = NDArray[np.float64]
"""GPUs, CPUs and bytes of memory: one row for each node."""
Columns = tuple[NDArray[Any], ...]
"""GPUs, CPUs and bytes of memory: one array over all nodes for each."""
_UNLIMITED = 2.0**62
"""Bytes of memory of a node where it is not accounted."""


def amounts(need: Resources) -> Amounts:
    """The GPUs, CPUs and bytes that one worker needs, as one row."""
    return np.array([need.gpus_per_node, need.cpus_per_node, need.memory_per_node], dtype=float)


def totals(table: NodeTable) -> Amounts:
    """The resources of each empty node; memory that is not accounted has a finite amount."""
    memory = np.minimum(table.memory, _UNLIMITED)
    return np.column_stack([table.gpus, table.cpus, memory]).astype(float)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Reservation:
    """Resources that one waiting run gets on some nodes."""

    places: Indices
    until: float
    """Unix time until which shorter runs may use the nodes; -infinite: none may."""
    ends: float
    """Unix time at which the waiting run has left the nodes again; infinite: unknown."""
    needs: Amounts
    """Resources that it needs on each of the nodes."""
    freed: Amounts
    """Resources that leave each of the nodes before it starts, besides those free now."""


@dataclasses.dataclass(frozen=True, slots=True)
class _Reserved:
    """Some reservations together: on each of their nodes the sum of what they need."""

    places: Indices
    needs: Amounts
    freed: Amounts
    ends: NDArray[np.float64]

    def full(
        self, rows: Indices, need: Resources, free: FreeResources, actual: FreeResources
    ) -> Mask:
        """For some of the nodes, True if they have no room for another worker beside them.

        `free` may be hypothetical, and count tenants as gone that `freed` counts as well; those are
        counted once.
        """
        at = self.places[rows]
        full = np.zeros(len(rows), dtype=np.bool_)
        for column, (then, now, own) in enumerate(
            zip(_columns(free), _columns(actual), amounts(need).tolist(), strict=True)
        ):
            room = np.maximum(then[at], now[at] + self.freed[rows, column])
            full |= room - self.needs[rows, column] < own
        return full


def _columns(free: FreeResources) -> Columns:
    return free.gpus, free.cpus, free.memory


class Reservations:
    """The reservations of one pass, by run.

    Attributes:
        actual: Free resources now, where questions are asked of hypothetical ones; None: those of
            the question are the actual ones.
    """

    def __init__(self, table: NodeTable, actual: FreeResources | None = None) -> None:
        self._table, self.actual = table, actual
        self.changes = 0
        """Number of changes so far; what depends on reservations holds until the next one."""
        self._reserved: dict[str, Reservation] = {}
        self._together: dict[tuple[bool, ...], _Reserved] = {}
        """Which reservations a run may delay → the others together. Emptied by every change."""

    def reserve(self, run: str, reservation: Reservation) -> None:
        """Reserve; without nodes nothing is reserved."""
        self._changed()
        if len(reservation.places):
            self._reserved[run] = reservation

    def release(self, run: str) -> None:
        """Drop the reservation of a run, if it has one."""
        self._changed()
        self._reserved.pop(run, None)

    def open_until(self, ends: float) -> tuple[bool, ...]:
        """For each reservation, True if a run that ends at Unix time `ends` does not delay it."""
        return tuple(ends <= each.until for each in self._reserved.values())

    def respected(self, fits: Mask, ends: float, need: Resources, free: FreeResources) -> Mask:
        """The nodes of `fits` without those that a worker would take from a reservation.

        Args:
            fits: Nodes with room for the worker now; not changed.
            ends: Unix time until which the worker stays.
            need: The resources of the worker.
            free: Free resources now.
        """
        if not self._reserved or not fits.any():  # on a full cluster no node fits
            return fits
        others = self._sum(self.open_until(ends))
        rows = np.flatnonzero(fits[others.places])
        if not len(rows):  # on a busy cluster few nodes fit: mostly none of these
            return fits
        mask = fits.copy()
        mask[others.places[rows]] = ~others.full(rows, need, free, self.actual or free)
        return mask

    def taken(self, ends: float, need: Resources, free: FreeResources) -> Columns:
        """By column and node index, what workers that leave would leave to reservations alone.

        A worker that stays until `ends` has room on a node of which that much more is free than it
        needs; answers as :meth:`respected` for all hypothetical free resources at once.
        """
        columns = tuple(np.zeros(len(self._table)) for _ in _columns(free))
        if self._reserved:
            others = self._sum(self.open_until(ends))
            own = amounts(need).tolist()
            actual = _columns(self.actual or free)
            for column, now in enumerate(actual):
                later = now[others.places] + others.freed[:, column] - others.needs[:, column]
                binds = later < own[column]
                columns[column][others.places[binds]] = others.needs[binds, column]
        return columns

    def occupied_until(self, need: Resources, free: FreeResources) -> NDArray[np.float64]:
        """Unix time until which reservations leave no room for a worker; -infinite: they do."""
        until = np.full(len(self._table), -math.inf)
        if self._reserved:
            every = self._sum((False,) * len(self._reserved))
            full = every.full(np.arange(len(every.places)), need, free, self.actual or free)
            until[every.places[full]] = every.ends[full]
        return until

    def reserved(self) -> Mask:
        """Nodes of which any part is reserved."""
        mask = np.zeros(len(self._table), dtype=np.bool_)
        for each in self._reserved.values():
            mask[each.places] = True
        return mask

    def blocking(self, nodes: Mask) -> str | None:
        """The first run whose reservation is on one of these nodes; None: there is none."""
        return next((run for run, each in self._reserved.items() if nodes[each.places].any()), None)

    def _changed(self) -> None:
        self.changes += 1
        self._together.clear()

    def _sum(self, without: tuple[bool, ...]) -> _Reserved:
        """The reservations that are not left out, together."""
        if without not in self._together:
            each = [r for r, out in zip(self._reserved.values(), without, strict=True) if not out]
            places = np.unique(np.concatenate([np.empty(0, np.intp), *(r.places for r in each)]))
            needs, freed = np.zeros((len(places), 3)), np.zeros((len(places), 3))
            ends = np.full(len(places), -math.inf)
            for one in each:
                at = np.searchsorted(places, one.places)
                needs[at] += one.needs
                freed[at] = np.maximum(freed[at], one.freed)
                ends[at] = np.maximum(ends[at], one.ends)
            self._together[without] = _Reserved(places, needs, freed, ends)
        return self._together[without]
