"""Why a run was not placed: the reason, and the figures behind a lack of quota."""

from __future__ import annotations

from orchestrator.core.scheduling.eligibility import Eligible
from orchestrator.core.scheduling.free_resources import FreeResources, count_nodes
from orchestrator.core.scheduling.node_table import Mask
from orchestrator.core.scheduling.quota import Quotas, QuotaStatus
from orchestrator.core.scheduling.types import Demand, Pending
from orchestrator.core.text import named

NAMED = 4
"""Number of queues that are named, those that have borrowed the most."""


def reason(
    free: FreeResources, eligible: Eligible, demand: Demand, fits: Mask, allowed: Mask
) -> Pending:
    """The reason why a run within its quota was not placed.

    Args:
        free: Free resources now.
        eligible: The rules about nodes.
        demand: The run.
        fits: Nodes with room for it, in time before maintenance.
        allowed: Those of them that are not reserved for other runs.
    """
    if count_nodes(fits) < demand.nodes:
        if not eligible.windows:
            return Pending.NO_CAPACITY
        ignoring_maintenance = free.fits(demand.need)
        ignoring_maintenance[free.table.places(demand.keeps)] = False
        enough = count_nodes(ignoring_maintenance) >= demand.nodes
        return Pending.MAINTENANCE if enough else Pending.NO_CAPACITY
    if count_nodes(allowed) < demand.nodes:
        return Pending.RESERVED
    if eligible.usable_count(free, demand, allowed) < demand.nodes:
        return Pending.SPARES
    return Pending.TOPOLOGY


def quota_detail(quotas: Quotas, demand: Demand) -> str:
    """The figures of a queue whose quota does not allow the run now, as a clause."""
    name, quota, used = demand.queue, quotas.of(demand.queue), quotas.used(demand.queue)
    own = f"queue {name} uses {used} of {quota.gpus} GPUs; it wants {demand.gpus} more"
    status = quotas.status(demand.queue, demand.gpus)
    if status is not QuotaStatus.RECLAIMING:
        return own
    # Only those that are named: hundreds of queues may have borrowed, and as many may ask.
    lent, others = quotas.largest_borrowers(name, NAMED)
    words = [f"{queue} ({gpus})" for queue, gpus in lent]
    by = named([*words, *range(others)], NAMED)
    return f"{own}, which are its own and lent to {by or 'its cohort'}"
