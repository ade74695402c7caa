"""Lemon scores: which nodes fail more often than chance explains. Pure.

The problem: one failure in a week says little about a node, three may be chance in a fleet of ten
thousand, and a count says nothing without the time in which it was counted. The design: failures of
a node come as a Poisson process with a rate of its own; before anything is seen of the node, its
rate is like that of the others (a Gamma prior, whose mean is the rate of all other nodes). The
score is the probability, after what was seen, that the rate of the node is more than `FACTOR` times
that of the others. A switch that fails everywhere raises the rate of all, and makes no lemon.

Limits: the score keeps no run from a node; people see it, and it sizes the pool of spares
(:mod:`.spare_pool`). Node-days are days in the cluster, idle
ones too, up to `WINDOW_DAYS`. A node keeps its newest 20 failures. A repair is not noticed: the
failures before it count until they are older than the window.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import itertools
import math
from collections.abc import Collection

from orchestrator.core.model.entities import Node
from orchestrator.core.model.states import NodeState

WINDOW_DAYS = 90.0
"""Days for which failures and node-days count. A lemon at ten times 6.5 failures per 1,000
node-days has six of them in that time; in a month it has two, as some healthy nodes have too."""
FACTOR = 3.0
"""Times the rate of the other nodes above which a node is called a lemon. Meta's lemons, 1.2 % of
the nodes, caused 13 % of failed jobs: some ten times the rate of the others (FAILURES.md)."""
SAME_EVENT = dt.timedelta(minutes=10)
"""Failures of a node this close together are one: the word of its machine, and the runs that died
of it. As long as a machine's word explains the end of a run."""
PUBLISHED_RATE = 0.0065
"""Failures per node-day, as measured by Meta (FAILURES.md). It counts as much as one failure, so
that a cluster that has shown none yet has a rate."""

# The shape of the prior is 1: rates spread as much as their mean. Meta's 1.2 % of nodes at eleven
# times the rate of the rest spread by 1.1 of it. A whole shape also has a posterior in closed form.
_SHAPE = 1


@dataclasses.dataclass(frozen=True, slots=True)
class Lemon:
    """The verdict on a node by its failures."""

    score: float
    """Probability that the node fails more than `FACTOR` times as often as the others."""
    failures: int
    """That are held against the node, within `WINDOW_DAYS`."""
    days: float
    """Node-days in which they were counted."""
    rate: float
    """Failures per node-day that are expected of the node."""


def lemons(nodes: Collection[Node], now: dt.datetime) -> dict[str, Lemon]:
    """Judge each node that has a failure on record, by node.

    All others are left out: without a failure the score is 5 % or less. So are nodes that are gone.
    """
    there = [node for node in nodes if node.state is not NodeState.GONE]
    failures = {node.id: count for node in there if node.faults and (count := _count(node, now))}
    if not failures:
        return {}
    days = {node.id: _days(node, now) for node in there}
    all_failures, all_days = sum(failures.values()), sum(days.values())
    return {
        node: judge(count, days[node], all_failures - count, all_days - days[node])
        for node, count in failures.items()
    }


def judge(failures: int, days: float, other_failures: int, other_days: float) -> Lemon:
    """Judge a node by its failures and node-days, and by those of all other nodes."""
    usual = (other_failures + 1) / (other_days + 1 / PUBLISHED_RATE)
    # The posterior is Gamma(shape + failures, shape / usual + days). For a whole shape, its tail is
    # the chance that a Poisson count of mean x is below the shape.
    x = FACTOR * (_SHAPE + usual * days)
    terms = [math.exp(k * math.log(x) - x - math.lgamma(k + 1)) for k in range(_SHAPE + failures)]
    return Lemon(
        score=min(1.0, math.fsum(terms)),
        failures=failures,
        days=days,
        rate=(_SHAPE + failures) / (_SHAPE / usual + days),
    )


def _count(node: Node, now: dt.datetime) -> int:
    window = dt.timedelta(days=WINDOW_DAYS)
    times = [each.at for each in node.faults if not each.acquitted and now - each.at <= window]
    apart = [at for before, at in itertools.pairwise(times) if at - before > SAME_EVENT]
    return min(1, len(times)) + len(apart)


def _days(node: Node, now: dt.datetime) -> float:
    since = node.since or now
    return min(WINDOW_DAYS, max(0.0, (now - since).total_seconds() / 86_400.0))
