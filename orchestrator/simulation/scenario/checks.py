"""Consistency checks of a scenario that the types of its fields cannot express."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pydantic import ValidationError

from jobs.schema_words import shown
from jobs.spec import RunSpec
from jobs.yaml_file import FieldPath, Problem, Source
from orchestrator.core.messages.events import EVENT
from orchestrator.simulation.scenario.model import MOST_FAILURES, Cluster, Scenario
from orchestrator.simulation.scenario.random_streams import expected_failures

_EVENT_KINDS: dict[str, Any] = EVENT.json_schema()["discriminator"]["mapping"]
Found = tuple[FieldPath, str]
"""The path of a field, and the message about it."""


def problems(scenario: Scenario, source: Source) -> list[Problem]:
    """All problems with their positions: runs that cannot start, times after the end, and so on."""
    found = [*_of_cluster(scenario), *_of_runs(scenario), *_of_times(scenario)]
    found += [*_of_failures(scenario), *_of_events(scenario)]
    located = [source.problem(path, message) for path, message in found]
    return sorted(located, key=lambda problem: (problem.line, problem.column))


def _of_cluster(scenario: Scenario) -> Iterator[Found]:
    cluster = scenario.cluster
    if cluster.lemons > cluster.size:
        yield ("cluster", "lemons"), f"expected at most {_all(cluster)}, got {cluster.lemons}"


def _all(cluster: Cluster) -> str:
    return f"{cluster.size} (cluster.nodes and cluster.spares)"


def _of_runs(scenario: Scenario) -> Iterator[Found]:
    """Problems of runs that are larger than the empty cluster."""
    for place, run in enumerate(scenario.runs):
        where: FieldPath = ("runs", place, "spec", "resources")
        yield from _too_large(scenario.cluster, run.spec, where)
        if run.spec.resources.min_nodes > scenario.cluster.size:
            yield (*where, "nodes"), _at_most(_all(scenario.cluster), run.spec.resources.min_nodes)
    for place, each in enumerate(scenario.populations):
        where = ("populations", place, "like", "spec", "resources")
        yield from _too_large(scenario.cluster, each.like.spec, where)
        for number, size in enumerate(each.sizes):
            if size.nodes > scenario.cluster.size:
                path = ("populations", place, "sizes", number, "nodes")
                yield path, _at_most(_all(scenario.cluster), size.nodes)


def _too_large(cluster: Cluster, spec: RunSpec, where: FieldPath) -> Iterator[Found]:
    for field in ("gpus_per_node", "cpus_per_node"):
        available, wanted = getattr(cluster, field), getattr(spec.resources, field)
        if wanted > available:
            yield (*where, field), _at_most(f"{available:g} (cluster.{field})", wanted)


def _at_most(most: str, got: float) -> str:
    return f"expected at most {most}, got {got:g}: it could never start"


def _of_times(scenario: Scenario) -> Iterator[Found]:
    """Problems of times after the end of the scenario."""
    times: list[tuple[FieldPath, float]] = [
        (("runs", place, "submit"), run.submit) for place, run in enumerate(scenario.runs)
    ]
    times += [(("events", place, "at"), event.at) for place, event in enumerate(scenario.events)]
    times += [
        (("failures", place, "at", number), at)
        for place, model in enumerate(scenario.failures)
        for number, at in enumerate(model.at)
    ]
    for path, at in times:
        if at > scenario.seconds:
            end = f"the end after {scenario.seconds:,.0f} s ({scenario.days:g} days)"
            yield path, f"expected a time before {end}, got {at:,.0f} s"


def _of_failures(scenario: Scenario) -> Iterator[Found]:
    for place, model in enumerate(scenario.failures):
        count = expected_failures(model, scenario)
        if count > MOST_FAILURES:
            message = f"{count:,.0f} failures are expected; at most {MOST_FAILURES:,} are simulated"
            yield ("failures", place), message


def _of_events(scenario: Scenario) -> Iterator[Found]:
    """Problems of events that the core would reject."""
    for place, event in enumerate(scenario.events):
        if event.kind not in _EVENT_KINDS:
            known = ", ".join(sorted(_EVENT_KINDS))
            message = f"expected one of {known}, got {shown(event.kind)}"
            yield ("events", place, "kind"), message
            continue
        try:
            EVENT.validate_python(event.of_the_core("1", scenario.begin))
        except ValidationError as error:
            for item in error.errors(include_url=False):
                path = tuple(key for key in item["loc"] if key != event.kind)
                yield ("events", place, *path), item["msg"].lower()
