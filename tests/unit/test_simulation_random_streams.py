"""Chance: the right statistics, always the same numbers, and one concern does not shift another."""

from __future__ import annotations

import itertools
import math
import statistics
from collections import Counter

import pytest

from orchestrator.simulation.scenario.model import (
    FailureModel,
    Population,
    Scenario,
    SimulatedRun,
    Spread,
)
from orchestrator.simulation.scenario.population import members
from orchestrator.simulation.scenario.random_streams import (
    Chance,
    draw,
    expected_failures,
    failures,
    lemons,
)
from orchestrator.simulation.scenario.training import Pace, Progress

NODES = [f"n{i}" for i in range(100)]
RUN = {"spec": {"name": "r", "command": ["python"]}}


def scenario(**fields: object) -> Scenario:
    cluster = {"nodes": 100, **fields.pop("cluster", {})}  # type: ignore[dict-item]
    return Scenario.model_validate(
        {"name": "s", "days": 100, "cluster": cluster, "runs": [RUN], **fields}
    )


def model(**fields: object) -> FailureModel:
    return FailureModel.model_validate({"name": "f", "does": "crash", **fields})


def drawn(one: FailureModel, world: Scenario, seed: int = 1) -> list[tuple[float, str]]:
    upcoming = failures(one, world, NODES, Chance(seed))
    return list(itertools.takewhile(lambda each: each[0] < world.seconds, upcoming))


def test_the_same_name_and_seed_give_the_same_numbers() -> None:
    one = model(expected=50)
    assert drawn(one, scenario()) == drawn(one, scenario())
    assert drawn(one, scenario()) != drawn(one, scenario(), seed=2)
    assert drawn(one, scenario()) != drawn(model(name="g", expected=50), scenario())


def test_one_concern_does_not_shift_another() -> None:
    alone, beside = Chance(1), Chance(1)
    beside.of("other").random()
    assert alone.of("one").random() == beside.of("one").random()


@pytest.mark.parametrize("shape", [0.7, 1.0, 2.0])
def test_as_many_failures_as_expected(shape: float) -> None:
    """Weibull renewals tend to their mean rate; with a shape below 1 there are more at first."""
    times = [at for at, _ in drawn(model(expected=20_000, shape=shape), scenario())]
    assert times == sorted(times)
    assert len(times) == pytest.approx(20_000, rel=0.05)


def test_exponential_times_between_failures() -> None:
    times = [at for at, _ in drawn(model(expected=10_000), scenario())]
    gaps = [b - a for a, b in itertools.pairwise(times)]
    mean = statistics.fmean(gaps)
    assert statistics.stdev(gaps) / mean == pytest.approx(1.0, abs=0.05)
    assert sum(gap > mean for gap in gaps) / len(gaps) == pytest.approx(math.exp(-1), abs=0.02)


@pytest.mark.parametrize(("shape", "variation"), [(0.7, 1.46), (2.0, 0.523)])
def test_weibull_times_between_failures_of_a_node(shape: float, variation: float) -> None:
    upcoming = failures(model(per_1000_node_days=1000, shape=shape), scenario(), ["n"], Chance(1))
    times = [at for at, _ in itertools.islice(upcoming, 20_000)]
    gaps = [b - a for a, b in itertools.pairwise(times)]
    assert statistics.fmean(gaps) == pytest.approx(86_400, rel=0.03)
    assert statistics.stdev(gaps) / statistics.fmean(gaps) == pytest.approx(variation, rel=0.05)


def test_the_rate_can_be_turned_up() -> None:
    twice = drawn(model(expected=2000), scenario(failure_rate=2.0))
    assert len(twice) == pytest.approx(4000, rel=0.1)
    assert drawn(model(expected=2000), scenario(failure_rate=0.0)) == []


