"""Acts on what a node's own machine says: an incident about the node, and its cordon or drain.

A finding is kept on the record of its node. One that asks for nothing is only recorded; others open
the incident of the node, or join it. Before a node is taken away the finding is corroborated, as
its row wants, and looked at together with those of other nodes: what many machines say at once is
one incident, and drains nothing (:mod:`orchestrator.core.policy.machine_faults`).

The incident is over when all that was found is over, when the machine was rebooted for it, when an
operator takes the node back, or when nothing more was said for a day.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
from typing import Any

from jobs.spec import Action
from monitors.hardware.types import REBOOT, NodeAction, NodeFinding
from monitors.types import Severity
from orchestrator.core.attempts import draining
from orchestrator.core.messages.node_events import NodeFindingRaised
from orchestrator.core.model.entities import Incident, Node
from orchestrator.core.model.machine_record import Fault, Health, Sighting
from orchestrator.core.model.records import HARDWARE, MAINTENANCE, Cordon
from orchestrator.core.model.states import IncidentState, NodeState, WorkerState
from orchestrator.core.model.vocabulary import NodeTrouble, Remedy, Response
from orchestrator.core.policy import machine_faults
from orchestrator.core.supervision import node_faults, run_causes
from orchestrator.core.turn import Turn

QUIET = dt.timedelta(hours=24)
"""An incident about a node that still takes work is over when its machine was quiet for this time.
"""
TOGETHER_QUIET = dt.timedelta(hours=1)
"""As `QUIET`, for an incident about many nodes. Ours."""
_KEPT = 20
_KEPT_TAKEN = 10
_ORDER = list(NodeAction)
_REMEDIES = {
    NodeAction.RECORD: Remedy.RECORD,
    NodeAction.PAGE: Remedy.PAGE,
    NodeAction.DRAIN_AFTER_JOB: Remedy.CORDON,
    NodeAction.DRAIN_NOW: Remedy.DRAIN,
    NodeAction.RESET: Remedy.RESET_DEVICE,
    NodeAction.REBOOT: Remedy.REBOOT,
    NodeAction.NEVER_USE: Remedy.NEVER_USE,
}


def on_finding(turn: Turn, event: NodeFindingRaised) -> None:
    """Take a finding about a node.

    A finding about a node that the cluster does not have is recorded, and nothing else.
    """
    finding = event.finding
    sweep(turn)
    node = turn.state.nodes.get(finding.node)
    if node is None or node.state is NodeState.GONE:
        turn.record(None, f"{finding.node} is not in the cluster: {finding.reason}")
        return
    if finding.over:
        _over(turn, node, {_key(finding.rule, finding.device)}, finding.reason)
        return
    if finding.rule == REBOOT:
        _rebooted(turn, node, finding)
    _note(turn, node, finding)
    run_causes.tell(turn, finding)
    action, why_not = _worth(turn, turn.state.nodes[node.id], finding)
    if why_not:
        _revise(turn, node.id, action=action)
    if action is NodeAction.RECORD or finding.shadow:
        would = f"; in shadow: {_REMEDIES[action]}" if finding.shadow else why_not
        turn.record(None, f"{node.id}: {finding.reason}{would}")
    if finding.shadow or _is_everybodys(turn, finding) or action is NodeAction.RECORD:
        return
    _open(turn, node, finding, action, event)
    _go_on(turn, node.id, event.action, event.ask_seconds)


def _worth(turn: Turn, node: Node, finding: NodeFinding) -> tuple[NodeAction, str]:
    """The action of a finding, and why it is milder than the row asks for.

    Nothing is done before enough runs have met it; a node that has come back too often is away for
    good.
    """
    action = finding.action
    if finding.runs > 1 and action is not NodeAction.RECORD:
        met = machine_faults.runs_that_met(node, finding, turn.state.nodes.values())
        if met < finding.runs:
            why = f"; {met} of {finding.runs} runs have met it, so the node stays"
            return NodeAction.RECORD, why
    often = machine_faults.is_repeat_offender((*node.health.taken, turn.now), turn.now)
    if machine_faults.takes_away(action) and node.by != HARDWARE and often:
        action = NodeAction.NEVER_USE
    return action, ""


def _note(turn: Turn, node: Node, finding: NodeFinding) -> None:
    """Keep a finding on the record of its node."""
    here = [w for w in turn.state.workers_on(node.id) if w.state is not WorkerState.LAUNCHING]
    alive = [w for w in here if w.state is not WorkerState.ENDED]
    runs = {worker.run for worker in alive or here}
    stranger = () if finding.pid is None else (f"process {finding.pid}",)
    sighting = Sighting(
        at=min(dt.datetime.fromtimestamp(finding.time, dt.UTC), turn.now),
        rule=finding.rule,
        device=finding.device,
        action=finding.action,
        severity=finding.severity,
        failure_class=finding.failure_class,
        reason=finding.reason,
        runs=tuple(sorted(runs)) or stranger,
    )
    _change_health(turn, node.id, sightings=(*node.health.sightings, sighting)[-_KEPT:])


def _revise(turn: Turn, node: str, **changes: Any) -> None:
    """Change the newest sighting of a node."""
    *older, newest = turn.state.nodes[node].health.sightings
    _change_health(turn, node, sightings=(*older, dataclasses.replace(newest, **changes)))


def _change_health(turn: Turn, node: str, **changes: Any) -> None:
    health = turn.state.nodes[node].health
    turn.change_node(node, health=dataclasses.replace(health, **changes))


# many machines at once


def _is_everybodys(turn: Turn, finding: NodeFinding) -> bool:
    """True if the finding is part of what many machines say at once: one incident, and no drain."""
    found = machine_faults.correlation(turn.state.nodes.values(), finding.failure_class, turn.now)
    if found is None:
        return False
    hurt = [turn.state.nodes[node] for node in found.nodes]
    reason = (
        f"{len(found.nodes)} machines told of faults within 5 minutes"
        f" ({', '.join(found.nodes[:5])}{' …' if len(found.nodes) > 5 else ''}):"
        f" look at {found.cause}; no node is drained for it. The last: {finding.reason}"
    )
    known = _open_about(turn, found.subject, NodeTrouble.CORRELATED_FAULTS)
    evidence = {"nodes": list(found.nodes), "last_seen": turn.now.isoformat()}
    if known is not None:
        turn.change_incident(known.id, evidence={**known.evidence, **evidence}, reason=reason)
        return True
    incident = turn.open_incident(
        None,
        kind=NodeTrouble.CORRELATED_FAULTS,
        severity=Severity.CRITICAL,
        reason=reason,
        subject=found.subject,
        remedy=Remedy.PAGE,
        evidence=evidence,
    )
    turn.notify(None, Severity.CRITICAL, f"{found.subject}: {reason}", incident.id)
    if found.everywhere and any(
        machine_faults.takes_away(s.action) for node in hurt for s in node.health.sightings
    ):
        node_faults.trip(turn, f"circuit breaker: {reason}; then `babysit release`")
    return True


# the incident of one node


def _key(rule: str, device: str) -> str:
    return f"{rule} {device}".strip()


def _open_about(turn: Turn, subject: str, kind: NodeTrouble) -> Incident | None:
    return next(
        (
            each
            for each in turn.state.incidents_of("")
            if (each.subject, each.kind) == (subject, kind)
            and each.state is not IncidentState.RESOLVED
        ),
        None,
    )


def _open(
    turn: Turn, node: Node, finding: NodeFinding, action: NodeAction, event: NodeFindingRaised
) -> None:
    """Open the incident of a node, or add to it; people hear of each thing once."""
    key, now = _key(finding.rule, finding.device), turn.now.isoformat()
    told = {"reason": finding.reason, "action": action.value, "device": finding.device, "at": now}
    known = _open_about(turn, node.id, NodeTrouble.NODE_FAULT)
    live = dict(known.evidence.get("live", {})) if known else {}
    news = key not in live
    live[key] = told
    worst = max((NodeAction(each["action"]) for each in live.values()), key=_ORDER.index)
    todo = machine_faults.command(worst, node.id, finding.device)
    reason = finding.reason + (f"; {todo}" if todo else "")
    evidence = {"live": dict(list(live.items())[-_KEPT:]), "last_seen": now, "action": worst.value}
    if known is None:
        incident = turn.open_incident(
            None,
            kind=NodeTrouble.NODE_FAULT,
            severity=finding.severity,
            reason=reason,
            subject=node.id,
            remedy=_REMEDIES[worst],
            response=_response(turn, event.action),
            evidence=evidence,
        )
    else:
        harder = _ORDER.index(worst) > _ORDER.index(NodeAction(known.evidence["action"]))
        more: dict[str, Any] = {"reason": reason} if harder or not news else {}
        severe = Severity.CRITICAL in {known.severity, finding.severity}
        more["severity"] = Severity.CRITICAL if severe else known.severity
        incident = turn.change_incident(
            known.id, remedy=_REMEDIES[worst], evidence={**known.evidence, **evidence}, **more
        )
    if news:
        would = "" if event.action is Action.ACT else f" ({_said(event)})"
        text = f"{node.id}: {_REMEDIES[worst]}{would}: {reason}"
        turn.notify(None, finding.severity, text, incident.id)


def _said(event: NodeFindingRaised) -> str:
    if event.action is Action.OBSERVE:
        return "only observed"
    after = f"unless somebody objects within {event.ask_seconds:.0f} s"
    return f"asked; it starts {after}" if event.ask_seconds else "asked; it waits for you"


def _response(turn: Turn, action: Action) -> Response:
    if action is Action.OBSERVE:
        return Response.OBSERVED
    if turn.state.fleet.hold:
        return Response.HELD
    return Response.ASKED if action is Action.ASK else Response.ACTED


# taking a node away, and back


def _go_on(turn: Turn, node: str, action: Action, ask_seconds: float) -> None:
    """Act on the open incident of a node, ask first, or leave it at that."""
    incident = _open_about(turn, node, NodeTrouble.NODE_FAULT)
    if incident is None or not _wants(incident) or action is Action.OBSERVE:
        return
    if turn.state.fleet.hold:
        turn.change_incident(incident.id, response=Response.HELD)
        turn.record(None, f"held: {node} is not taken away: {incident.reason}")
        return
    if action is Action.ASK and incident.response is not Response.ACTED:
        if turn.state.nodes[node].health.ask_at is None and ask_seconds:
            at = turn.now + dt.timedelta(seconds=ask_seconds)
            _change_health(turn, node, ask_at=at)
            turn.change_incident(incident.id, response=Response.ASKED, remedy_at=at)
        return
    _take_away(turn, node, incident)


def _wants(incident: Incident) -> bool:
    """True if the incident asks for more than has been done."""
    action = NodeAction(incident.evidence["action"])
    done = incident.evidence.get("done")
    return machine_faults.takes_away(action) and (
        done is None or _ORDER.index(NodeAction(done)) < _ORDER.index(action)
    )


def _take_away(turn: Turn, node_id: str, incident: Incident) -> None:
    action, node = NodeAction(incident.evidence["action"]), turn.state.nodes[node_id]
    again = node.by == HARDWARE
    _revise(turn, node_id, acted=True)
    _change_health(
        turn,
        node_id,
        taken=node.health.taken if again else (*node.health.taken, turn.now)[-_KEPT_TAKEN:],
        never_use=node.health.never_use or action is NodeAction.NEVER_USE,
        ask_at=None,
    )
    if not again:
        newest = node.health.sightings[-1]
        fault = Fault(at=turn.now, run="", failure_class=newest.failure_class)
        turn.change_node(node_id, faults=(*node.faults, fault)[-_KEPT:])
    turn.change_incident(
        incident.id,
        state=IncidentState.MITIGATING,
        response=Response.ACTED,
        remedy_at=None,
        evidence={**incident.evidence, "done": action.value},
    )
    if node.state is NodeState.GONE:
        return
    if node.by == MAINTENANCE:  # drained already; it stays away afterwards
        turn.change_node(node_id, cordon=Cordon(reason=incident.reason, by=HARDWARE))
        return
    before = node.cordon
    if node.state is not NodeState.READY and not again:
        before = Cordon(reason=node.reason, by=node.by)
    if action is not NodeAction.DRAIN_AFTER_JOB:
        draining.drain(turn, node_id, reason=incident.reason, by=HARDWARE, cordon=before)
    elif node.state is NodeState.READY:
        turn.change_node(
            node_id, state=NodeState.CORDONED, reason=incident.reason, by=HARDWARE, cordon=None
        )


def act_unanswered(turn: Turn, node: str) -> None:
    """Start the action that nobody answered in time; under a hold it waits for the release."""
    at = turn.state.nodes[node].health.ask_at
    if at is None or at > turn.now:
        return
    _change_health(turn, node, ask_at=None)
    incident = _open_about(turn, node, NodeTrouble.NODE_FAULT)
    if incident is None or incident.acknowledged_by is not None or not _wants(incident):
        return
    if turn.state.fleet.hold:
        turn.change_incident(incident.id, response=Response.HELD, remedy_at=None)
        return
    _take_away(turn, node, incident)


def resume(turn: Turn) -> None:
    """After a hold over everything: take away the nodes that the hold kept."""
    for incident in turn.state.incidents_of(""):
        held = incident.response is Response.HELD and incident.state is IncidentState.OPEN
        if held and incident.subject in turn.state.nodes and _wants(incident):
            _take_away(turn, incident.subject, incident)


def _over(turn: Turn, node: Node, keys: set[str], why: str) -> None:
    """Note that findings are over; the incident is when all of them are."""
    incident = _open_about(turn, node.id, NodeTrouble.NODE_FAULT)
    if incident is None:
        return
    live = {k: v for k, v in incident.evidence.get("live", {}).items() if k not in keys}
    if live == incident.evidence.get("live"):
        return
    turn.change_incident(incident.id, evidence={**incident.evidence, "live": live})
    if live or turn.state.nodes[node.id].health.never_use:
        return
    turn.resolve_incident(incident.id, why)
    _give_back(turn, node.id, why)


def _rebooted(turn: Turn, node: Node, finding: NodeFinding) -> None:
    """A reboot ends what a reset or a reboot was wanted for, and nothing else."""
    incident = _open_about(turn, node.id, NodeTrouble.NODE_FAULT)
    if incident is None:
        return
    cured = {NodeAction.RESET.value, NodeAction.REBOOT.value}
    keys = {k for k, v in incident.evidence.get("live", {}).items() if v["action"] in cured}
    _over(turn, node, keys, f"rebooted ({finding.boot})")


def _give_back(turn: Turn, node_id: str, why: str) -> None:
    """Let a node take work again that was taken away for its machine's word alone."""
    node = turn.state.nodes[node_id]
    _change_health(turn, node_id, ask_at=None)
    if node.cordon is not None and node.cordon.by == HARDWARE:
        turn.change_node(node_id, cordon=None)
    if node.by != HARDWARE or node.state is NodeState.GONE:
        return
    before = node.cordon
    turn.change_node(
        node_id,
        state=NodeState.CORDONED if before else NodeState.READY,
        reason=before.reason if before else f"taken back: {why}"[:300],
        by=before.by if before else "",
        cordon=None,
    )
    turn.schedule_wanted = True


