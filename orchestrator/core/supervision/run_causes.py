"""Explains the end of a run by what the machine of one of its nodes said.

What a rank prints is a symptom: a peer is gone, a collective timed out, a signal came. The kernel
or the driver of a node that told of a fault just before is the cause. The finding may come before
the failure is judged, or after: then it is added to the incident of the failure.

Limits: nothing is cordoned for it; the row of the finding says what is done to the node.
"""

from __future__ import annotations

import datetime as dt

from monitors.failures import Evidence, Failure, FailureClass
from monitors.hardware.types import NodeAction, NodeFinding
from monitors.types import Severity
from orchestrator.core.model.entities import Attempt
from orchestrator.core.model.machine_record import Sighting
from orchestrator.core.model.states import IncidentState
from orchestrator.core.turn import Turn

WINDOW = dt.timedelta(minutes=10)
"""A machine's word this long before a failure explains it. NCCL's collectives time out after 10
minutes by default."""
_SYMPTOMS = frozenset(
    {
        FailureClass.UNKNOWN,
        FailureClass.SIGNAL,
        FailureClass.CASCADE,
        FailureClass.WORKER_LOST,
        FailureClass.COLLECTIVE_TIMEOUT,
        FailureClass.NETWORK,
        FailureClass.RENDEZVOUS,
        FailureClass.HANG,
    }
)
"""Classes that say how a run ended, and not why."""
_OF_A_PROCESS = frozenset({FailureClass.HOST_OOM, FailureClass.CUDA_USER_BUG})


def explained(
    turn: Turn, attempt: Attempt, failure: Failure, node: str | None
) -> tuple[Failure, str | None]:
    """The failure with its cause, and the node of that; as it was, and None, if none is known.

    `node` is where the first rank died.
    """
    if failure.failure_class not in _SYMPTOMS or failure.proof is not None:
        return failure, None
    found = _gravest(turn, attempt, node)
    if found is None:
        return failure, None
    place, sighting = found
    cause = failure.model_copy(
        update={
            "failure_class": sighting.failure_class,
            "reason": f"{place}: {sighting.reason} (the ranks: {failure.reason})",
            "signature": f"{sighting.rule}",
            "evidence": (sighting.reason, *failure.evidence),
            "source": Evidence.BABYSIT,
        }
    )
    return cause, place


def _gravest(turn: Turn, attempt: Attempt, died_on: str | None) -> tuple[str, Sighting] | None:
    """The gravest finding of late on a node of the attempt, the first among equals.

    A process that hurts itself explains a death on its own node alone.
    """
    found: list[tuple[int, dt.datetime, str, Sighting]] = []
    for node in dict.fromkeys(seat.node for seat in attempt.seats):
        known = turn.state.nodes.get(node)
        for sighting in known.health.sightings if known is not None else ():
            late = max(turn.now - WINDOW, attempt.started_at)
            elsewhere = sighting.failure_class in _OF_A_PROCESS and node != died_on
            if sighting.at >= late and _explains(sighting) and not elsewhere:
                order = list(NodeAction).index(sighting.action)
                found.append((-order, sighting.at, node, sighting))
    if not found:
        return None
    _, _, node, sighting = min(found, key=lambda each: each[:3])
    return node, sighting


def _explains(sighting: Sighting) -> bool:
    """True if such a fault ends runs: heat, a clock and what was corrected do not."""
    harmless = sighting.failure_class in {FailureClass.UNKNOWN, FailureClass.CASCADE}
    quiet = sighting.severity is Severity.INFO or sighting.action is NodeAction.PAGE
    return not (harmless or quiet)


def tell(turn: Turn, finding: NodeFinding) -> None:
    """Add a finding to incidents of runs that have just failed on the node."""
    harmless = finding.failure_class in {FailureClass.UNKNOWN, FailureClass.CASCADE}
    if harmless or finding.severity is Severity.INFO or finding.action is NodeAction.PAGE:
        return
    for run in dict.fromkeys(worker.run for worker in turn.state.workers_on(finding.node)):
        for incident in turn.state.incidents_of(run):
            recent = turn.now - incident.opened_at <= WINDOW
            unexplained = incident.kind in _SYMPTOMS and "machine" not in incident.evidence
            if recent and unexplained and incident.state is not IncidentState.RESOLVED:
                turn.change_incident(
                    incident.id,
                    evidence={**incident.evidence, "machine": finding.reason},
                    reason=f"{incident.reason}; {finding.node}: {finding.reason}",
                )
