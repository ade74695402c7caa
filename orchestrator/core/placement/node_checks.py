"""Checks of nodes: they are started, give way to runs, and their results have consequences.

A node that fails is cordoned with the figure, and the gang goes elsewhere. A node that was cordoned
for that is checked again on the schedule, and is taken back when it passes, but not for ever: one
that comes and goes costs its runs a restart each time. Many nodes that fail at once are not to
blame: then the check, or something that all nodes share, is at fault, and nothing is cordoned.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
from collections.abc import Iterable
from typing import Any

from jobs.checks.results import QUICK, CheckResult, Verdict
from monitors.types import Severity
from orchestrator.core.messages.instructions import CheckNode, StopCheck
from orchestrator.core.model.checking import PREFLIGHT, CheckPurpose, CheckUnderWay
from orchestrator.core.model.entities import Incident, Node, Run
from orchestrator.core.model.records import CLUSTER, FLAPPING
from orchestrator.core.model.states import IncidentState, NodeState
from orchestrator.core.model.vocabulary import NodeTrouble, Remedy
from orchestrator.core.placement import check_verdicts
from orchestrator.core.text import named, time_mark
from orchestrator.core.turn import Turn

FLAPS = 3
"""Times that a node is taken back by itself within `FLAP_WINDOW`."""
FLAP_WINDOW = dt.timedelta(hours=24)
TOGETHER_WINDOW = dt.timedelta(minutes=5)
TOGETHER_NODES, TOGETHER_SHARE = 3, 0.10
"""This many machines that fail within `TOGETHER_WINDOW`, and more than this share of all, are not
to blame: as for the breaker."""
MOST_TRIES = 3
"""Checks in a row without results, after which a node that must pass one is taken back without."""


def start(turn: Turn, node: Node, purpose: CheckPurpose, checks: tuple[str, ...] = ()) -> None:
    """Have an agent check a node that is idle; nothing happens while one does."""
    if node.measured.under_way is not None:
        return
    worker = f"check-{node.id}-{time_mark(turn.now)}"
    under_way = CheckUnderWay(worker=worker, since=turn.now, purpose=purpose, checks=checks)
    note(turn, node, under_way=under_way)
    turn.emit(
        CheckNode,
        None,
        f"{node.id} is checked ({purpose})",
        worker=worker,
        node=node.id,
        gpus=node.gpus,
        checks=checks,
    )


def preflight(turn: Turn, run: Run, node_id: str) -> tuple[str, ...]:
    """The programs that a worker runs before it joins; none if its node passed them lately.

    A recovery never waits for a check: the nodes that it takes are checked while they are idle.
    """
    seconds = turn.state.fleet.checks.preflight_seconds
    node = turn.state.nodes.get(node_id)
    if seconds <= 0 or run.attempt > 0 or node is None or node.by == PREFLIGHT:
        return ()
    fresh = node.measured.at is not None and (turn.now - node.measured.at).total_seconds() < seconds
    return () if fresh else QUICK


def end(turn: Turn, node: Node, reason: str) -> Node:
    """End the check that is under way, with or without results."""
    if node.measured.under_way is not None:
        turn.emit(StopCheck, None, reason, worker=node.measured.under_way.worker, node=node.id)
        node = note(turn, node, under_way=None)
    return node


def end_untried(turn: Turn, node: Node, reason: str) -> None:
    """End the measurement of a link at both ends: it says nothing about either."""
    under_way = node.measured.under_way
    partner = turn.state.nodes.get(under_way.partner) if under_way is not None else None
    both = [node]
    if partner is not None and (other := partner.measured.under_way) is not None:
        both += [partner] if other.partner == node.id else []
    for each in both:
        ended = end(turn, each, reason)
        note(turn, ended, link_tried_at=turn.now, unchecked=reason)
    turn.record(None, f"the link of {named([each.id for each in both])} was not measured: {reason}")


def note(turn: Turn, node: Node, **changes: Any) -> Node:
    """Change what was measured on a node."""
    return turn.change_node(node.id, measured=dataclasses.replace(node.measured, **changes))


def give_way(turn: Turn, node_id: str) -> None:
    """A run gets the node: its check ends at once, and is made again when the node is idle."""
    node = turn.state.nodes.get(node_id)
    if node is None or (under_way := node.measured.under_way) is None:
        return
    why = f"the check of {node_id} gives way to a run"
    if under_way.partner:
        end_untried(turn, node, why)
    else:
        end(turn, node, why)


def on_results(
    turn: Turn,
    node: Node,
    results: Iterable[CheckResult],
    purpose: CheckPurpose,
    *,
    partly: bool = False,
) -> bool:
    """Store what a node measured and act on it; False if it failed and must not be used.

    Where it was measured `partly`, what it failed before stands, and the next check stays due.
    """
    judged = check_verdicts.judge(node, results, turn.state.nodes.values())
    failed = check_verdicts.failures(judged)
    kept = check_verdicts.merged(node.measured.results, judged, turn.now)
    at = node.measured.at if partly else turn.now
    node = note(turn, node, results=kept, at=at, tries=0, unchecked="")
    if not failed:
        if any(result.verdict is Verdict.PASSED for result in judged):
            return_if_sound(turn, node)
        return True
    if check_verdicts.only_slow(failed) and purpose is not CheckPurpose.CONFIRM:
        turn.record(None, f"{node.id}: {check_verdicts.sentence(failed)}; it is checked once more")
        if not _is_busy(turn, node):
            start(turn, node, CheckPurpose.CONFIRM)
        return True
    return fail(turn, node, check_verdicts.sentence(failed))


def return_if_sound(turn: Turn, node: Node) -> None:
    """Take back a node that was cordoned for a check, once nothing on it fails any more."""
    cordoned = node.by == PREFLIGHT and node.state is NodeState.CORDONED
    if cordoned and not _has_failed(node):
        take_back(turn, node, "its checks passed")


def _is_busy(turn: Turn, node: Node) -> bool:
    return bool(turn.state.workers_on(node.id))


def fail(turn: Turn, node: Node, why: str) -> bool:
    """Cordon a node that failed, unless the policy or the other nodes speak against it.

    Returns:
        False if the node must not be used.
    """
    action = turn.state.fleet.checks.action
    if action == "off":
        turn.record(None, f"{node.id} failed a check: {why}; nothing is done (checks are off)")
        return True
    if action == "shadow":
        text = f"{node.id} failed a check and would be cordoned: {why}"
        turn.notify(None, Severity.INFO, text, kind="check_failed")
        return True
    if (together := _failing_machines(turn)) is not None:
        _blame_nobody(turn, together)
        return True
    if turn.state.fleet.hold:
        turn.record(None, f"held: {node.id} is not cordoned: it failed a check: {why}")
        return True
    if node.by == PREFLIGHT:
        turn.change_node(node.id, reason=f"failed a check: {why}")
    elif node.state is NodeState.READY or node.by == CLUSTER:
        lately = [each for each in node.absences if turn.now - each < FLAP_WINDOW]
        was_ready = node.state is NodeState.READY
        turn.change_node(
            node.id,
            state=NodeState.CORDONED,
            reason=f"failed a check: {why}",
            by=PREFLIGHT,
            absences=(*lately, turn.now) if was_ready else node.absences,
        )
    else:  # somebody else keeps it away
        return False
    _open(turn, node, why)
    return False


def _open(turn: Turn, node: Node, why: str) -> None:
    """Open the incident of a node that failed, or renew it; people hear of it once."""
    seen = {"last_seen": turn.now.isoformat(), "done": "cordon", "failed": why}
    if (known := _incident(turn, node.id)) is not None:
        turn.change_incident(known.id, reason=f"it failed a check: {why}", evidence=seen)
        return
    incident = turn.open_incident(
        None,
        kind=NodeTrouble.CHECK_FAILED,
        severity=Severity.WARNING,
        reason=f"it failed a check: {why}",
        subject=node.id,
        remedy=Remedy.CORDON,
        evidence=seen,
    )
    text = f"{node.id} is cordoned, since it failed a check: {why}"
    turn.notify(None, Severity.WARNING, text, incident.id)


def _incident(turn: Turn, node: str) -> Incident | None:
    """The incident of a node that failed a check, while it is not over."""
    for each in turn.state.incidents_of(""):
        about = each.kind == NodeTrouble.CHECK_FAILED and each.subject == node
        if about and each.state is not IncidentState.RESOLVED:
            return each
    return None


def resolve(turn: Turn, node: str, how: str) -> None:
    """The node takes work again: its incident is over, if there is one."""
    if (incident := _incident(turn, node)) is not None:
        turn.resolve_incident(incident.id, how)


def _failing_machines(turn: Turn) -> list[str] | None:
    """The machines that failed lately, if they are too many to be to blame; else None."""
    nodes = [node for node in turn.state.nodes.values() if node.state is not NodeState.GONE]
    since = turn.now - TOGETHER_WINDOW
    failing = {
        node.machine
        for node in nodes
        for checked in node.measured.results
        if checked.at > since and checked.result.verdict is Verdict.FAILED
    }
    machines = {node.machine for node in nodes}
    most = max(TOGETHER_NODES, int(TOGETHER_SHARE * len(machines)) + 1)
    return sorted(failing) if len(failing) >= most else None


def _blame_nobody(turn: Turn, machines: list[str]) -> None:
    """Take nodes back that were cordoned just before: too many fail the same way."""
    since = turn.now - TOGETHER_WINDOW
    for node in list(turn.state.nodes.values()):
        lately = node.left_at is not None and node.left_at > since
        if node.by == PREFLIGHT and node.state is NodeState.CORDONED and lately:
            own = tuple(each for each in node.absences if each <= since)
            take_back(turn, turn.change_node(node.id, absences=own), "too many failed at once")
    text = (
        f"checks failed on {len(machines)} nodes within 5 minutes ({', '.join(machines[:5])}):"
        " no node is cordoned for it; look at what they share, and at the check"
    )
    turn.notify(None, Severity.CRITICAL, text, kind="checks_failed_together")


def take_back(turn: Turn, node: Node, why: str) -> None:
    """Let a node take work again, unless it comes and goes, or somebody else keeps it away.

    A cordon of others from before holds again, and so does the cluster's own word.
    """
    before = node.cordon
    if before is not None:
        turn.change_node(
            node.id, state=NodeState.CORDONED, reason=before.reason, by=before.by, cordon=None
        )
        return
    if node.says:
        turn.change_node(node.id, state=NodeState.CORDONED, reason=node.says, by=CLUSTER)
        return
    lately = [each for each in node.absences if turn.now - each < FLAP_WINDOW]
    if len(lately) > FLAPS:
        who = "a check" if node.by == PREFLIGHT else "the cluster"
        why = f"flapping: {len(lately)} times within 24 h {who} took it away, last for"
        why = f"{why} {node.reason}; `babysit nodes uncordon {node.id}` when it is repaired"
        turn.change_node(node.id, state=NodeState.CORDONED, reason=why, by=FLAPPING)
        turn.notify(
            None, Severity.WARNING, f"{node.id} stays cordoned: {why}", kind="node_flapping"
        )
        return
    turn.change_node(node.id, state=NodeState.READY, reason=f"taken back: {why}", by="")
    resolve(turn, node.id, why)


def must_pass(turn: Turn, node: Node) -> bool:
    """True if a node that the cluster gives back has to pass a check first."""
    policy = turn.state.fleet.checks
    return policy.action == "act" and policy.idle_seconds > 0 and not _is_busy(turn, node)


def ended(turn: Turn, node: Node, reason: str) -> None:
    """Note a check that ended without results: that says nothing about the node."""
    under_way = node.measured.under_way
    purpose = under_way.purpose if under_way is not None else CheckPurpose.ASKED
    if purpose is CheckPurpose.LINK:
        end_untried(turn, node, reason)
        return
    node = end(turn, node, f"the check of {node.id} ended: {reason}")
    node = note(turn, node, tries=node.measured.tries + 1, tried_at=turn.now, unchecked=reason)
    turn.record(None, f"{node.id} was not checked: {reason}")
    if purpose is not CheckPurpose.RETURN or node.by != PREFLIGHT:
        return
    if node.measured.tries < MOST_TRIES:
        start(turn, node, CheckPurpose.RETURN)
    elif not _has_failed(node):
        take_back(turn, node, f"it could not be checked ({reason})")


def _has_failed(node: Node) -> bool:
    return any(each.result.verdict is Verdict.FAILED for each in node.measured.results)
