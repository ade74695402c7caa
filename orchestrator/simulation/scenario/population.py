"""Random runs, drawn from distributions of published workloads."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from orchestrator.simulation.scenario.model import (
    Breaks,
    Broken,
    Population,
    Scenario,
    SimulatedRun,
)
from orchestrator.simulation.scenario.random_streams import Chance, draw


def everyone(scenario: Scenario) -> list[SimulatedRun]:
    """All runs of a scenario, in order of submission."""
    chance = Chance(scenario.seed)
    drawn = [run for each in scenario.populations for run in members(each, chance)]
    return sorted((*scenario.runs, *drawn), key=lambda run: (run.submit, run.spec.name))


@dataclasses.dataclass(frozen=True, slots=True)
class _End:
    """How a run ends without failures, and after which share of its steps."""

    kind: str
    share: float


def members(population: Population, chance: Chance) -> Iterator[SimulatedRun]:
    """Draw the runs of a population. Size, length, time and end use separate random streams."""
    about = f"population/{population.name}"
    sizes, times = chance.of(f"{about}/sizes"), chance.of(f"{about}/times")
    submits, ends = chance.of(f"{about}/submits"), chance.of(f"{about}/ends")
    shares = [size.share for size in population.sizes]
    kinds = population.ends.model_dump()
    width = len(str(population.count))
    for number in range(1, population.count + 1):
        [size] = sizes.choices(population.sizes, shares)
        seconds = draw(population.run_time, times)
        [kind] = ends.choices(list(kinds), list(kinds.values()))
        end = _End(kind, ends.random())
        run = _sized(population.like, f"{population.name}-{number:0{width}d}", size.nodes)
        submit = population.like.submit + submits.random() * population.over
        yield _ending(run.model_copy(update={"submit": submit}), seconds, end)


def _sized(like: SimulatedRun, name: str, nodes: int) -> SimulatedRun:
    resources = like.spec.resources.model_copy(update={"nodes": nodes})
    checkpoint = like.spec.checkpoint
    if checkpoint.directory is not None:  # two live runs must not share a directory
        own = f"{checkpoint.directory}/{name}"
        checkpoint = checkpoint.model_copy(update={"directory": own})
    changes = {"name": name, "resources": resources, "checkpoint": checkpoint}
    spec = like.spec.model_copy(update=changes)
    return like.model_copy(update={"spec": spec})


def _ending(run: SimulatedRun, seconds: float, end: _End) -> SimulatedRun:
    """The run with the steps for `seconds` of training, cut short by an early end."""
    steps = max(1, round(seconds / run.step_seconds))
    early = max(1, round(steps * end.share))
    changes: dict[str, object] = {"steps": steps}
    if end.kind == "cancel":
        changes["cancel_after_steps"] = early
    elif end.kind == "fail":
        changes["breaks"] = Breaks(does=Broken.USER_ERROR, at_step=early)
    return run.model_copy(update=changes)
