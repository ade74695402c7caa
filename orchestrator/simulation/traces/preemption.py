"""Room for a gang that does not fit: whom to stop, or whom to move. Trials; nothing is changed."""

from __future__ import annotations

from collections.abc import Sequence

from orchestrator.simulation.traces.nodes import Grants, Nodes, best_fit
from orchestrator.simulation.traces.pool import Work


def by_preempting(
    nodes: Nodes, gpus: int, victims: Sequence[Work]
) -> tuple[Grants, list[Work]] | None:
    """Where a gang goes when others are stopped.

    Args:
        nodes: What is free.
        gpus: What the gang needs.
        victims: Running jobs that may be stopped, the first to go first.

    Returns:
        Its place and whom to stop for it, or None when stopping all of them is not enough.
    """
    if nodes.free_gpus + sum(victim.job.gpus for victim in victims) < gpus:
        return None
    tried: list[Work] = []
    grants = best_fit(nodes, gpus)
    for victim in victims:
        if grants is not None:
            break
        nodes.give(victim.grants)
        tried.append(victim)
        grants = best_fit(nodes, gpus)
    if grants is None:
        in_the_way = tried
    else:
        nodes.take(grants)
        in_the_way = [victim for victim in reversed(tried) if not _keeps(nodes, victim)]
        nodes.give(grants)
    for victim in in_the_way:
        nodes.take(victim.grants)
    return None if grants is None else (grants, in_the_way)


def _keeps(nodes: Nodes, work: Work) -> bool:
    """Take a job's GPUs again, if they are still free; whether they were."""
    if not nodes.has(work.grants):
        return False
    nodes.take(work.grants)
    return True


def by_moving(
    nodes: Nodes, gpus: int, running: Sequence[Work]
) -> tuple[Grants, list[tuple[Work, Grants]]] | None:
    """Where a gang of one node goes when jobs there go elsewhere.

    The node with the most free GPUs is tried first, and its smallest jobs leave it first.

    Returns:
        Its place, with who moves where, or None when nothing of the kind is found.
    """
    if not gpus <= min(nodes.largest, nodes.free_gpus):
        return None
    on: dict[int, list[Work]] = {}
    for work in running:
        if len(work.grants) == 1:
            on.setdefault(work.grants[0][0], []).append(work)
    for node in sorted(on, key=lambda n: (-nodes.free[n], n)):
        short = gpus - nodes.free[node]
        leaving: list[Work] = []
        for work in sorted(on[node], key=lambda work: (work.job.gpus, work.index)):
            if short <= 0:
                break
            leaving.append(work)
            short -= work.job.gpus
        grants = ((node, gpus),)
        if short <= 0 and (moves := _moves(nodes, grants, leaving)) is not None:
            return grants, moves
    return None


def _moves(
    nodes: Nodes, grants: Grants, leaving: Sequence[Work]
) -> list[tuple[Work, Grants]] | None:
    """Where these jobs go, the largest first, once others have their place; None: not all fit."""
    for work in leaving:
        nodes.give(work.grants)
    nodes.take(grants)
    moves: list[tuple[Work, Grants]] = []
    for work in sorted(leaving, key=lambda work: (-work.job.gpus, work.index)):
        to = best_fit(nodes, work.job.gpus)
        if to is None:
            break
        nodes.take(to)
        moves.append((work, to))
    for _, to in moves:
        nodes.give(to)
    nodes.give(grants)
    for work in leaving:
        nodes.take(work.grants)
    return moves if len(moves) == len(leaving) else None
