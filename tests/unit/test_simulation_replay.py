"""Replays: tiny traces worked out by hand, and what holds for any trace."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.spec import Priority
from orchestrator.simulation.traces.nodes import Nodes, best_fit
from orchestrator.simulation.traces.policies import POLICIES, PolicyName, ProductRules
from orchestrator.simulation.traces.production_policy import ProductionRules, shape
from orchestrator.simulation.traces.replay import quantile, replay, summarise
from orchestrator.simulation.traces.trace_file import SHARED, Job, Trace


def jobs(*rows):
    """Jobs of (submission, duration, GPUs) and maybe a priority."""
    return Trace(
        "t.csv",
        tuple(
            Job(
                id=str(number),
                submit_seconds=submit,
                duration_seconds=duration,
                gpus=gpus,
                priority=priority[0] if priority else Priority.NORMAL,
            )
            for number, (submit, duration, gpus, *priority) in enumerate(rows)
        ),
    )


def run(trace, nodes, policy, preemption_seconds=0.0):
    rules = ProductRules(POLICIES[PolicyName(policy)], preemption_seconds)
    return replay(trace, {SHARED: nodes}, rules)


def ends(trace, nodes, policy, preemption_seconds=0.0):
    return [work.ended for work in run(trace, nodes, policy, preemption_seconds).works]


ONE_LARGE = jobs((0.0, 10.0, 2), (1.0, 2.0, 1), (1.0, 4.0, 1))
"""A job of the whole node, and two small ones right behind it."""


def test_fifo_by_hand():
    summary = summarise(run(ONE_LARGE, (2,), "fifo"))
    assert summary.avg_jct_seconds == pytest.approx((10 + 11 + 13) / 3)
    assert summary.avg_queue_seconds == pytest.approx((0 + 9 + 9) / 3)
    assert summary.makespan_seconds == 14
    assert summary.p99_jct_seconds == 13
    assert summary.utilisation_ratio == pytest.approx((20 + 2 + 4) / (2 * 14))
    assert (summary.jobs, summary.refused, summary.preemptions) == (3, 0, 0)


@pytest.mark.parametrize("policy", ["srtf", "srsf"])
def test_the_shortest_goes_first_even_by_force(policy):
    summary = summarise(run(ONE_LARGE, (2,), policy))
    assert summary.avg_jct_seconds == pytest.approx((14 + 2 + 4) / 3)
    assert summary.avg_queue_seconds == pytest.approx((4 + 0 + 0) / 3)
    assert summary.preemptions == 1


def test_a_preemption_costs_the_job_it_stops():
    outcome = run(ONE_LARGE, (2,), "srtf", preemption_seconds=3.0)
    assert [work.ended for work in outcome.works] == [17, 3, 5]
    assert outcome.works[0].held_gpu_seconds == 2 * (10 + 3)


def test_remaining_time_and_remaining_service_differ():
    """At 0: 5 s on 4 GPUs, or 8 s on 1 GPU of a node of 4."""
    trace = jobs((0.0, 5.0, 4), (0.0, 8.0, 1))
    assert ends(trace, (4,), "srtf") == [5, 13]
    assert ends(trace, (4,), "srsf") == [13, 8]


def test_sjf_waits_for_nobody_and_stops_nobody():
    trace = jobs((0.0, 10.0, 1), (1.0, 9.0, 2), (2.0, 5.0, 2), (3.0, 20.0, 1))
    assert ends(trace, (2,), "sjf") == [10, 37, 28, 23]
    assert ends(trace, (2,), "fifo") == [10, 19, 24, 44]


def test_priority_stops_only_what_is_less_urgent():
    trace = jobs(
        (0.0, 10.0, 1, Priority.LOW),
        (0.0, 10.0, 1, Priority.NORMAL),
        (1.0, 4.0, 1, Priority.NORMAL),
        (2.0, 4.0, 1, Priority.NORMAL),
    )
    assert ends(trace, (2,), "priority") == [18, 10, 5, 9]


def test_nobody_is_stopped_for_nothing():
    """The long job gives way to the gang of 4 at 15 s; before that it would have been in vain."""
    trace = jobs((0.0, 5.0, 3), (0.0, 100.0, 1), (1.0, 20.0, 4), (1.0, 10.0, 2))
    outcome = run(trace, (4,), "srtf")
    assert [work.ended for work in outcome.works] == [5, 120, 35, 15]
    assert [work.preemptions for work in outcome.works] == [0, 1, 0, 0]


def test_only_those_in_the_way_are_stopped():
    """The longest runs where no gang of 2 can go; it is tried first, and spared."""
    trace = jobs((0.0, 50.0, 2), (0.0, 100.0, 1), (1.0, 10.0, 2))
    outcome = run(trace, (2, 1), "srtf")
    assert [work.preemptions for work in outcome.works] == [1, 0, 0]
    assert [work.ended for work in outcome.works] == [60, 100, 11]


SCATTERED = ((0.0, 100.0, 2), (0.0, 1.0, 2), (0.0, 100.0, 2))
"""After a second, two nodes of 4 GPUs are half free each."""


def test_a_job_moves_for_a_long_one():
    outcome = run(jobs(*SCATTERED, (5.0, 1000.0, 4)), (4, 4), "srtf", preemption_seconds=60.0)
    assert [work.ended for work in outcome.works] == [160, 1, 100, 1005]
    assert [work.preemptions for work in outcome.works] == [1, 0, 0, 0]


def test_no_job_moves_for_less_than_it_costs():
    outcome = run(jobs(*SCATTERED, (80.0, 25.0, 4)), (4, 4), "srtf", preemption_seconds=60.0)
    assert [work.ended for work in outcome.works] == [100, 1, 100, 125]


def test_a_gang_fills_whole_nodes_and_the_rest_fits_best():
    nodes = Nodes((8, 8, 8, 8))
    nodes.take(((0, 1), (2, 3)))
    assert best_fit(nodes, 3) == ((2, 3),)
    assert best_fit(nodes, 16) == ((1, 8), (3, 8))
    assert best_fit(nodes, 20) == ((1, 8), (3, 8), (2, 4))
    assert best_fit(nodes, 24) is None
    with pytest.raises(ValueError, match="node 0 has 7 of 8 GPUs free"):
        nodes.take(((0, 8),))


def test_the_largest_idle_nodes_go_first():
    assert best_fit(Nodes((2, 4, 4)), 9) == ((1, 4), (2, 4), (0, 1))


def test_a_completion_makes_room_for_a_submission_of_the_same_moment():
    trace = jobs((0.0, 5.0, 1), (5.0, 0.0, 1), (5.0, 1.0, 1))
    assert ends(trace, (1,), "fifo") == [5, 5, 6]


def test_what_can_never_run_is_refused_and_counted():
    outcome = run(jobs((0.0, 1.0, 5), (0.0, 1.0, 4)), (2, 2), "fifo")
    assert [job.id for job in outcome.refused] == ["0"]
    assert summarise(outcome).refused == 1
    nothing = summarise(run(jobs((0.0, 1.0, 5)), (2, 2), "fifo"))
    assert (nothing.jobs, nothing.avg_jct_seconds, nothing.utilisation_ratio) == (0, 0, 0)


def test_rules_that_forget_a_job_are_found_out():
    class Idle(ProductRules):
        def schedule(self, pool):
            pass

    with pytest.raises(RuntimeError, match="start none"):
        replay(jobs((0.0, 1.0, 1)), {SHARED: (1,)}, Idle(POLICIES[PolicyName.FIFO]))


def test_a_quantile_is_one_of_the_values():
    assert quantile(list(range(200, 0, -1)), 0.99) == 199
    assert quantile([], 0.99) == 0


class Checked(ProductRules):
    """Looks at every pass: nothing is oversubscribed, and nothing idles that could work."""

    def schedule(self, pool):
        super().schedule(pool)
        held = [0] * len(pool.nodes.sizes)
        for work in pool.running.values():
            assert sum(gpus for _, gpus in work.grants) == work.job.gpus
            for node, gpus in work.grants:
                held[node] += gpus
        sizes = zip(held, pool.nodes.sizes, strict=True)
        assert pool.nodes.free == [size - used for used, size in sizes]
        assert all(free >= 0 for free in pool.nodes.free)
        waiting = pool.waiting()
        first = waiting[:1] if self.policy.blocking else waiting
        assert all(best_fit(pool.nodes, work.job.gpus) is None for work in first)


ROW = st.tuples(
    st.integers(0, 20).map(float),
    st.integers(0, 300).map(float),
    st.integers(1, 12),
    st.sampled_from(Priority),
)


@given(
    rows=st.lists(ROW, min_size=1, max_size=25),
    nodes=st.lists(st.sampled_from([1, 2, 4, 8]), min_size=1, max_size=6),
    policy=st.sampled_from(sorted(POLICIES)),
    cost=st.sampled_from([0.0, 1.0, 60.0]),
)
def test_any_trace_runs_to_its_end(rows, nodes, policy, cost):
    trace = jobs(*sorted(rows, key=lambda row: row[0]))
    pools = {SHARED: tuple(nodes)}
    outcome = replay(trace, pools, Checked(POLICIES[policy], cost))
    assert len(outcome.works) + len(outcome.refused) == len(rows)
    assert all(job.gpus > sum(nodes) for job in outcome.refused)
    for work in outcome.works:
        job = work.job
        assert work.ended is not None
        assert not work.grants
        held = work.held_gpu_seconds / job.gpus
        assert held == pytest.approx(job.duration_seconds + cost * work.preemptions)
        assert work.ended - job.submit_seconds == pytest.approx(held + work.waited)
        if not POLICIES[policy].preemptive:
            assert work.preemptions == 0
    again = replay(trace, pools, ProductRules(POLICIES[policy], cost))
    assert summarise(again) == summarise(outcome)
    assert [work.ended for work in again.works] == [work.ended for work in outcome.works]


# the production scheduler


def production(trace, nodes, cost=0.0):
    return replay(trace, {SHARED: nodes}, ProductionRules(cost))


def test_production_fills_the_wait_of_a_large_job():
    """Two nodes, one busy until 10: the gang of both waits; what ends by then goes ahead of it."""
    trace = jobs((0.0, 10.0, 2), (1.0, 5.0, 4), (2.0, 8.0, 2), (3.0, 9.0, 2))
    outcome = production(trace, (2, 2))
    assert [work.ended for work in outcome.works] == [10.0, 15.0, 10.0, 24.0]


def test_production_has_the_lower_priority_leave():
    trace = jobs((0.0, 100.0, 2, Priority.LOW), (5.0, 10.0, 2, Priority.HIGH))
    outcome = production(trace, (2,), cost=3.0)
    assert [work.ended for work in outcome.works] == [113.0, 15.0]
    assert [work.preemptions for work in outcome.works] == [1, 0]


@pytest.mark.parametrize(
    ("gpus", "sizes", "expected"),
    [
        (3, (8, 8), (1, 3)),
        (12, (8, 8), (2, 6)),
        (16, (8, 8), (2, 8)),
        (20, (8, 8, 8, 8), (4, 5)),
        (7, (4, 4), None),
        (17, (8, 8), None),
    ],
)
def test_a_job_is_a_gang_of_equal_workers(gpus, sizes, expected):
    found = shape(Nodes(sizes), gpus)
    assert (found and (found.min_nodes, found.gpus_per_node)) == expected


@given(
    rows=st.lists(ROW, min_size=1, max_size=20),
    nodes=st.lists(st.sampled_from([1, 2, 4, 8]), min_size=1, max_size=6),
    cost=st.sampled_from([0.0, 60.0]),
)
def test_production_brings_any_trace_to_its_end(rows, nodes, cost):
    trace = jobs(*sorted(rows, key=lambda row: row[0]))
    outcome = production(trace, tuple(nodes), cost)
    assert all(shape(Nodes(nodes), job.gpus) is None for job in outcome.refused)
    assert len(outcome.works) + len(outcome.refused) == len(rows)
    for work in outcome.works:
        held = work.held_gpu_seconds / work.job.gpus
        assert held == pytest.approx(work.job.duration_seconds + cost * work.preemptions)
    again = production(trace, tuple(nodes), cost)
    assert [work.ended for work in again.works] == [work.ended for work in outcome.works]
