"""Administrators: they set quotas of queues and spares, and plan the maintenance of nodes."""

from __future__ import annotations

import dataclasses
import datetime as dt
import random
from collections.abc import Iterator
from typing import Any

from jobs.events import Event
from orchestrator.core.messages.events import (
    MaintenanceCancelled,
    MaintenancePlanned,
    QueueChanged,
    SparesChanged,
)
from orchestrator.core.model.state import State
from orchestrator.core.scheduling import Quota

Request = tuple[type[Event], dict[str, Any]]
"""A kind of event, and its fields."""


@dataclasses.dataclass(frozen=True, slots=True)
class ClusterFacts:
    """The names that a request can use."""

    nodes: list[str]
    queues: list[str]
    """Queues that runs are submitted to."""
    now: dt.datetime


def set_quota(rng: random.Random, cluster: ClusterFacts) -> Request:
    """A queue gets a quota, of a cohort or not, or none any more."""
    gpus = rng.choice((None, rng.randint(0, 2), rng.randint(1, len(cluster.nodes))))
    shared = gpus is not None and rng.random() < _SHARED
    limits = (None, None, rng.randint(0, 3)) if shared else (None,)
    quota = Quota(
        name=rng.choice(cluster.queues),
        gpus=gpus,
        cohort="all" if shared else None,
        borrowing_limit=rng.choice(limits),
        lending_limit=rng.choice(limits),
        weights=rng.choice(({}, {"blue": 3.0})),
    )
    return QueueChanged, {"quota": quota}


def set_spares(rng: random.Random, _cluster: ClusterFacts) -> Request:
    """A number of nodes is to stay idle, for recoveries; new runs must leave them."""
    return SparesChanged, {"spares": rng.choice((0, 1, 2, 3, "auto"))}


def plan_maintenance(rng: random.Random, cluster: ClusterFacts) -> Request:
    """Nodes are not to be used for a while: soon, or from a moment ago."""
    begins = cluster.now + dt.timedelta(seconds=rng.uniform(-2.0, 40.0))
    ends = begins + dt.timedelta(seconds=rng.uniform(3.0, 90.0))
    nodes = tuple(rng.sample(cluster.nodes, rng.choice((1, 1, 2))))
    fields = {"nodes": nodes, "begins": begins, "ends": ends, "reason": "new switch"}
    return MaintenancePlanned, fields


def cancel_maintenance(rng: random.Random, cluster: ClusterFacts) -> Request:
    """The maintenance of a node is called off."""
    return MaintenanceCancelled, {"nodes": (rng.choice(cluster.nodes),)}


_REQUESTS = (set_quota, set_spares, plan_maintenance, cancel_maintenance)
_WEIGHTS = (6, 3, 3, 1)
_SHARED = 0.6
"""Share of the quotas that are part of a cohort."""


def draw_request(rng: random.Random, cluster: ClusterFacts) -> Request:
    """One request of the kinds above."""
    return rng.choices(_REQUESTS, _WEIGHTS)[0](rng, cluster)


def lift_limits(stored: State) -> Iterator[Request]:
    """Requests after which no quota or spare keeps a run waiting; maintenance ends by itself."""
    for queue in stored.queues.values():
        if queue.gpus is not None:
            yield QueueChanged, {"quota": Quota(name=queue.name)}
    if stored.fleet.spares:
        yield SparesChanged, {"spares": 0}


def maintenance_over(stored: State, now: dt.datetime) -> Iterator[tuple[str, dt.datetime]]:
    """Nodes whose maintenance is over by a true clock, and when it ended."""
    for node in stored.nodes.values():
        for window in node.maintenance[:1]:
            if window.ends < now:
                yield node.id, window.ends
