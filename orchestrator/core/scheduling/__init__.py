"""Who runs where: `plan(snapshot, now) -> Plan`. Pure."""

from orchestrator.core.scheduling.plan import Demand, Free, Pending, Plan, Snapshot, Wait, plan

__all__ = ["Demand", "Free", "Pending", "Plan", "Snapshot", "Wait", "plan"]
