"""Requests and answers about checks of nodes, and the schedule of idle ones."""

from __future__ import annotations

import dataclasses
import datetime as dt

from jobs.checks.results import LINK
from orchestrator.core.messages.check_events import (
    CheckAsked,
    CheckEnded,
    LinkListening,
    NodeChecked,
)
from orchestrator.core.messages.events import LeadershipBegan
from orchestrator.core.model.checking import PREFLIGHT, CheckPurpose
from orchestrator.core.model.entities import Node
from orchestrator.core.model.state import State
from orchestrator.core.model.states import NodeState
from orchestrator.core.placement import link_checks, link_pairs, node_checks
from orchestrator.core.turn import Turn
from orchestrator.errors import ConflictError, InvalidError, NotFoundError

SCHEDULE = "schedule"
"""The actor of the checks of idle nodes."""
CHECK_SECONDS = 900.0
"""Time of a check from its launch: image pulls, and nine programs of 60 s at the most."""
AGAIN_SECONDS = 600.0
"""A node that failed is checked again after this time, since it may have been repaired."""
AT_ONCE_SHARE = 0.05
"""Share of the nodes that the schedule checks side by side, one at least."""


def on_leadership(turn: Turn, event: LeadershipBegan) -> None:
    """Follow the policy of the server that leads."""
    if event.checks is not None and event.checks != turn.state.fleet.checks:
        turn.put(dataclasses.replace(turn.state.fleet, checks=event.checks))


def on_asked(turn: Turn, event: CheckAsked) -> None:
    """Have an idle node checked.

    Raises:
        NotFoundError: There is no such node.
        ConflictError: A run uses it.
    """
    node = turn.state.nodes.get(event.node)
    if node is None or node.state is NodeState.GONE:
        raise NotFoundError(f"there is no node {event.node} in the cluster")
    scheduled = event.actor == SCHEDULE
    users = {worker.run for worker in turn.state.workers_on(node.id)}
    if users and not scheduled:
        names = ", ".join(sorted(turn.run(run).name for run in users if run in turn.state.runs))
        raise ConflictError(
            f"{node.id} is used by {names or 'a run'}, which a check would disturb: wait, or"
            f" `babysit nodes drain {node.id}`"
        )
    if users:
        return
    if LINK in event.checks:
        _measure_link(turn, node, event, scheduled=scheduled)
        return
    returning = node.by == PREFLIGHT and node.state is NodeState.CORDONED
    purpose = CheckPurpose.IDLE if scheduled else CheckPurpose.ASKED
    node_checks.start(turn, node, CheckPurpose.RETURN if returning else purpose, event.checks)


def _measure_link(turn: Turn, node: Node, event: CheckAsked, *, scheduled: bool) -> None:
    """Have the link of an idle node measured.

    Raises:
        InvalidError: Other checks are wanted at the same time.
        ConflictError: There is no other node to measure it with.
    """
    if event.checks != (LINK,):
        raise InvalidError("checks: link needs another node, so it is measured alone")
    if node.measured.under_way is not None:
        return
    partner = link_pairs.partner_for(turn.state, node, turn.now, again=not scheduled)
    if partner is not None:
        link_checks.start(turn, node, turn.state.nodes[partner])
    elif not scheduled:
        busy = {worker.node for worker in turn.state.workers.values()}
        why = link_pairs.why_not(node, turn.state.nodes.values(), busy)
        raise ConflictError(f"the link of {node.id} cannot be measured: {why}")


def on_listening(turn: Turn, event: LinkListening) -> None:
    """Start the other end of a link, now that one end listens. A late word is ignored."""
    node = turn.state.nodes.get(event.node)
    if node is None or not node.measured.awaits(event.worker):
        turn.record(None, f"{event.worker} listens for a check that is over: ignored")
        return
    link_checks.on_listening(turn, node, f"{event.address}:{event.port}")


def on_checked(turn: Turn, event: NodeChecked) -> None:
    """A node has measured itself; a second answer, or a late one, is ignored."""
    node = turn.state.nodes.get(event.node)
    under_way = None if node is None else node.measured.under_way
    if node is None or under_way is None or under_way.worker != event.worker:
        turn.record(None, f"results of {event.worker}, which checks no node: ignored")
        return
    if under_way.partner:
        link_checks.on_results(turn, node, under_way, event.results)
        return
    node = node_checks.end(turn, node, f"the check of {node.id} is done")
    partly = bool(under_way.checks)
    node_checks.on_results(turn, node, event.results, under_way.purpose, partly=partly)


def on_ended(turn: Turn, event: CheckEnded) -> None:
    """The agent of a check is gone, or its time is over; with results before, nothing happens."""
    for node in list(turn.state.nodes.values()):
        if node.measured.awaits(event.worker):
            node_checks.ended(turn, node, event.reason)


def overdue(state: State, now: dt.datetime) -> list[str]:
    """Agents of checks that take too long."""
    limit = dt.timedelta(seconds=CHECK_SECONDS)
    checks = [node.measured.under_way for node in state.nodes.values()]
    return [each.worker for each in checks if each is not None and now - each.since > limit]


def due(state: State, now: dt.datetime) -> list[str]:
    """Idle nodes to be checked now by the schedule, those that were checked longest ago first."""
    policy = state.fleet.checks
    if policy.idle_seconds <= 0 or policy.action == "off" or state.fleet.hold:
        return []
    nodes = [node for node in state.nodes.values() if node.state is not NodeState.GONE]
    busy = sum(node.measured.under_way is not None for node in nodes)
    room = max(1, int(AT_ONCE_SHARE * len(nodes))) - busy
    if room <= 0:
        return []
    idle = dt.timedelta(seconds=policy.idle_seconds)
    again = dt.timedelta(seconds=min(AGAIN_SECONDS, policy.idle_seconds))
    wanted = [
        (last, node.id)
        for node in nodes
        if node.measured.under_way is None
        and (pause := _pause(node, idle, again)) is not None
        and (last := _last(node)) + pause <= now
        and not state.workers_on(node.id)
    ]
    return [name for _, name in sorted(wanted)[:room]]


def _pause(node: Node, idle: dt.timedelta, again: dt.timedelta) -> dt.timedelta | None:
    """The time between two checks of a node; None: it is not checked."""
    if node.state is NodeState.READY:
        return idle
    return again if node.by == PREFLIGHT and node.state is NodeState.CORDONED else None


def _last(node: Node) -> dt.datetime:
    never = dt.datetime.min.replace(tzinfo=dt.UTC)
    return max(node.measured.at or never, node.measured.tried_at or never)
