"""Seeded random streams, one per concern, so that a change of one model does not shift others."""

from __future__ import annotations

import heapq
import math
import random
from collections.abc import Iterator, Sequence

from orchestrator.simulation.scenario.model import DAY, Delay, FailureModel, Scenario

_P99 = 2.3263478740408408
"""Standard deviations from the median to the 99th percentile of a normal distribution."""


class Chance:
    """The generators of one simulation, each seeded with the scenario's seed and its own name."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._generators: dict[str, random.Random] = {}

    def of(self, concern: str) -> random.Random:
        """The generator of one concern; equal names and seeds give equal numbers."""
        if concern not in self._generators:
            self._generators[concern] = random.Random(f"{self._seed}/{concern}")
        return self._generators[concern]

    def delay(self, delay: Delay, concern: str) -> float:
        """Draw a duration in seconds from the stream of `concern`."""
        return draw(delay, self.of(concern))


def draw(delay: Delay, generator: random.Random) -> float:
    """A duration in seconds: the constant, or a lognormal draw by median and 99th percentile."""
    if isinstance(delay, float):
        return delay
    spread = math.log(delay.p99 / delay.median) / _P99
    return delay.median * math.exp(spread * generator.gauss(0.0, 1.0))


def per_node_day(model: FailureModel, scenario: Scenario) -> float:
    """Failures of this kind per node and day; 0 if the model gives times."""
    if model.expected is not None:
        rate = model.expected / scenario.cluster.nodes / scenario.days
    else:
        rate = (model.per_1000_node_days or 0.0) / 1000.0
    return rate * scenario.failure_rate


def expected_failures(model: FailureModel, scenario: Scenario) -> float:
    """Expected number on the nodes that rates refer to, lemons included."""
    if model.at:
        return float(len(model.at))
    cluster = scenario.cluster
    more = (cluster.lemon_factor - 1.0) * cluster.lemons / cluster.size
    return per_node_day(model, scenario) * cluster.nodes * scenario.days * (1.0 + more)


def lemons(scenario: Scenario, nodes: Sequence[str]) -> frozenset[str]:
    """The nodes that fail more often than others."""
    generator = Chance(scenario.seed).of("lemons")
    return frozenset(generator.sample(list(nodes), scenario.cluster.lemons))


def failures(
    model: FailureModel, scenario: Scenario, nodes: Sequence[str], chance: Chance
) -> Iterator[tuple[float, str]]:
    """Yield each failure as second since the start and node, in order, without end.

    With shape 1, the failures of all nodes together form one Poisson process and are drawn from it;
    with any other shape each node has its own renewal process (Weibull).
    """
    generator = chance.of(f"failure/{model.name}")
    if model.at:
        yield from ((at, generator.choice(nodes)) for at in sorted(model.at))
        return
    daily = per_node_day(model, scenario)
    if daily <= 0:
        return
    mean, bad = DAY / daily, lemons(scenario, nodes)
    factor = scenario.cluster.lemon_factor
    if model.shape == 1.0:
        yield from _poisson(generator, nodes, bad, (mean, factor))
    else:
        means = [mean / factor if node in bad else mean for node in nodes]
        yield from _renewals(generator, nodes, means, model.shape)


def _poisson(
    generator: random.Random,
    nodes: Sequence[str],
    bad: frozenset[str],
    mean_and_factor: tuple[float, float],
) -> Iterator[tuple[float, str]]:
    mean, factor = mean_and_factor
    worse = [node for node in nodes if node in bad]
    weight = len(nodes) + (factor - 1.0) * len(worse)
    at = 0.0
    while True:
        at += generator.expovariate(weight / mean)
        pick = generator.random() * weight
        if pick < len(nodes):
            yield at, nodes[int(pick)]
        else:
            yield at, generator.choice(worse)


def _renewals(
    generator: random.Random, nodes: Sequence[str], means: Sequence[float], shape: float
) -> Iterator[tuple[float, str]]:
    """Renewal processes: a failed node is as good as new; scaled to the given mean."""
    unit = math.gamma(1.0 + 1.0 / shape)
    upcoming = [
        (generator.weibullvariate(mean / unit, shape), place) for place, mean in enumerate(means)
    ]
    heapq.heapify(upcoming)
    while True:
        at, place = upcoming[0]
        yield at, nodes[place]
        heapq.heapreplace(
            upcoming, (at + generator.weibullvariate(means[place] / unit, shape), place)
        )