@pytest.mark.parametrize("shape", [1.0, 0.8])
def test_lemons_fail_more_often(shape: float) -> None:
    world = scenario(cluster={"lemons": 5, "lemon_factor": 20})
    bad = lemons(world, NODES)
    counts = Counter(node for _, node in drawn(model(expected=3000, shape=shape), world))
    worst = {node for node, _ in counts.most_common(5)}
    assert worst == bad
    others = statistics.fmean(counts[node] for node in NODES if node not in bad)
    assert statistics.fmean(counts[node] for node in bad) / others == pytest.approx(20, rel=0.15)


def test_what_is_expected_counts_the_lemons() -> None:
    for lemons_ in (0, 5):
        world = scenario(cluster={"lemons": lemons_, "lemon_factor": 20})
        one = model(expected=3000)
        assert len(drawn(one, world)) == pytest.approx(expected_failures(one, world), rel=0.05)


def test_failures_at_given_times_come_then() -> None:
    assert [at for at, _ in drawn(model(at=["2h", "1h"]), scenario())] == [3600.0, 7200.0]


def test_a_spread_has_its_median_and_its_99th_percentile() -> None:
    generator = Chance(1).of("x")
    values = sorted(draw(Spread(median=10, p99=60), generator) for _ in range(20_000))
    assert values[10_000] == pytest.approx(10, rel=0.05)
    assert values[19_800] == pytest.approx(60, rel=0.1)
    assert draw(5.0, generator) == 5.0


def test_a_population_has_its_sizes_lengths_and_ends() -> None:
    population = Population.model_validate(
        {
            "name": "p",
            "count": 5000,
            "over": "1d",
            "sizes": [{"nodes": 1, "share": 3}, {"nodes": 8, "share": 1}],
            "run_time": {"median": 124, "p99": "5h8m"},
            "ends": {"complete": 0.54, "cancel": 0.06, "fail": 0.40},
            "like": RUN,
        }
    )
    runs = list(members(population, Chance(1)))
    assert len({run.spec.name for run in runs}) == 5000
    assert sum(run.spec.resources.nodes == 8 for run in runs) / 5000 == pytest.approx(
        0.25, abs=0.02
    )
    assert sum(run.breaks is not None for run in runs) / 5000 == pytest.approx(0.40, abs=0.02)
    cancelled = [run for run in runs if run.cancel_after_steps is not None]
    assert len(cancelled) / 5000 == pytest.approx(0.06, abs=0.01)
    assert statistics.median(run.steps for run in runs) == pytest.approx(124, rel=0.1)
    assert statistics.fmean(run.steps for run in runs) == pytest.approx(1260, rel=0.15)
    assert runs == list(members(population, Chance(1)))


# progress


def pace(step: float = 2.0) -> Pace:
    run = SimulatedRun.model_validate(
        {
            "spec": {
                **RUN["spec"],
                "checkpoint": {"directory": "/c", "every_steps": 10, "memory_every_steps": 5},
            },
            "step_seconds": step,
            "save_seconds": 3.0,
            "memory_save_seconds": 0.5,
        }
    )
    return Pace.of(run)


def test_steps_and_saves_take_their_time() -> None:
    assert pace().seconds(0, 4) == 8.0
    assert pace().seconds(0, 10) == 20.0 + 3.0 + 2 * 0.5
    assert pace().seconds(8, 12) == 8.0 + 3.0 + 0.5
    assert pace().blocked(0, 100) == 10 * 3.0 + 20 * 0.5


def test_how_far_training_is_agrees_with_when_steps_end() -> None:
    progress = Progress(pace(), began=100.0, start=7)
    for step in range(8, 500):
        end = progress.at_end_of(step)
        assert progress.step(end) == step
        assert progress.step(end - 1e-6) == step - 1
    assert progress.step(0.0) == 7


def test_what_is_done_of_a_step_stays_done_when_the_pace_changes() -> None:
    progress = Progress(pace(), began=0.0, start=0)
    half_way = progress.at_end_of(3) + 1.0
    slower = progress.changed(half_way, pace(4.0))
    assert slower.step(half_way) == 3
    assert slower.at_end_of(4) == pytest.approx(half_way + 2.0)
