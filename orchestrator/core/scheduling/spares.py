"""Size of the spare pool: the 99th percentile of the nodes that fail within one repair time."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

PRIOR_FAILURES_PER_NODE_DAY = 6.5e-3
"""Failures per node and day on a fleet of 16,000 GPUs (Kokolis et al., "Revisiting Reliability in
Large-Scale Machine Learning Research Clusters", Meta 2024)."""
PRIOR_NODE_DAYS = 1000.0
"""Weight of the published rate against measured failures, in node days."""
REPAIR_SECONDS = 86400.0
"""Seconds for which a failed node is away."""
QUANTILE = 0.99
_LEFT_OUT = 1e-6


def failure_rate(failures: int, node_days: float) -> float:
    """Failures per node and day: measured, and close to the published rate while data is scarce."""
    prior = PRIOR_FAILURES_PER_NODE_DAY * PRIOR_NODE_DAYS
    return (failures + prior) / (node_days + PRIOR_NODE_DAYS)


def pool_size(
    nodes: int,
    per_node_day: float,
    repair_seconds: float = REPAIR_SECONDS,
    lemons: Sequence[float] = (),
) -> int:
    """Spare nodes that suffice in 99 of 100 repair times.

    The number of nodes that fail within the repair time of another is Binomial(nodes, p), with
    p = 1 - exp(-rate x time), plus one Bernoulli trial for each lemon.

    Args:
        nodes: Usual nodes of the fleet.
        per_node_day: Failures per usual node and day.
        repair_seconds: Seconds for which a failed node is away.
        lemons: Failures per day of each further node, which has a rate of its own.
    """
    counts = _counts(nodes, _chance(per_node_day, repair_seconds))
    for rate in lemons:
        p = _chance(rate, repair_seconds)
        less, more = [*counts, 0.0], [0.0, *counts]
        counts = [(1.0 - p) * a + p * b for a, b in zip(less, more, strict=True)]
    at_most = itertools.accumulate(counts)
    return next((k for k, chance in enumerate(at_most) if chance >= QUANTILE), len(counts) - 1)


def _chance(per_node_day: float, repair_seconds: float) -> float:
    """The chance that a node fails within a repair time."""
    return 1.0 - math.exp(-per_node_day * repair_seconds / 86400.0)


def _counts(nodes: int, p: float) -> list[float]:
    """The chances that 0, 1, 2 … of all nodes fail; those beyond one in a million are left out."""
    if nodes == 0 or p <= 0.0:
        return [1.0]
    if p >= 1.0:
        return [*[0.0] * nodes, 1.0]
    # Each term comes from its logarithm: (1 - p)^nodes underflows for large fleets.
    found: list[float] = []
    for k in range(nodes + 1):
        choose = math.lgamma(nodes + 1) - math.lgamma(k + 1) - math.lgamma(nodes - k + 1)
        found.append(math.exp(choose + k * math.log(p) + (nodes - k) * math.log1p(-p)))
        if k > nodes * p and found[-1] < _LEFT_OUT:
            break
    return found
