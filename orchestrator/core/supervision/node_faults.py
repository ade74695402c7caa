"""Faults held against nodes, and the breaker that trips when too many nodes look faulty at once."""

from __future__ import annotations

import dataclasses
import datetime as dt

from monitors.failures import Cause, Failure
from monitors.types import Severity
from orchestrator.core.model.entities import Fault, Node
from orchestrator.core.model.states import NodeState
from orchestrator.core.policy import remedies
from orchestrator.core.turn import Turn

BREAKER_WINDOW = dt.timedelta(minutes=5)
BREAKER_NODES, BREAKER_SHARE = 3, 0.10
"""More faulty nodes than this (or this share) inside the window.

It is the network, the storage, or us.
"""
_KEPT_FAULTS = 20


def note_fault(turn: Turn, node: str | None, run_id: str, failure: Failure) -> Node | None:
    """Hold a failure against its node, unless it is the user's own.

    Trips the breaker when too many nodes look faulty.
    """
    known = turn.state.nodes.get(node or "")
    if known is None or failure.cause is not Cause.INFRASTRUCTURE:
        return known
    fault = Fault(at=turn.now, run=run_id, failure_class=failure.failure_class)
    known = turn.change_node(known.id, faults=(*known.faults, fault)[-_KEPT_FAULTS:])
    check_breaker(turn)
    return known


def check_breaker(turn: Turn) -> None:
    """Row 27 of FAILURES.md: correlated faults are the network, the storage, or us.

    Freeze and page. A node out of contact counts for as long as it is.
    """
    if turn.state.fleet.hold:
        return
    suspects = turn.state.suspects()
    faulty = [node.id for node, silent in suspects if silent or _faulty_lately(turn, node)]
    if len(faulty) < BREAKER_NODES:
        return
    nodes = [node for node in turn.state.nodes.values() if node.state is not NodeState.GONE]
    limit = max(BREAKER_NODES, int(BREAKER_SHARE * len(nodes)) + 1)
    if len(faulty) >= limit:
        reason = (
            f"circuit breaker: {len(faulty)} of {len(nodes)} nodes looked faulty within"
            f" 5 minutes ({', '.join(sorted(faulty)[:5])}): look at the network and the storage,"
            " then `babysit release`"
        )
        turn.put(dataclasses.replace(turn.state.fleet, hold=reason, hold_by="babysit"))
        turn.notify(None, Severity.CRITICAL, reason, kind="circuit_breaker")


def _faulty_lately(turn: Turn, node: Node) -> bool:
    if not node.faults or turn.now - node.faults[-1].at > BREAKER_WINDOW:
        return False
    return any(
        remedies.FAILURES[fault.failure_class].trips_breaker
        and turn.now - fault.at <= BREAKER_WINDOW
        for fault in reversed(node.faults)
    )
