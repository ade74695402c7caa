"""Faults held against nodes, and the breaker that trips when too many nodes look faulty at once."""

from __future__ import annotations

import dataclasses
import datetime as dt
from collections.abc import Iterable

from monitors.failures import Failure, FailureClass
from monitors.types import Severity
from orchestrator.core.model.entities import Node
from orchestrator.core.model.machine_record import Fault
from orchestrator.core.model.state import State
from orchestrator.core.model.states import NodeState
from orchestrator.core.policy import remedies
from orchestrator.core.turn import Turn

BREAKER_WINDOW = dt.timedelta(minutes=5)
BREAKER_NODES, BREAKER_SHARE = 3, 0.10
"""The breaker trips at this many faulty machines in the window, and more than this share of all."""
BREAKER_RUNS = 2
"""The breaker trips only if the faults are of this many runs: one run alone may be at fault itself.
"""
_KEPT_FAULTS = 20


def note_fault(turn: Turn, node: str | None, run_id: str, failure: Failure) -> None:
    """Record a failure as a fault of its node; does nothing if the node is unknown.

    Failures that say nothing about the node (:func:`remedies.blames_node`) are not recorded. The
    newest 20 faults are kept. May trip the breaker.
    """
    known = turn.state.nodes.get(node or "")
    if known is None or not remedies.blames_node(failure):
        return
    fault = Fault(at=turn.now, run=run_id, failure_class=failure.failure_class)
    turn.change_node(known.id, faults=(*known.faults, fault)[-_KEPT_FAULTS:])
    check_breaker(turn)


def acquit(turn: Turn, nodes: Iterable[str], run_id: str, failure_class: FailureClass) -> None:
    """Take back the faults of a failure that has followed its run from node to node."""
    for known in [turn.state.nodes[each] for each in nodes if each in turn.state.nodes]:
        faults = tuple(
            dataclasses.replace(fault, acquitted=True)
            if (fault.run, fault.failure_class) == (run_id, failure_class)
            else fault
            for fault in known.faults
        )
        if faults != known.faults:
            turn.change_node(known.id, faults=faults)


def known_by_its_machine(state: State, node: str | None) -> Node | None:
    """The node, with the faults of its whole machine; None if it is unknown.

    Without a second machine in the cluster it has none: there is nowhere else to go.
    """
    known = state.nodes.get(node or "")
    if known is None or not known.host:
        return known
    others = [other for other in state.nodes.values() if other.state is not NodeState.GONE]
    if all(other.machine == known.machine for other in others):
        return dataclasses.replace(known, faults=())
    faults = [f for other in others if other.machine == known.machine for f in other.faults]
    return dataclasses.replace(known, faults=tuple(sorted(faults, key=lambda fault: fault.at)))


def check_breaker(turn: Turn) -> None:
    """Freeze automation and page if too many nodes look faulty at once (FAILURES.md, row 27).

    Faults that come together are the network, the storage or babysit itself, and restarts would
    make it worse. Nodes out of contact count while they are, unless they are drained: they may be
    switched off already. Others count if they had a fault of their own in `BREAKER_WINDOW`.
    Machines are counted, not nodes, and runs beside them: the failures of one run, wherever they
    are, never freeze the others. Silence counts for any run: a run does not cut its agents off.
    Does nothing while everything is held already; `babysit release` ends the freeze.
    """
    if turn.state.fleet.hold:
        return
    faulty: set[str] = set()
    out_of_contact: set[str] = set()
    runs: set[str] = set()
    for node, unheard in turn.state.suspects():
        of_node = _faulty_for(turn, node)
        silent = unheard and node.state is not NodeState.DRAINING
        runs |= of_node
        if of_node or silent:
            faulty.add(node.machine)
        if silent:
            out_of_contact.add(node.machine)
    if len(runs) < BREAKER_RUNS:
        faulty = out_of_contact
    if len(faulty) < BREAKER_NODES:  # the common case; counting all costs a loop over them
        return
    nodes = turn.state.nodes.values()
    machines = {node.machine for node in nodes if node.state is not NodeState.GONE}
    limit = max(BREAKER_NODES, int(BREAKER_SHARE * len(machines)) + 1)
    if len(faulty) >= limit:
        reason = (
            f"circuit breaker: {len(faulty)} of {len(machines)} nodes looked faulty within"
            f" 5 minutes ({', '.join(sorted(faulty)[:5])}): look at the network and the storage,"
            " then `babysit release`"
        )
        trip(turn, reason)


def trip(turn: Turn, reason: str) -> None:
    """Freeze automation and page. Does nothing while everything is held already."""
    if turn.state.fleet.hold:
        return
    turn.put(dataclasses.replace(turn.state.fleet, hold=reason, hold_by="babysit"))
    turn.notify(None, Severity.CRITICAL, reason, kind="circuit_breaker")


def _faulty_for(turn: Turn, node: Node) -> set[str]:
    """Runs that failed on the node lately, in a way that a shared cause may show; empty: none."""
    if not node.faults or turn.now - node.faults[-1].at > BREAKER_WINDOW:
        return set()
    return {
        fault.run
        for fault in node.faults
        if remedies.FAILURES[fault.failure_class].trips_breaker
        and turn.now - fault.at <= BREAKER_WINDOW
    }
