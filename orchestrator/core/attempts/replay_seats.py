"""Seats for the steps of a spike that are computed again: each rank on another node than before.

The problem: a rollback without skipping computes the steps of a spike again, which tells data from
a machine. On the same nodes, a machine that makes the same mistake twice looks like data.

The design: before the first replay of a spike, the ranks change places among the workers of the
run, in the reverse order of seats, so that neighbours stay neighbours on the network. The incident
keeps where each rank was, and where it is now, for the verdict.

Limits: nobody waits, no agent is started or ended, and no run is preempted: a run of one node stays
where it is, also beside idle nodes. That costs no steps, since a rollback for an anomaly loads from
the directory in any case; memory checkpoints from before it serve nobody any more. A script that
resumes by itself may save to disks of its nodes: its ranks stay. So do those of another engine.
"""

from __future__ import annotations

from collections.abc import Sequence

from monitors.loss_replay import SPIKES
from orchestrator.core.model.decisions import Rollback
from orchestrator.core.model.entities import Attempt, Incident, Run, Seat
from orchestrator.core.turn import Turn

PLACES = "places"
"""Key in the evidence of a spike: where its steps are computed again."""
_NAMED_SEATS = 64
"""Seats up to which the evidence has the nodes of each."""


def replayed_spike(turn: Turn, run: Run) -> Incident | None:
    """The incident whose steps the next attempt computes again with the same batches, if any."""
    decision = run.decision
    if not isinstance(decision, Rollback) or decision.skip is not None:
        return None
    incident = turn.state.incidents.get(decision.restart.incident or "")
    return incident if incident is not None and incident.kind in SPIKES else None


def seats_for_replay(turn: Turn, run: Run, seats: tuple[Seat, ...]) -> tuple[Seat, ...]:
    """The seats of the next attempt: others if it replays a spike with checkpoints of babysit.

    The incident of the spike gets the places of all ranks, also of those that stay.
    """
    incident, before = replayed_spike(turn, run), turn.attempt(run.id)
    if incident is None or before is None:
        return seats
    others = exchanged(seats) if _may_exchange(run, before, seats) else seats
    places = compared(before.seats, others)
    turn.change_incident(incident.id, evidence={**incident.evidence, PLACES: places})
    return others


def exchanged(seats: tuple[Seat, ...]) -> tuple[Seat, ...]:
    """These workers in the reverse order; a worker in the middle changes with its neighbour."""
    workers = [(seat.worker, seat.node) for seat in reversed(seats)]
    middle = len(seats) // 2
    if len(seats) % 2 and middle:
        workers[middle], workers[middle + 1] = workers[middle + 1], workers[middle]
    return tuple(
        Seat(worker=worker, node=node, ranks=seat.ranks)
        for seat, (worker, node) in zip(seats, workers, strict=True)
    )


def _may_exchange(run: Run, before: Attempt, seats: tuple[Seat, ...]) -> bool:
    """True if other seats compute the same steps, from checkpoints that all nodes can read."""
    ours = run.instrumented and not run.engine and run.spec.resume is None
    return ours and len(seats) == len(before.seats)


def compared(before: Sequence[Seat], now: Sequence[Seat]) -> dict[str, object]:
    """Where ranks were and are: `ranks` and `moved` as numbers, `seats` of a small gang."""
    then = {rank: seat.node for seat in before for rank in seat.ranks}
    moved = sum(then.get(rank) != seat.node for seat in now for rank in seat.ranks)
    places: dict[str, object] = {"ranks": sum(len(seat.ranks) for seat in now), "moved": moved}
    if len(now) <= _NAMED_SEATS:
        places["seats"] = [
            {"ranks": list(seat.ranks), "then": then.get(seat.ranks[0], ""), "now": seat.node}
            for seat in now
            if seat.ranks
        ]
    return places
