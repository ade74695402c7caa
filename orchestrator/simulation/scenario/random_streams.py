"""Chance: one generator for each concern, so that changing one model does not shift the others."""

from __future__ import annotations

import heapq
import math
import random
from collections.abc import Iterator, Sequence

from orchestrator.simulation.scenario.model import DAY, Delay, FailureModel, Scenario

_P99 = 2.3263478740408408
"""Standard deviations from the median to the 99th percentile of a normal distribution."""


class Chance:
    """The generators of one simulation, each seeded from the scenario's seed and its own name."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._generators: dict[str, random.Random] = {}

    def of(self, concern: str) -> random.Random:
        """The generator of one concern. The same name and seed give the same numbers."""
        if concern not in self._generators:
            self._generators[concern] = random.Random(f"{self._seed}/{concern}")
        return self._generators[concern]

    def delay(self, delay: Delay, concern: str) -> float:
        """A duration, in seconds."""
        return draw(delay, self.of(concern))


def draw(delay: Delay, generator: random.Random) -> float:
    """A duration: itself, or lognormal with its median and 99th percentile."""
    if isinstance(delay, float):
        return delay
    spread = math.log(delay.p99 / delay.median) / _P99
    return delay.median * math.exp(spread * generator.gauss(0.0, 1.0))


def per_node_day(model: FailureModel, scenario: Scenario) -> float:
    """How often a node fails this way, per day; 0 where the times are given."""
    if model.expected is not None:
        rate = model.expected / scenario.cluster.nodes / scenario.days
    else:
        rate = (model.per_1000_node_days or 0.0) / 1000.0
    return rate * scenario.failure_rate


def expected_failures(model: FailureModel, scenario: Scenario) -> float:
    """How many there should be on the nodes that rates are relative to, lemons among them."""
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
    """When this failure meets which node: seconds since the start, in order, without end.

    With the shape 1 the failures of all nodes together are one Poisson process, which is drawn as
    such; with any other each node has renewals of its own (Weibull).
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
    """Each node as good as new after each failure; scaled so that the mean is as given."""
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
