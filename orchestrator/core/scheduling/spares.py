"""Size of the spare pool: the 99th percentile of the nodes that fail within one repair time."""

from __future__ import annotations

import math

PRIOR_FAILURES_PER_NODE_DAY = 6.5e-3
"""Failures per node and day on a fleet of 16,000 GPUs (Kokolis et al., "Revisiting Reliability in
Large-Scale Machine Learning Research Clusters", Meta 2024)."""
PRIOR_NODE_DAYS = 1000.0
"""Weight of the published rate against measured failures, in node days."""
REPAIR_SECONDS = 86400.0
"""Seconds for which a failed node is away."""
QUANTILE = 0.99


def failure_rate(failures: int, node_days: float) -> float:
    """Failures per node and day: measured, and close to the published rate while data is scarce."""
    prior = PRIOR_FAILURES_PER_NODE_DAY * PRIOR_NODE_DAYS
    return (failures + prior) / (node_days + PRIOR_NODE_DAYS)


def pool_size(nodes: int, per_node_day: float, repair_seconds: float = REPAIR_SECONDS) -> int:
    """Spare nodes that suffice in 99 of 100 repair times: the P99 of Binomial(nodes, p).

    `p` is the chance that a node fails within the repair time of another, 1 - exp(-rate x time).

    Args:
        nodes: Nodes of the fleet.
        per_node_day: Failures per node and day.
        repair_seconds: Seconds for which a failed node is away.
    """
    p = 1.0 - math.exp(-per_node_day * repair_seconds / 86400.0)
    if nodes == 0 or p <= 0.0:
        return 0
    if p >= 1.0:
        return nodes
    # Each term comes from its logarithm: (1 - p)^nodes underflows for large fleets.
    at_most = 0.0
    for k in range(nodes + 1):
        choose = math.lgamma(nodes + 1) - math.lgamma(k + 1) - math.lgamma(nodes - k + 1)
        at_most += math.exp(choose + k * math.log(p) + (nodes - k) * math.log1p(-p))
        if at_most >= QUANTILE:
            return k
    return nodes
