"""Which ranks run on which worker."""

from __future__ import annotations

from orchestrator.core.model.entities import Run, Seat, Worker
from orchestrator.core.scheduling.node_table import LEVELS
from orchestrator.core.turn import Turn


def assign_ranks(turn: Turn, run: Run, ready: list[Worker]) -> tuple[Seat, ...]:
    """The ranks of each worker, as seats in the order of nodes.

    A worker keeps the ranks that it had, so that its memory checkpoints serve again. The others
    follow in the order of the topology: neighbours in rank are neighbours on the network.

    Args:
        turn: The turn.
        run: The run; its attempt before says who had which ranks.
        ready: As many workers as the attempt will have nodes.
    """
    per_node = run.spec.resources.processes_per_node
    before = turn.attempt(run.id)
    old = {seat.worker: i for i, seat in enumerate(before.seats)} if before else {}
    staying = {old[w.id]: w for w in ready if w.id in old and old[w.id] < len(ready)}
    kept = {worker.id for worker in staying.values()}
    others = iter(sorted((w for w in ready if w.id not in kept), key=lambda w: _path(turn, w)))
    places = [staying.get(i) or next(others) for i in range(len(ready))]
    return tuple(
        Seat(worker=w.id, node=w.node, ranks=tuple(range(i * per_node, (i + 1) * per_node)))
        for i, w in enumerate(places)
    )


def _path(turn: Turn, worker: Worker) -> tuple[str, ...]:
    """Where a worker's node lies, from the zone down."""
    node = turn.state.nodes.get(worker.node)
    return tuple(node.labels.get(level, "") for level in LEVELS) if node is not None else ()
