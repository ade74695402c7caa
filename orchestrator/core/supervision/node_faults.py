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
"""The breaker trips at this many faulty nodes in the window, and more than this share of all."""
_KEPT_FAULTS = 20


def note_fault(turn: Turn, node: str | None, run_id: str, failure: Failure) -> Node | None:
    """Record a failure as a fault of its node, and return the node; None if it is unknown.

    Failures whose cause is the user's code or data are not recorded: they say nothing about the
    node. The newest 20 faults are kept. May trip the breaker.
    """
    known = turn.state.nodes.get(node or "")
    if known is None or failure.cause is not Cause.INFRASTRUCTURE:
        return known
    fault = Fault(at=turn.now, run=run_id, failure_class=failure.failure_class)
    known = turn.change_node(known.id, faults=(*known.faults, fault)[-_KEPT_FAULTS:])
    check_breaker(turn)
    return known


def check_breaker(turn: Turn) -> None:
    """Freeze automation and page if too many nodes look faulty at once (FAILURES.md, row 27).

    Faults that come together are the network, the storage or babysit itself, and restarts would
    make it worse. Nodes out of contact count while they are; others if they had a fault of their
    own in `BREAKER_WINDOW`. Does nothing while everything is held already; `babysit release` ends
    the freeze.
    """
    if turn.state.fleet.hold:
        return
    suspects = turn.state.suspects()
    faulty = [node.id for node, silent in suspects if silent or _faulty_lately(turn, node)]
    if len(faulty) < BREAKER_NODES:  # the common case; counting all nodes costs a loop over them
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