def taken_back(turn: Turn, node_id: str, actor: str) -> None:
    """An operator lets the node take work: its incident is over, and repeats begin anew."""
    incident = _open_about(turn, node_id, NodeTrouble.NODE_FAULT)
    if incident is not None:
        turn.resolve_incident(incident.id, f"{actor} took the node back")
    health = turn.state.nodes[node_id].health
    if health != Health(sightings=health.sightings):
        turn.change_node(node_id, health=Health(sightings=health.sightings))


def sweep(turn: Turn) -> None:
    """Resolve incidents about nodes that were quiet for long, or are gone."""
    for incident in list(turn.state.incidents_of("")):
        if incident.state is IncidentState.RESOLVED:
            continue
        seen = dt.datetime.fromisoformat(incident.evidence["last_seen"])
        node = turn.state.nodes.get(incident.subject)
        if incident.kind == NodeTrouble.CORRELATED_FAULTS:
            if turn.now - seen >= TOGETHER_QUIET:
                turn.resolve_incident(incident.id, "nothing more was said for 1 h")
        elif node is None or node.state is NodeState.GONE:
            turn.resolve_incident(incident.id, "the node has left the cluster")
        elif turn.now - seen >= QUIET and incident.evidence.get("done") is None:
            turn.resolve_incident(incident.id, "nothing more was said for 24 h")
