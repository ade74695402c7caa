"""Silent data corruption: which node is left, and what the replay of its steps settles.

A majority of replicas names the node that computed wrongly. It is drained at once only where the
run can go on elsewhere; without a spare node, or without a majority, the run goes back on the nodes
that it has, and the steps that it computes again decide: what came back bit for bit was right, and
the node of the other value is drained. A disagreement that follows the rank to another node is the
script's: then the node takes work again.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from jobs.spec import Action
from monitors.failures import FailureClass
from monitors.replica_memory import Outcome
from monitors.types import Finding, FindingKind
from orchestrator.core.attempts import draining
from orchestrator.core.checkpoints import lifecycle as checkpoint_lifecycle
from orchestrator.core.messages.events import FindingRaised
from orchestrator.core.model.entities import Attempt, Incident, Run
from orchestrator.core.model.records import Cordon
from orchestrator.core.model.states import IncidentState, NodeState, Trust, WorkerState
from orchestrator.core.policy import remedies
from orchestrator.core.supervision import node_faults, spike_replays
from orchestrator.core.turn import Turn

BY = "babysit"
"""The one who drains a node, as people see it."""
REPLAY_STEPS = 100
"""Steps past the best one after which no replay is waited for: its fingerprints did not come."""


def evidence_of(attempt: Attempt, finding: Finding) -> dict[str, Any]:
    """The evidence of a finding, with the nodes of the suspects: later attempts have others."""
    evidence = dict(finding.evidence)
    if finding.kind is FindingKind.CORRUPTION:
        homes = {rank: seat.node for seat in attempt.seats for rank in seat.ranks}
        evidence["nodes"] = {
            str(rank): homes[rank] for rank in evidence.get("suspects", ()) if rank in homes
        }
    return evidence


def culprit(attempt: Attempt, finding: Finding) -> str | None:
    """The node of all odd ranks; None: there is no majority, or they are on several nodes."""
    odd = finding.evidence.get("odd", ())
    nodes = {seat.node for seat in attempt.seats if set(odd) & set(seat.ranks)}
    return nodes.pop() if len(nodes) == 1 else None


def trust_agreement(turn: Turn, finding: Finding, run_id: str) -> None:
    """Checkpoints up to the last agreement count as good: replicas agreed after they were saved."""
    for known in turn.state.checkpoints_of(run_id):
        if (
            known.step < finding.onset_step
            and known.trust is Trust.VERIFIED
            and checkpoint_lifecycle.may_become_good(known)
        ):
            turn.change_checkpoint(known.id, trust=Trust.GOOD)


def drain_culprit(turn: Turn, run: Run, incident: str | None, node: str | None) -> None:
    """After the verdict about a corruption: drain its node, where the run can go on elsewhere."""
    known = turn.state.incidents.get(incident or "")
    if known is None or known.kind != FindingKind.CORRUPTION or node is None:
        return
    if _has_spare(turn, node):
        _drain(turn, run, known, [node])
    else:
        turn.record(run.id, f"{node} is drained once the steps were computed again: none is free")


def _has_spare(turn: Turn, node: str) -> bool:
    return any(
        other.state is NodeState.READY
        and other.id != node
        and all(each.state is WorkerState.ENDED for each in turn.state.workers_on(other.id))
        for other in turn.state.nodes.values()
    )


def _drain(turn: Turn, run: Run, incident: Incident, nodes: Iterable[str]) -> None:
    drained = list(incident.evidence.get("drained", ()))
    for node in nodes:
        known = turn.state.nodes.get(node)
        if known is None or known.state not in {NodeState.READY, NodeState.CORDONED}:
            continue
        was = Cordon(reason=known.reason, by=known.by) if known.by else None
        why = f"silent data corruption in {run.name}: {incident.reason}"
        draining.drain(turn, node, reason=why, by=BY, cordon=was)
        turn.record(run.id, f"{node} is drained: {incident.reason}")
        drained.append(node)
    turn.change_incident(incident.id, evidence={**incident.evidence, "drained": drained})


def on_replay(turn: Turn, event: FindingRaised) -> None:
    """Steps were computed again: add the verdict to the incident, and settle whose node it was."""
    run, finding = turn.run(event.run), event.finding
    of_attempt, of_kind = finding.evidence.get("of_attempt"), finding.evidence.get("of_kind")
    # Losses speak of their own incident only: they settle no disagreement of fingerprints.
    kinds = {of_kind} if of_kind else remedies.SPOILING
    incident = next(
        (
            each
            for each in reversed(turn.state.incidents_of(run.id))
            if each.attempt == of_attempt and each.kind in kinds
        ),
        None,
    )
    place = spike_replays.where(incident, finding.evidence) if incident and of_kind else None
    reason = f"{finding.reason}; {place.said}" if place and place.said else finding.reason
    turn.record(run.id, reason)
    if incident is None:
        return
    said = {
        **finding.evidence,
        "reason": reason,
        "elsewhere": place.elsewhere if place else _moved(turn, incident, run),
        **({"nodes": list(place.suspects)} if place else {}),
    }
    incident = turn.change_incident(incident.id, evidence={**incident.evidence, "replay": said})
    outcome, homes = finding.evidence.get("outcome"), incident.evidence.get("nodes", {})
    if outcome == Outcome.SCRIPT:
        _acquit(turn, run, incident)
    elif outcome == Outcome.HARDWARE and run.spec.monitors.corruption.action is Action.ACT:
        wrong = {homes[str(rank)] for rank in finding.evidence["ranks"] if str(rank) in homes}
        if len(wrong) == 1:
            _drain(turn, run, incident, wrong)
    if incident.kind == FindingKind.CORRUPTION:
        turn.resolve_incident(incident.id, finding.reason)


def _moved(turn: Turn, incident: Incident, run: Run) -> bool:
    """True if no suspect rank is on the node where it was."""
    homes: Mapping[str, str] = incident.evidence.get("nodes", {})
    seats = turn.state.attempts[run.id].seats
    now = {str(rank): seat.node for seat in seats for rank in seat.ranks}
    return bool(homes) and all(now.get(rank) != node for rank, node in homes.items())


def _acquit(turn: Turn, run: Run, incident: Incident) -> None:
    """The disagreement follows the rank: its former node is not to blame."""
    nodes = set(incident.evidence.get("nodes", {}).values())
    for node in incident.evidence.get("drained", ()):
        known = turn.state.nodes.get(node)
        if known is None or known.by != BY or known.state is not NodeState.DRAINING:
            continue
        was = known.cordon
        turn.change_node(
            node,
            state=NodeState.READY if was is None else NodeState.CORDONED,
            reason="its replay shows that the script is at fault" if was is None else was.reason,
            by="" if was is None else was.by,
            cordon=None,
        )
        turn.schedule_wanted = True
    node_faults.acquit(turn, nodes, run.id, FailureClass.SILENT_CORRUPTION)
    turn.change_run(run.id, avoid=tuple(node for node in run.avoid if node not in nodes))


def awaits_replay(incident: Incident) -> bool:
    """True while the steps of a corruption have not come again: its verdict is open."""
    return incident.kind == FindingKind.CORRUPTION and "replay" not in incident.evidence


def on_step(turn: Turn, run_id: str, step: int) -> None:
    """Wait no longer for a replay that does not come."""
    best = turn.state.attempts[run_id].restart
    for incident in turn.state.incidents_of(run_id):
        if (
            awaits_replay(incident)
            and incident.state is IncidentState.MITIGATING
            and best is not None
            and step > best.best_step + REPLAY_STEPS
        ):
            turn.resolve_incident(incident.id, "its steps came again without fingerprints")
