"""Swaps: a run with a straggler saves, leaves the slow node, and goes on elsewhere.

A swap costs a restart, so it must pay: the time that the straggler costs over a horizon must exceed
the time of a start like the last one. It waits for the next checkpoint, so that a script that
ignores `run.should_stop` loses nothing either. It needs a node to go to; without one the straggler
is only recorded. A rank that is slow on a second node has more work than the others, and no node
helps.

Limits: a node counts as free if no worker is on it; whether the scheduler takes it is known later,
and until then the run stays where it is.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from monitors.types import Finding, FindingKind
from orchestrator.core.attempts import preemption
from orchestrator.core.checkpoints import lifecycle as checkpoint_lifecycle
from orchestrator.core.messages.gang_events import GangSaved
from orchestrator.core.model.entities import Incident, Run
from orchestrator.core.model.states import IncidentState, NodeState, Trust
from orchestrator.core.model.vocabulary import Remedy, Response
from orchestrator.core.policy import recovery
from orchestrator.core.turn import Turn

MOST_SWAPS = 3
"""Swaps of a run: after them, slowness that comes back is the work, the network or the storage."""
DEFAULT_START_SECONDS = 300.0
"""Cost of a restart whose start was not measured: an estimate of ours for a large run."""
_OWN_DUTY = "other"
"""A part in which a rank does what the others do not, such as logging."""


def refusal(turn: Turn, run: Run, finding: Finding) -> str:
    """Why a straggler is only recorded; empty: a swap would pay, and there is a node for it."""
    evidence = finding.evidence
    node = evidence.get("node", "")
    done = [
        each
        for each in _stragglers(turn, run.id)
        if each.attempt < run.attempt and each.evidence.get("node") in run.avoid
    ]
    if evidence.get("elsewhere") or any(_slow(each.evidence) & _slow(evidence) for each in done):
        return "the rank was slow on another node too, so a swap would not help"
    if len(done) >= MOST_SWAPS:
        return f"{MOST_SWAPS} nodes were swapped already"
    if evidence.get("phase") == _OWN_DUTY:
        return "the rank does more than the others between the parts of a step"
    if node not in turn.state.nodes:
        return "its node is not known"
    if run.spec.checkpoint.directory is None:
        return "the run saves no checkpoints at which it could move"
    saved, cost = saved_seconds(run, finding), swap_seconds(turn, run)
    if saved <= cost:
        horizon = run.spec.monitors.straggler.horizon
        return f"it costs {saved:.0f} s in the next {horizon:.0f} s, and a swap {cost:.0f} s"
    if next(_free(turn, run, node), None) is None:
        return "there is no spare node"
    return ""


def saved_seconds(run: Run, finding: Finding) -> float:
    """Seconds of the run that the straggler costs over the horizon."""
    return float(finding.evidence.get("share", 0.0)) * run.spec.monitors.straggler.horizon


def swap_seconds(turn: Turn, run: Run) -> float:
    """Seconds that a swap costs: the longest save so far, and a start like that of this attempt."""
    attempt = turn.state.attempts[run.id]
    start = DEFAULT_START_SECONDS
    if attempt.first_step_at is not None:
        start = (attempt.first_step_at - attempt.started_at).total_seconds()
    return max(run.longest_save, 0.0) + max(start, 0.0)


def plan(turn: Turn, run: Run, incident: Incident) -> None:
    """Have the swap happen at the next checkpoint."""
    turn.change_incident(incident.id, state=IncidentState.MITIGATING, response=Response.ACTED)
    turn.record(run.id, f"{incident.reason}; the run leaves the node after its next checkpoint")


def on_saved(turn: Turn, event: GangSaved) -> None:
    """Book saved shards; with a whole checkpoint, a planned swap begins."""
    checkpoint_lifecycle.on_saved(turn, event)
    key = f"{event.run}/{event.shards.attempt}/{event.shards.tier}/{event.shards.step}"
    saved, run = turn.state.checkpoints.get(key), turn.run(event.run)
    if saved is None or saved.trust is Trust.WRITING or saved.attempt != run.attempt:
        return
    for incident in _stragglers(turn, run.id):
        if incident.state is IncidentState.MITIGATING and incident.attempt == run.attempt:
            _swap(turn, run, incident)
            return


def _swap(turn: Turn, run: Run, incident: Incident) -> None:
    node = str(incident.evidence.get("node", ""))
    reason = f"leaves {node} for another node: {incident.reason}"
    restart = preemption.asked(turn, run, reason, remedy=Remedy.SWAP_NODE)
    restart = dataclasses.replace(restart, node=node, rank=_rank(incident), incident=incident.id)
    if node not in run.avoid:
        turn.change_run(run.id, avoid=(*run.avoid, node)[-recovery.AVOIDED :])
    preemption.ask(turn, turn.run(run.id), restart)


def _free(turn: Turn, run: Run, slow: str) -> Iterator[str]:
    """Nodes that the run could move to: its standbys, and ready nodes with nobody on them."""
    need, state = run.spec.resources, turn.state
    seated = {seat.node for seat in state.attempts[run.id].seats}
    own = {worker.node for worker in state.workers_of(run.id)}
    for node in state.nodes.values():
        if node.id == slow or node.id in run.avoid or node.id in seated:
            continue
        fits = node.gpus >= need.gpus_per_node and node.cpus >= need.cpus_per_node
        empty = node.id in own or next(iter(state.workers_on(node.id)), None) is None
        if node.state is NodeState.READY and fits and empty:
            yield node.id


def _stragglers(turn: Turn, run_id: str) -> list[Incident]:
    incidents = turn.state.incidents_of(run_id)
    return [each for each in incidents if each.kind == FindingKind.STRAGGLER]


def _slow(evidence: Mapping[str, Any]) -> set[int]:
    return set(evidence.get("slow_ranks", ()))


def _rank(incident: Incident) -> int | None:
    rank = incident.evidence.get("finding", {}).get("rank")
    return None if rank is None else int(rank)
