"""The scheduler: `plan(snapshot, now) -> Plan`, a pure function from one snapshot to one plan."""

from orchestrator.core.scheduling.node_table import NodeCapacity, NodeTable
from orchestrator.core.scheduling.plan import plan
from orchestrator.core.scheduling.types import (
    Claim,
    Demand,
    Eviction,
    Holding,
    Pending,
    Plan,
    Quota,
    Snapshot,
    Wait,
)

__all__ = [
    "Claim",
    "Demand",
    "Eviction",
    "Holding",
    "NodeCapacity",
    "NodeTable",
    "Pending",
    "Plan",
    "Quota",
    "Snapshot",
    "Wait",
    "plan",
]
