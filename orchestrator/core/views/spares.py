"""The pool of spares beside the number that failures call for, as people read it. Pure.

The figure comes from :mod:`orchestrator.core.policy.spare_pool`. Nothing here changes the pool.
"""

from __future__ import annotations

import dataclasses
import datetime as dt

import numpy as np

from orchestrator.core.model.state import State
from orchestrator.core.placement.snapshot import spare_pool
from orchestrator.core.policy import spare_pool as spare_pools
from orchestrator.core.text import counted

_SETS = "`babysit nodes spares auto` reserves that number"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SpareStanding:
    """The pool of spares at one moment."""

    reserved: int
    """Nodes that new runs leave idle, as people have set it."""
    idle: int
    """Nodes without a worker that count as spares and take work now."""
    advised: int
    """Nodes that the failures of this cluster call for."""
    because: str
    """The figures behind that number, in a few words."""
    remedy: str
    """The steps that end a shortage; empty: there are enough spares."""

    def __str__(self) -> str:
        """`1 spare reserved, 3 advised (1.6 failures …); 5 nodes are idle: do this`."""
        idle = "1 node is idle" if self.idle == 1 else f"{self.idle} nodes are idle"
        said = (
            f"{counted(self.reserved, 'spare')} reserved, {self.advised} advised"
            f" ({self.because}); {idle}"
        )
        return f"{said}: {self.remedy}" if self.remedy else said


def standing(state: State, now: dt.datetime) -> SpareStanding:
    """Compare the spares that are reserved and idle with the number that failures call for."""
    pool = spare_pools.sized(state.nodes.values(), now)
    reserved, idle = spare_pool(state, now), _idle(state, now)
    return SpareStanding(
        reserved=reserved,
        idle=idle,
        advised=pool.nodes,
        because=pool.because,
        remedy=_remedy(reserved, idle, pool.nodes),
    )


def _idle(state: State, now: dt.datetime) -> int:
    """Nodes that a recovery could have at once; only those with GPUs, if any has one."""
    table = state.node_table(now)
    idle = ~table.away
    if (table.gpus > 0).any():
        idle &= table.gpus > 0
    idle[table.places(w.node for _, there in state.tenants() for w in there)] = False
    return int(np.count_nonzero(idle))


def _remedy(reserved: int, idle: int, advised: int) -> str:
    missing = max(reserved, advised) - idle
    add = f"repair or add {counted(missing, 'node')}, or a recovery may wait for one"
    if reserved < advised:
        return _SETS if missing <= 0 else f"{_SETS}; {add}"
    return add if missing > 0 else ""
