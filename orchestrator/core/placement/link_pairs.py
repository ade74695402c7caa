"""The nodes whose links are measured now, and with which partner. Pure.

Links are measured between idle nodes of different machines, on the schedule of their other checks.
A node whose link was bad comes first, with partners that it has not been tried with: one with which
it was good before, if there is one, and then those that are good, but not with the bad ones only.
Where the network has fallen apart, that finds a node on the same side.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Collection, Iterable

from orchestrator.core.model.checking import LinkTrial
from orchestrator.core.model.entities import Node
from orchestrator.core.model.state import State
from orchestrator.core.model.states import NodeState
from orchestrator.core.placement import check_verdicts, link_verdicts

AGAIN = dt.timedelta(minutes=10)
"""A link without results, and that of a node that failed, is measured again after this time."""
AT_ONCE_SHARE = 0.05
"""Share of the nodes that measure links side by side; one pair at least."""
MOST_PARTNERS = 4
"""Partners that a node is tried with at once: where no link is good, more would prove nothing."""
_NEVER = dt.datetime.min.replace(tzinfo=dt.UTC)


def due(state: State, now: dt.datetime) -> list[str]:
    """Nodes whose link is to be measured now by the schedule, the most urgent first."""
    policy = state.fleet.checks
    if policy.action == "off" or state.fleet.hold:
        return []
    nodes = [node for node in state.nodes.values() if node.state is not NodeState.GONE]
    busy = sum(bool(each.partner) for node in nodes if (each := node.measured.under_way))
    room = max(1, int(AT_ONCE_SHARE * len(nodes) / 2)) - busy // 2
    if room <= 0:
        return []
    wanted = [
        (urgency, node.measured.link_at or _NEVER, node.id)
        for node in nodes
        if (urgency := _urgency(state, node, now)) is not None and is_free(state, node)
    ]
    chosen: list[str] = []
    for _, _, name in sorted(wanted):
        if len(chosen) < room and partner_for(state, state.nodes[name], now) is not None:
            chosen.append(name)
    return chosen


def _urgency(state: State, node: Node, now: dt.datetime) -> int | None:
    """0: in doubt; 1: bad, and perhaps repaired; 2: its time has come; None: not now."""
    measured, idle_seconds = node.measured, state.fleet.checks.idle_seconds
    if measured.link_tried_at is not None and now - measured.link_tried_at < AGAIN:
        return None
    since = now - (measured.link_at or _NEVER)
    if node.state is NodeState.READY and _is_suspect(state, node, now):
        return 0
    if idle_seconds <= 0:
        return None
    if node.state is NodeState.READY:
        return 2 if since >= dt.timedelta(seconds=idle_seconds) else None
    return 1 if link_verdicts.is_away(node) and since >= AGAIN else None


def _is_suspect(state: State, node: Node, now: dt.datetime) -> bool:
    """True if one more trial may tell more about a node that is bad with some."""
    if link_verdicts.has_failed(node):
        return False
    few = 0 < len(link_verdicts.bad_trials(node, now)) < MOST_PARTNERS
    decides = has_another_try(state, node, now) or link_verdicts.proven_since(
        node, state.nodes, now
    )
    return few or bool(decides)


def is_free(state: State, node: Node) -> bool:
    """True if no run uses the node, and no check is under way."""
    return node.measured.under_way is None and not state.workers_on(node.id)


def _others(node: Node, nodes: Iterable[Node]) -> list[Node]:
    """Nodes of other machines, idle or not, which take work."""
    return [
        other for other in nodes if other.state is NodeState.READY and other.machine != node.machine
    ]


def partner_for(state: State, node: Node, now: dt.datetime, *, again: bool = False) -> str | None:
    """The best partner for a node among those that are free; None: there is none.

    Args:
        state: The state.
        node: A node that is free, or is to be.
        now: The time.
        again: True: one with which the link was bad will do, if there is no other.
    """
    bad = link_verdicts.bad_trials(node, now)
    if link_verdicts.is_away(node):
        bad = []  # any partner can show that it is repaired
    tried = _machines(state, bad)
    barred = tried - link_verdicts.proven_since(node, state.nodes, now)
    free = [
        other
        for other in _others(node, state.nodes.values())
        if (again or other.machine not in barred) and is_free(state, other)
    ]
    if not free:
        return None
    met = {trial.partner: trial.at for trial in node.measured.links}
    doubted = bool(bad) or link_verdicts.is_away(node)

    friends = _friends(node) if doubted else set()
    theirs = {
        name
        for each in bad
        if each.partner in state.nodes
        for name in _friends(state.nodes[each.partner])
    }

    def order(other: Node) -> tuple[bool, bool, int, bool, bool, dt.datetime, dt.datetime, str]:
        unlike = not check_verdicts.is_like(other, node)
        last = other.measured.link_at or _NEVER
        rank = _rank(other, now, doubted=doubted)
        old = met.get(other.id, _NEVER)
        stranger = other.id not in friends
        distant = other.id in theirs
        return other.machine in tried, stranger, rank, distant, unlike, old, last, other.id

    return min(free, key=order).id


def _friends(node: Node) -> set[str]:
    """Nodes with which the newest trial of a node was good, however long ago."""
    return {trial.partner for trial in node.measured.links if not trial.bad}


def has_another_try(state: State, node: Node, now: dt.datetime) -> bool:
    """True if a node that is bad with some is about to be tried with one that may be good with it.

    Otherwise its partners would convict it that are cut off from it, as from all on its side.
    """
    bad = link_verdicts.bad_trials(node, now)
    tried, friends = _machines(state, bad), _friends(node)
    few = len(bad) < MOST_PARTNERS
    return bool(bad) and any(
        other.machine not in tried and (few or other.id in friends) and is_free(state, other)
        for other in _others(node, state.nodes.values())
    )


def _machines(state: State, trials: Iterable[LinkTrial]) -> set[str]:
    return {state.nodes[each.partner].machine for each in trials if each.partner in state.nodes}


def _rank(other: Node, now: dt.datetime, *, doubted: bool) -> int:
    """Good partners first for a node in doubt; for the others, those that are in no doubt."""
    if link_verdicts.bad_trials(other, now) or link_verdicts.has_failed(other):
        return 2
    return 0 if link_verdicts.is_good(other, now) or not doubted else 1


def why_not(node: Node, nodes: Iterable[Node], busy: Collection[str]) -> str:
    """Why the link of a node is not measured now; empty: it can be.

    Args:
        node: The node.
        nodes: All nodes.
        busy: Names of nodes that runs use.
    """
    candidates = _others(node, nodes)
    if not candidates:
        return "there is no node on another machine that takes work"
    if all(each.id in busy or each.measured.under_way is not None for each in candidates):
        return "no node on another machine is idle"
    return ""
