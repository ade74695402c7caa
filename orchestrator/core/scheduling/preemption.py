"""Preemption: which runs stop or shrink so that another one can start, at the lowest cost.

Candidates come from four rules: lower priority in the same queue or in queues without a quota
("priority"); nodes above the minimum of elastic runs of the same priority there ("surplus");
borrowed quota that its owner needs back ("reclaim"); and nodes that a run further back holds idle
while it waits ("order"). Nothing is preempted unless the demand then fits completely. The choice is
a heuristic, not the optimum (:mod:`.victim_search`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from collections.abc import Set as AbstractSet
from enum import Enum

from orchestrator.core.scheduling.free_resources import count_nodes
from orchestrator.core.scheduling.node_table import Indices
from orchestrator.core.scheduling.types import Demand, Eviction, Holding
from orchestrator.core.scheduling.victim_problem import Problem, Situation
from orchestrator.core.scheduling.victim_search import ground_for, search
from orchestrator.core.scheduling.victims import REASONS, Options, Victims

WAIT_SECONDS = 600.0
"""The longest that a run waits for others to end instead of preempting. An estimate of ours: more
would make priorities meaningless, however much the victims lose."""


@dataclasses.dataclass(frozen=True, slots=True)
class Selection:
    """The victims chosen for a demand, and the nodes that it gets.

    Attributes:
        places: The nodes that the demand gets.
        units: The units that leave; none: those that are leaving already suffice.
        options: All units that could have been taken.
    """

    places: Indices
    units: Indices
    options: Options


class NoSelection(Enum):
    """Why no victims were chosen."""

    NOT_FOUND = "not found"
    HOPELESS = "hopeless"  # it would not fit even if all left: nor would one that needs more


def select(
    situation: Situation, demand: Demand, waiting: AbstractSet[str]
) -> Selection | NoSelection:
    """The cheapest victims found for a demand.

    Args:
        situation: The state of the pass.
        demand: The run that needs nodes.
        waiting: Runs behind the demand that hold nodes while they wait for more.
    """
    eligible, coming = situation.eligible, situation.coming
    most = situation.victims.at_most(demand, waiting)
    # What a queue may take back grows when another borrows during the pass; other rights do not.
    too_few = (
        NoSelection.NOT_FOUND if situation.quotas.limited(demand.queue) else NoSelection.HOPELESS
    )
    if most + coming == 0:
        return too_few
    if not waiting and situation.victims.free_too_little_quota(demand, situation.left):
        return NoSelection.NOT_FOUND
    reachable = count_nodes(eligible.usable_after_preemption(situation.free, demand))
    if reachable + coming + most < demand.nodes:
        return too_few
    options = situation.victims.options(demand, waiting)
    problem = Problem(situation, demand, options)
    ground = ground_for(problem)
    if ground is None:
        return NoSelection.HOPELESS
    found = search(problem, ground)
    if found is None:
        return NoSelection.NOT_FOUND
    units, mask = found
    after = problem.free_after(units)
    places = eligible.choose_nodes(after, demand, problem.usable(after) & mask)
    return NoSelection.NOT_FOUND if places is None else Selection(places, units, options)


def evictions(demand: Demand, victims: Victims, selection: Selection) -> list[Eviction]:
    """One eviction per run: of some of its surplus, or of all its nodes."""
    columns, units = victims.columns, selection.units
    rows = zip(
        columns.holding[units].tolist(),
        columns.spare[units].tolist(),
        columns.position[units].tolist(),
        selection.options.why[units].tolist(),
        columns.lost[units].tolist(),
        strict=True,
    )
    by_holding: dict[int, list[tuple[bool, int, int, float]]] = {}
    for number, *row in rows:
        by_holding.setdefault(number, []).append(tuple(row))
    found = []
    for number, own in by_holding.items():
        holding = victims.held[number]
        spare, positions, why, lost = zip(*own, strict=True)
        shrinks = all(spare)
        nodes = tuple(holding.surplus[i] for i in positions) if shrinks else holding.nodes
        found.append(
            Eviction(
                run=holding.run,
                nodes=nodes,
                by=demand.run,
                why=REASONS[max(why)],
                lost_gpu_seconds=lost[0],
            )
        )
    return found


def waiting_is_cheaper(
    demand: Demand, gone: Iterable[Eviction], seconds: float, grace: float
) -> bool:
    """True if the demand should wait for ends that are known rather than have others stop.

    Args:
        demand: The run that needs nodes.
        gone: The evictions that would make room.
        seconds: Seconds until it could start without them; infinite: unknown.
        grace: Seconds that preempted runs have to save; it would wait for these in any case.
    """
    lost = sum(eviction.lost_gpu_seconds for eviction in gone)
    if lost == 0.0 or seconds > WAIT_SECONDS:
        return False
    return seconds <= grace or seconds * demand.gpus <= lost


def spared(holdings: Iterable[Holding], evictions: Iterable[Eviction]) -> list[Holding]:
    """The holdings of runs that leave nothing."""
    gone = {eviction.run for eviction in evictions}
    return [holding for holding in holdings if holding.run not in gone]


def merged(found: Iterable[Eviction]) -> list[Eviction]:
    """One eviction per run: a run that shrinks for several others leaves all nodes at once."""
    by_run: dict[str, Eviction] = {}
    for eviction in found:
        if (earlier := by_run.get(eviction.run)) is not None:
            nodes = (*earlier.nodes, *eviction.nodes)
            by_run[eviction.run] = dataclasses.replace(earlier, nodes=nodes)
        else:
            by_run[eviction.run] = eviction
    return list(by_run.values())
