"""The choice of victims, against an exact search and against the greedy choice that it replaced."""

from __future__ import annotations

import dataclasses
import datetime as dt
from collections import Counter

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from jobs.spec import Priority, Resources
from orchestrator.core.scheduling import (
    Demand,
    Holding,
    NodeCapacity,
    NodeTable,
    Pending,
    Quota,
    Snapshot,
    plan,
)
from orchestrator.core.scheduling.eligibility import Eligible
from orchestrator.core.scheduling.free_resources import FreeResources
from orchestrator.core.scheduling.holding_table import HoldingTable
from orchestrator.core.scheduling.preemption import NoSelection, select
from orchestrator.core.scheduling.quota import Quotas
from orchestrator.core.scheduling.reservations import Reservation, amounts
from orchestrator.core.scheduling.victim_problem import Problem, Situation
from orchestrator.core.scheduling.victim_search import ground_for
from orchestrator.core.scheduling.victims import Victims
from tests.victim_oracle import RACK, Oracle

NOW = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
MOST_UNITS = 10
"""Units up to which all subsets are tried."""


@st.composite
def situations(draw: st.DrawFn) -> tuple[Snapshot, Demand]:
    """Six nodes in two racks, runs of all kinds on them, and a run that does not fit or does."""
    names = [f"n{i}" for i in range(2 * RACK)]
    free = dict.fromkeys(names, 8)
    holdings: list[Holding] = []
    for i in range(draw(st.integers(1, 6))):
        gpus = draw(st.sampled_from([4, 8, 8]))
        fitting = [node for node, left in free.items() if left >= gpus]
        if not fitting:
            break
        nodes = tuple(draw(st.lists(st.sampled_from(fitting), unique=True, min_size=1, max_size=3)))
        for node in nodes:
            free[node] -= gpus
        leaving = draw(st.integers(0, 7)) == 0
        holdings.append(
            Holding(
                run=f"h{i}",
                need=Resources(nodes=len(nodes), gpus_per_node=gpus),
                nodes=nodes,
                queue=draw(st.sampled_from(["a", "b", "free", "default"])),
                priority=draw(st.sampled_from(list(Priority))),
                lost_gpu_seconds=float(draw(st.integers(0, 50))),
                surplus=nodes[1:] if not leaving and draw(st.booleans()) else (),
                movable=not leaving and draw(st.integers(0, 5)) > 0,
                leaving=leaving,
            )
        )
    nodes_ = draw(st.integers(1, 4))
    demand = Demand(
        run="d",
        name="d",
        need=Resources(nodes=nodes_, gpus_per_node=draw(st.sampled_from([4, 8]))),
        nodes=nodes_,
        queue=draw(st.sampled_from(["a", "a", "b", "free", "default"])),
        priority=draw(st.sampled_from(list(Priority))),
        submitted_at=NOW,
        pack=draw(st.sampled_from(["any", "rack"])),
        recovers=draw(st.integers(0, 4)) == 0,
    )
    cohort = draw(st.sampled_from(["c", "c", None]))
    limits = st.one_of(st.none(), st.sampled_from([0, 4, 8, 16])) if cohort else st.none()
    quotas = [
        Quota(
            name=name,
            gpus=draw(st.sampled_from([0, 4, 8, 16, 24, 32])),
            cohort=cohort,
            borrowing_limit=draw(limits),
            lending_limit=draw(limits),
        )
        for name in "ab"
    ]
    table = NodeTable(
        NodeCapacity(node=name, gpus=8, cpus=64, labels={"rack": str(i // RACK)})
        for i, name in enumerate(names)
    )
    snapshot = Snapshot(
        table=table,
        holdings=holdings,
        demands=[demand],
        quotas=[*quotas, Quota(name="free", cohort=cohort)],
        spares=draw(st.sampled_from([0, 0, 0, 1])),
    )
    return snapshot, demand


def situation_of(snapshot: Snapshot) -> Situation:
    """The state of a pass that has placed nobody yet."""
    free, quotas = FreeResources(snapshot.table), Quotas(snapshot.quotas)
    held = HoldingTable(snapshot.table, snapshot.holdings)
    free.place_workers(held)
    for holding in snapshot.holdings:
        quotas.charge(holding.queue, holding.gpus)
    eligible = Eligible(snapshot.table, NOW, snapshot.spares)
    eligible.reservations.actual = free
    return Situation(
        free=free,
        leaving=[holding for holding in snapshot.holdings if holding.leaving],
        quotas=quotas,
        eligible=eligible,
        victims=Victims(held, quotas, NOW),
    )


def selected(snapshot: Snapshot, demand: Demand) -> list[tuple[str, tuple[str, ...]]] | None:
    """The chosen units: run and nodes; None: no choice."""
    situation = situation_of(snapshot)
    quotas, victims = situation.quotas, situation.victims
    before = {quota.name: quotas.used(quota.name) for quota in snapshot.quotas}
    found = select(situation, demand, frozenset())
    assert before == {quota.name: quotas.used(quota.name) for quota in snapshot.quotas}
    if isinstance(found, NoSelection):
        return None
    columns = victims.columns
    chosen = []
    for unit in found.units.tolist():
        holding = victims.held[columns.holding[unit]]
        rest = tuple(node for node in holding.nodes if node not in holding.surplus)
        spare = bool(columns.spare[unit])
        nodes = (holding.surplus[columns.position[unit]],) if spare else rest
        chosen.append((holding.run, nodes))
    return chosen


@settings(max_examples=400, deadline=None)
@given(situations())
def test_victims_are_needed_and_no_dearer_than_before(given_: tuple[Snapshot, Demand]) -> None:
    """Never for nothing: it fits then, and not without any one of them.

    And never dearer than the greedy choice over the whole cluster; never cheaper than possible.
    """
    snapshot, demand = given_
    oracle = Oracle(snapshot, demand)
    if len(oracle.units) > MOST_UNITS:
        return
    chosen = selected(snapshot, demand)
    if oracle.suffices(()):  # who is leaving already suffices
        assert not chosen
        return
    exact = oracle.exact()
    if chosen is None:
        simple = demand.nodes == 1 or "reclaim" not in oracle.why
        assert exact is None or not simple, "room could have been made"
        return
    numbers = {
        (snapshot.holdings[number].run, nodes): i
        for i, (number, nodes, _) in enumerate(oracle.units)
    }
    units = [numbers[each] for each in chosen]
    assert oracle.suffices(units)
    assert oracle.allowed(units)
    stops = {oracle.units[unit][0] for unit in units if not oracle.units[unit][2]}
    for unit in units:
        number, _, surplus = oracle.units[unit]
        if surplus and number in stops:
            continue  # it leaves with its run
        rest = [other for other in units if other != unit]
        assert not oracle.suffices(rest), "one left for nothing"
    loss, greedy = oracle.loss(units), oracle.greedy()
    assert exact is not None
    assert exact <= loss
    assert greedy is None or loss <= greedy


@settings(max_examples=200, deadline=None)
@given(
    given_=situations(),
    places=st.sets(st.integers(0, 2 * RACK - 1), min_size=1),
    gpus=st.sampled_from([4, 8]),
    freed=st.sampled_from([0, 4, 8]),
)
def test_room_is_made_beside_reservations(
    given_: tuple[Snapshot, Demand], places: set[int], gpus: int, freed: int
) -> None:
    """A run for which there is room once all have left whom it may preempt gets victims.

    On nodes that are partly reserved for others, more must leave than the run itself needs.
    """
    snapshot, demand = given_
    demand = dataclasses.replace(demand, queue="default", priority=Priority.CRITICAL)
    held = [dataclasses.replace(each, priority=Priority.LOW) for each in snapshot.holdings]
    situation = situation_of(dataclasses.replace(snapshot, holdings=held))
    need = Resources(nodes=len(places), gpus_per_node=gpus, cpus_per_node=1)
    situation.eligible.reservations.reserve(
        "ahead",
        Reservation(
            places=np.array(sorted(places), dtype=np.intp),
            until=NOW.timestamp(),
            ends=np.inf,
            needs=np.tile(amounts(need), (len(places), 1)),
            freed=np.tile(np.array([freed, 8.0, 0.0]), (len(places), 1)),
        ),
    )
    options = situation.victims.options(demand, frozenset())
    possible = ground_for(Problem(situation, demand, options)) is not None
    found = select(situation, demand, frozenset())
    assert possible == (not isinstance(found, NoSelection)) or not len(options.units)


@settings(max_examples=200, deadline=None)
@given(
    own=st.lists(st.integers(0, 6), min_size=2, max_size=4),
    runs=st.lists(st.tuples(st.integers(0, 4), st.integers(1, 3), st.booleans()), max_size=12),
    wanted=st.integers(1, 6),
    priorities=st.lists(st.sampled_from(list(Priority)), min_size=13, max_size=13),
)
def test_a_queues_own_quota_always_comes_back(
    own: list[int],
    runs: list[tuple[int, int, bool]],
    wanted: int,
    priorities: list[Priority],
) -> None:
    """Whatever its cohort holds, a run within its queue's own quota has its nodes, or gets them.

    The nodes are as many as the quotas of all; queue 4 has none.
    """
    total = sum(own)
    names = [f"n{i:02}" for i in range(total)]
    quotas = [Quota(name=f"q{i}", gpus=8 * count, cohort="c") for i, count in enumerate(own)]
    quotas.append(Quota(name="q4", cohort="c"))
    holdings, used = [], Counter[str]()
    for i, (queue, nodes, elastic) in enumerate(runs):
        mine, names = names[:nodes], names[nodes:]
        if not mine:
            break
        name = f"q{queue}" if queue < len(own) else "q4"
        used[name] += len(mine)
        holdings.append(
            Holding(
                run=f"r{i}",
                need=Resources(nodes=len(mine), gpus_per_node=8),
                nodes=tuple(mine),
                queue=name,
                priority=priorities[i],
                surplus=tuple(mine[1:]) if elastic else (),
            )
        )
    wanted = min(wanted, own[0] - used["q0"])
    if wanted < 1:
        return
    demand = Demand(
        run="d",
        name="d",
        need=Resources(nodes=wanted, gpus_per_node=8),
        nodes=wanted,
        queue="q0",
        priority=priorities[-1],
        submitted_at=NOW,
    )
    table = NodeTable(NodeCapacity(node=f"n{i:02}", gpus=8, cpus=64) for i in range(total))
    snapshot = Snapshot(table=table, holdings=holdings, demands=[demand], quotas=quotas)
    outcome = plan(snapshot, NOW)
    assert "d" in outcome.placements or outcome.waits["d"].why is Pending.PREEMPTING
