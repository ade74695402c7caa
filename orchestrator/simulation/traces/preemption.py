"""Searches for jobs to stop, or to move, so that a gang fits.

The searches try on the nodes themselves and restore them before they return.
"""

from __future__ import annotations

from collections.abc import Sequence

from orchestrator.simulation.traces.nodes import Grants, Nodes, best_fit
from orchestrator.simulation.traces.pool import Work


def by_preempting(
    nodes: Nodes, gpus: int, victims: Sequence[Work]
) -> tuple[Grants, list[Work]] | None:
    """Find GPUs for a gang by stopping other jobs.

    Args:
        nodes: Free GPUs.
        gpus: GPUs of the gang.
        victims: Running jobs that may be stopped, in the order of preference.

    Returns:
        The GPUs of the gang and the jobs to stop; None: stopping all of them is not enough.
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
    """Occupy a job's GPUs again if they are still free; False: they are not."""
    if not nodes.has(work.grants):
        return False
    nodes.take(work.grants)
    return True


def by_moving(
    nodes: Nodes, gpus: int, running: Sequence[Work]
) -> tuple[Grants, list[tuple[Work, Grants]]] | None:
    """Find GPUs on one node for a gang by moving jobs from that node elsewhere.

    The node with the most free GPUs is tried first, and its smallest jobs move first.

    Returns:
        The GPUs of the gang and the new GPUs of each moved job; None: no such move exists.
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
    """New GPUs of the jobs, the largest first, once the gang has its GPUs; None: not all fit."""
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
