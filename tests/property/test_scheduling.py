"""Whatever the cluster and the queue look like, a pass keeps the scheduler's promises."""

from __future__ import annotations

import dataclasses
import datetime as dt
import itertools
from collections import Counter, defaultdict
from collections.abc import Iterable

from hypothesis import given, settings
from hypothesis import strategies as st

from jobs.spec import Priority, Resources
from orchestrator.core.scheduling import (
    Claim,
    Demand,
    Holding,
    NodeCapacity,
    NodeTable,
    Pending,
    Plan,
    Quota,
    Snapshot,
    plan,
)
from orchestrator.core.scheduling.free_resources import FreeResources
from orchestrator.core.scheduling.node_table import LEVELS
from orchestrator.core.scheduling.topology import choose
from orchestrator.core.scheduling.types import PRIORITY_RANK

NOW = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
QUEUES = ("a", "b", "free")
NODES = [
    NodeCapacity(
        node=f"n{i:02}", gpus=8, cpus=64, labels={"spine": str(i // 6), "rack": str(i // 3)}
    )
    for i in range(12)
]


@st.composite
def snapshots(draw: st.DrawFn) -> Snapshot:
    """Twelve nodes in four racks, some of them busy, and up to ten runs that wait."""
    free = {node.node: 8 for node in NODES}
    holdings = [
        h for i in range(draw(st.integers(0, 6))) if (h := draw(holdings_of(f"h{i}", free)))
    ]
    demands = [draw(demands_of(f"d{i}")) for i in range(draw(st.integers(0, 8)))]
    for i in range(draw(st.integers(0, 2))):  # runs that lost a node and hold the others
        if (own := draw(holdings_of(f"r{i}", free))) is not None and not own.leaving:
            holdings.append(dataclasses.replace(own, movable=False, surplus=(), wants=0))
            demands.append(draw(more_for(own)))
    names = [f"n{i:02}" for i in range(12)]
    for i, demand in enumerate(demands):
        if not demand.keeps and draw(st.integers(0, 3)) == 0:
            nodes = draw(st.permutations(names))[: demand.nodes]
            until = draw(st.one_of(st.none(), st.integers(0, 5000)))
            claim = Claim(
                nodes=tuple(nodes),
                until=None if until is None else NOW + dt.timedelta(seconds=until),
                preempting=draw(st.booleans()),
            )
            demands[i] = dataclasses.replace(demand, claim=claim)
    cohort = draw(st.sampled_from(["c", None]))
    limits = st.one_of(st.none(), st.integers(0, 32)) if cohort else st.none()
    quotas = [
        Quota(
            name=q,
            gpus=draw(st.integers(0, 64)),
            cohort=cohort,
            borrowing_limit=draw(limits),
            lending_limit=draw(limits),
        )
        for q in QUEUES[:2]
    ]
    window = NOW + dt.timedelta(seconds=draw(st.integers(0, 6000)))
    maintained = draw(st.sets(st.integers(0, 11), max_size=4))
    return Snapshot(
        table=NodeTable(
            dataclasses.replace(node, window=window if i in maintained else None)
            for i, node in enumerate(NODES)
        ),
        holdings=holdings,
        demands=demands,
        quotas=quotas,
        spares=draw(st.integers(0, 2)),
    )


@st.composite
def holdings_of(draw: st.DrawFn, run: str, free: dict[str, int]) -> Holding | None:
    """What some run has; its GPUs are taken from those that are free."""
    gpus = draw(st.sampled_from([2, 4, 8]))
    fitting = [node for node, left in free.items() if left >= gpus]
    nodes = draw(st.lists(st.sampled_from(fitting), unique=True, max_size=4)) if fitting else []
    for node in nodes:
        free[node] -= gpus
    if not nodes:
        return None
    ends = draw(st.one_of(st.none(), st.integers(1, 5000)))
    leaving = draw(st.integers(0, 5)) == 0
    return Holding(
        run=run,
        need=Resources(nodes=len(nodes), gpus_per_node=gpus),
        nodes=tuple(nodes),
        queue=draw(st.sampled_from(QUEUES)),
        project=draw(st.sampled_from("xy")),
        priority=draw(st.sampled_from(list(Priority))),
        ends_at=None if ends is None else NOW + dt.timedelta(seconds=ends),
        lost_gpu_seconds=float(draw(st.integers(0, 100))),
        surplus=tuple(nodes[1:]) if draw(st.booleans()) else (),
        wants=0 if leaving else draw(st.integers(0, 3)),
        movable=not leaving and draw(st.booleans()),
        leaving=leaving,
    )


@st.composite
def more_for(draw: st.DrawFn, own: Holding) -> Demand:
    """A run that has lost nodes, and perhaps avoids some of those that it has."""
    avoid = tuple(draw(st.lists(st.sampled_from([*own.nodes, "n00"]), unique=True)))
    return Demand(
        run=own.run,
        name=own.run,
        need=own.need,
        nodes=draw(st.integers(0, 3)),
        queue=own.queue,
        project=own.project,
        priority=own.priority,
        submitted_at=NOW,
        pack="any" if len(_racks(own.nodes)) > 1 else draw(st.sampled_from(["any", "rack"])),
        recovers=draw(st.booleans()),
        keeps=own.nodes,
        avoid=avoid,
        unwanted=tuple(node for node in own.nodes if node in avoid),
        ends_within=draw(st.one_of(st.none(), st.floats(1, 5000))),
    )


def _racks(nodes: Iterable[str]) -> set[str]:
    labels = {node.node: node.labels["rack"] for node in NODES}
    return {labels[node] for node in nodes}


@st.composite
def demands_of(draw: st.DrawFn, run: str) -> Demand:
    nodes = draw(st.integers(1, 8))
    return Demand(
        run=run,
        name=run,
        need=Resources(nodes=nodes, gpus_per_node=draw(st.sampled_from([2, 4, 8]))),
        nodes=nodes,
        more=draw(st.integers(0, 2)),
        queue=draw(st.sampled_from(QUEUES)),
        project=draw(st.sampled_from("xy")),
        priority=draw(st.sampled_from(list(Priority))),
        submitted_at=NOW - dt.timedelta(seconds=draw(st.integers(0, 9))),
        pack=draw(st.sampled_from(["any", "rack", "spine"])),
        recovers=draw(st.booleans()),
        may_preempt=draw(st.booleans()),
        avoid=tuple(draw(st.lists(st.sampled_from(["n00", "n05"]), unique=True))),
        ends_within=draw(st.one_of(st.none(), st.floats(1, 5000))),
    )


@settings(max_examples=600, deadline=None)
@given(snapshots())
def test_a_pass_keeps_its_promises(snapshot: Snapshot) -> None:
    outcome = plan(snapshot, NOW)
    assert plan(snapshot, NOW) == outcome  # nothing but its input counts
    _everyone_is_told(snapshot, outcome)
    _all_or_nothing_within_what_there_is(snapshot, outcome)
    _nothing_stays_into_maintenance(snapshot, outcome)
    _within_the_domain(snapshot, outcome)
    _within_quota(snapshot, outcome)
    _the_pool_of_spares_is_left(snapshot, outcome)
    _nodes_are_left_for_better_ones(snapshot, outcome)
    _nobody_leaves_for_nothing(snapshot, outcome)
    _reservations_are_not_delayed(snapshot, outcome)


def _everyone_is_told(snapshot: Snapshot, outcome: Plan) -> None:
    """Placed or told why not; who misses nothing may stay where it is."""
    missing = {d.run for d in snapshot.demands if d.nodes > 0}
    assert missing <= outcome.placements.keys() | outcome.waits.keys()
    assert not outcome.placements.keys() & outcome.waits.keys()
    places = [w.place for w in outcome.waits.values() if w.why is not Pending.TOO_LARGE]
    assert places == list(range(1, len(places) + 1))


def _all_or_nothing_within_what_there_is(snapshot: Snapshot, outcome: Plan) -> None:
    """Nodes that are being left are not free yet."""
    used: Counter[str] = Counter()
    needs = {each.run: each.need for each in (*snapshot.holdings, *snapshot.demands)}
    for holding in snapshot.holdings:
        used.update(dict.fromkeys(holding.nodes, holding.need.gpus_per_node))
    for demand in snapshot.demands:
        nodes = outcome.placements.get(demand.run, ())
        asked = demand.nodes + len(outcome.leaves.get(demand.run, ()))
        assert len(nodes) == len(set(nodes)) == (asked if nodes else 0)
        assert not set(nodes) & set(demand.keeps)
    for run, nodes in (*outcome.placements.items(), *outcome.growth.items()):
        used.update(dict.fromkeys(nodes, needs[run].gpus_per_node))
    assert all(gpus <= 8 for gpus in used.values())


def _nothing_stays_into_maintenance(snapshot: Snapshot, outcome: Plan) -> None:
    table = snapshot.table
    for demand in snapshot.demands:
        for node in outcome.placements.get(demand.run, ()):
            stays = 3600.0 if demand.ends_within is None else demand.ends_within
            assert NOW.timestamp() + stays <= table.window[table.index[node]]


def _within_the_domain(snapshot: Snapshot, outcome: Plan) -> None:
    labels = {node.node: node.labels for node in NODES}
    for demand in snapshot.demands:
        if demand.pack != "any" and demand.run in outcome.placements:
            left = outcome.leaves.get(demand.run, ())
            stays = [node for node in demand.keeps if node not in left]
            nodes = (*outcome.placements[demand.run], *stays)
            assert len({labels[node][demand.pack] for node in nodes}) <= 1


def _within_quota(snapshot: Snapshot, outcome: Plan) -> None:
    """What was placed is within the quotas of its cohort, unless those were exceeded already.

    A run that recovers gets what it had.
    """
    before: Counter[str] = Counter()
    for holding in snapshot.holdings:
        before[holding.queue] += holding.gpus
    after, exempt = before.copy(), set()
    for demand in snapshot.demands:
        if demand.run in outcome.placements:
            after[demand.queue] += demand.gpus
            if demand.recovers and demand.keeps:
                exempt.add(demand.queue)
    for holding in snapshot.holdings:
        after[holding.queue] += len(outcome.growth.get(holding.run, ())) * accounted(holding)
    quotas = {quota.name: quota for quota in snapshot.quotas}
    grown = [q for q in quotas if after[q] > before[q] and q not in exempt]
    if snapshot.quotas[0].cohort is None:
        assert all(after[q] <= (quotas[q].gpus or 0) for q in grown)
    elif grown and not exempt:
        assert sum(after[q] for q in quotas) <= sum(q.gpus or 0 for q in snapshot.quotas)
        for q in grown:
            borrowed = max(0, after[q] - (quotas[q].gpus or 0))
            (other,) = quotas.keys() - {q}
            most = [quotas[q].borrowing_limit, quotas[other].lending_limit]
            assert borrowed <= min(limit for limit in (*most, 999) if limit is not None)


def accounted(holding: Holding) -> int:
    return max(1, holding.need.gpus_per_node)


def _the_pool_of_spares_is_left(snapshot: Snapshot, outcome: Plan) -> None:
    """By newcomers and by growth. Recoveries, and runs for which others left, may take of it.

    A newcomer whose gang moves leaves nodes to the pool for those that it takes, a moment later.
    """
    if any(d.run in outcome.leaves and not d.recovers for d in snapshot.demands):
        return
    taken = {node for holding in snapshot.holdings for node in holding.nodes}
    demands = {demand.run: demand for demand in snapshot.demands}
    for run, nodes in (*outcome.placements.items(), *outcome.growth.items()):  # in their order
        demand = demands.get(run) if run in outcome.placements else None
        claim = demand.claim if demand is not None else None
        expected = claim is not None and claim.preempting
        new, taken = {*nodes} - taken, taken | {*nodes}
        if new and not expected and not (demand is not None and demand.recovers):
            assert len(NODES) - len(taken) >= snapshot.spares


def _nodes_are_left_for_better_ones(snapshot: Snapshot, outcome: Plan) -> None:
    demands = {demand.run: demand for demand in snapshot.demands}
    for run, left in outcome.leaves.items():
        demand = demands[run]
        assert set(left) <= set(demand.keeps)
        assert not set(outcome.placements[run]) & set(demand.avoid)
        moved = set(left) == set(demand.keeps) or demand.pack != "any"
        assert moved or set(left) <= set(demand.unwanted)


def _nobody_leaves_for_nothing(snapshot: Snapshot, outcome: Plan) -> None:
    """Each eviction is by right and helps; once all have left, the run fits on its claim."""
    holdings = {holding.run: holding for holding in snapshot.holdings}
    demands = {demand.run: demand for demand in snapshot.demands}
    limited = {quota.name for quota in snapshot.quotas}
    free = FreeResources(snapshot.table)
    gone = {eviction.run: eviction.nodes for eviction in outcome.evictions}
    for holding in snapshot.holdings:
        if not holding.leaving:
            stays = [node for node in holding.nodes if node not in gone.get(holding.run, ())]
            free.take(snapshot.table.places(stays), holding.need)
    for by, group in itertools.groupby(outcome.evictions, key=lambda e: e.by):
        demand, claim = demands[by], outcome.claims[by]
        assert claim.preempting
        assert len(claim.nodes) == demand.nodes
        assert free.fits(demand.need)[snapshot.table.places(claim.nodes)].all()
        for eviction in group:
            victim = holdings[eviction.run]
            assert {*eviction.nodes} == {*victim.nodes} or {*eviction.nodes} <= {*victim.surplus}
            if snapshot.spares == 0 and demand.queue not in limited:
                assert set(eviction.nodes) & set(claim.nodes)
            if eviction.why == "order":
                assert eviction.run in outcome.waits
                continue
            assert victim.movable
            assert demand.may_preempt
            if eviction.why == "reclaim":
                assert victim.queue != demand.queue
            elif eviction.why == "surplus":
                assert victim.priority == demand.priority
                assert {*eviction.nodes} <= {*victim.surplus}
            else:
                assert PRIORITY_RANK[victim.priority] > PRIORITY_RANK[demand.priority]
                assert victim.queue == demand.queue or victim.queue not in limited
    runs = [eviction.run for eviction in outcome.evictions]
    assert len(runs) == len(set(runs))


def _reservations_are_not_delayed(snapshot: Snapshot, outcome: Plan) -> None:
    """No run behind takes what is reserved; with one kind of nodes, one run gets a new claim.

    A run on its nodes ends before it starts (within an hour, if nobody knows when), or leaves room.
    """
    demands = {demand.run: demand for demand in snapshot.demands}
    claims = {r: c for r, c in outcome.claims.items() if c.nodes and not c.preempting}
    assert sum(demands[run].claim is None for run in claims) <= 1
    for run, claim in claims.items():
        head, until = demands[run], claim.until or NOW + dt.timedelta(hours=1)
        for other, nodes in outcome.placements.items():
            demand = demands[other]
            expected = demand.claim is not None and demand.claim.preempting
            if not expected and _rank(demand) > _rank(head) and _outlasts(demand, until):
                for node in {*nodes} & {*claim.nodes} - {*head.keeps}:
                    assert _used_at(snapshot, outcome, node, claim) + head.need.gpus_per_node <= 8


def _rank(demand: Demand) -> tuple[int, bool]:
    return PRIORITY_RANK[demand.priority], not demand.recovers


def _outlasts(demand: Demand, until: dt.datetime) -> bool:
    within = demand.ends_within
    return within is None or NOW + dt.timedelta(seconds=within) > until


def _used_at(snapshot: Snapshot, outcome: Plan, node: str, claim: Claim) -> int:
    """GPUs of a node in use when a claim begins; those with an unknown end if that is known."""
    until = claim.until or NOW + dt.timedelta(hours=1)
    stays = sum(
        holding.need.gpus_per_node
        for holding in snapshot.holdings
        if node in holding.nodes and not holding.leaving
        if (claim.until is not None if holding.ends_at is None else holding.ends_at > until)
    )
    return stays + sum(
        demand.need.gpus_per_node
        for demand in snapshot.demands
        if node in outcome.placements.get(demand.run, ()) and _outlasts(demand, until)
    )


@settings(max_examples=200, deadline=None)
@given(
    sizes=st.lists(st.integers(0, 4), min_size=4, max_size=6),
    count=st.integers(1, 10),
)
def test_a_gang_spans_as_few_racks_as_an_exact_search_finds(sizes: list[int], count: int) -> None:
    racks = [rack for rack, size in enumerate(sizes) for _ in range(size)]
    table = NodeTable(
        NodeCapacity(node=f"n{i:02}", labels={"rack": str(r)}) for i, r in enumerate(racks)
    )
    free = FreeResources(table)
    fits = free.fits(Resources(nodes=count))
    places = choose(table, fits, count, "any", free.tightest_first())
    if count > len(racks):
        assert places is None
        return
    assert places is not None
    assert len(set(places.tolist())) == count
    used = {racks[i] for i in places.tolist()}
    fewest = next(
        k
        for k in range(1, len(sizes) + 1)
        if any(
            sum(sizes[r] for r in some) >= count
            for some in itertools.combinations(range(len(sizes)), k)
        )
    )
    assert len(used) == fewest
    if fewest == 1:  # best fit: no smaller rack would have done
        (rack,) = used
        assert sizes[rack] == min(size for size in sizes if size >= count)


def test_domains_nest() -> None:
    """Rack 0 of one spine is not rack 0 of another."""
    table = NodeTable(
        NodeCapacity(node=f"n{i}", labels={"spine": str(i), "rack": "0"}) for i in range(2)
    )
    by_level = defaultdict(set)
    for level in LEVELS:
        by_level[level] = set(table.domains[level].tolist())
    assert {level: len(domains) for level, domains in by_level.items()} == {
        "zone": 1,
        "spine": 2,
        "rack": 2,
        "nvlink": 2,
    }
