"""How many spare nodes the failures of this cluster call for, and why. Pure.

The problem: one rate for all nodes hides the few that fail ten times as often; their failures raise
the rate of all, or vanish in it. The design: a node that is a lemon more likely than not counts at
its own rate (:mod:`.lemons`), all others at their common one, which stays close to the published
rate while data is scarce. The pool is the 99th percentile of the nodes that fail within one repair
time.

Limits: failures are taken as independent, so a switch that takes a rack away is not covered. A
failure that followed its run to other nodes counts for none.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Collection
from typing import NamedTuple

from orchestrator.core.model.entities import Node
from orchestrator.core.model.states import NodeState
from orchestrator.core.policy.lemons import Lemon, lemons
from orchestrator.core.scheduling.spares import REPAIR_SECONDS, failure_rate, pool_size
from orchestrator.core.text import named

FAULT_DAYS = 30.0
"""Days for which faults of usual nodes count in the failure rate."""
LEMON_SCORE = 0.5
"""Score from which on a node counts at its own rate: more likely a lemon than not."""
_NAMED = 5
_DAY = 86_400.0


class Pool(NamedTuple):
    """A size for the pool of spares."""

    nodes: int
    why: str
    """The figures that it follows from, in a sentence."""
    because: str
    """These figures in a few words."""


def sized(nodes: Collection[Node], now: dt.datetime) -> Pool:
    """Size the pool for the nodes that are there."""
    there = [node for node in nodes if node.state is not NodeState.GONE]
    bad = {name: lemon for name, lemon in lemons(there, now).items() if lemon.score >= LEMON_SCORE}
    usual = [node for node in there if node.id not in bad]
    recent = dt.timedelta(days=FAULT_DAYS)
    failures = sum(
        now - fault.at <= recent and not fault.acquitted for node in usual for fault in node.faults
    )
    days = sum(
        min(FAULT_DAYS, (now - (node.since or now)).total_seconds() / _DAY) for node in usual
    )
    rate = failure_rate(failures, days)
    rates = [_own_rate(lemon) for lemon in bad.values()]
    size = pool_size(len(usual), rate, lemons=rates)
    because = f"{rate * 1000:.2g} failures per 1,000 node-days{_briefly(bad)}"
    why = (
        f"{failures} failures in {days:.0f} node-days, and the published rate while these are few,"
        f" make {rate * 1000:.2g} per 1,000 node-days for {len(usual)} nodes{_apart(bad)};"
        f" a repair takes {REPAIR_SECONDS / 3600:.0f} h, in 99 of 100 of which at most {size}"
        f" {'node fails' if size == 1 else 'nodes fail'}"
    )
    return Pool(size, why, because)


def _own_rate(lemon: Lemon) -> float:
    """Failures per day as counted: what the rates of the others suggest does not hold for it."""
    return lemon.failures / max(1.0, lemon.days)


def _apart(bad: dict[str, Lemon]) -> str:
    """The lemons, with their own rates."""
    if not bad:
        return ""
    each = [f"{name} ({_own_rate(bad[name]):.2g} a day)" for name in _worst_first(bad)]
    return f"; lemons at their own rate: {named(each, _NAMED)}"


def _briefly(bad: dict[str, Lemon]) -> str:
    """The lemons by name."""
    if not bad:
        return ""
    names = named(_worst_first(bad), _NAMED)
    return f"; {'a lemon' if len(bad) == 1 else f'{len(bad)} lemons'}: {names}"


def _worst_first(bad: dict[str, Lemon]) -> list[str]:
    return sorted(bad, key=lambda name: (-_own_rate(bad[name]), name))
