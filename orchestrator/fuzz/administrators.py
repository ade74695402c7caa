"""People who look after the cluster: quotas of queues, spares, and the maintenance of nodes."""

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
"""What is asked for: a kind of event, and its fields."""


@dataclasses.dataclass(frozen=True, slots=True)
class Cluster:
    """What they look at."""

    nodes: list[str]
    queues: list[str]
    """Those that runs are submitted to."""
    now: dt.datetime


def set_quota(chance: random.Random, cluster: Cluster) -> Request:
    """A queue gets a quota, of a cohort or not, or none any more."""
    gpus = chance.choice((None, chance.randint(0, 2), chance.randint(1, len(cluster.nodes))))
    shared = gpus is not None and chance.random() < _SHARED
    limits = (None, None, chance.randint(0, 3)) if shared else (None,)
    quota = Quota(
        name=chance.choice(cluster.queues),
        gpus=gpus,
        cohort="all" if shared else None,
        borrowing_limit=chance.choice(limits),
        lending_limit=chance.choice(limits),
        weights=chance.choice(({}, {"blue": 3.0})),
    )
    return QueueChanged, {"quota": quota}


def set_spares(chance: random.Random, _cluster: Cluster) -> Request:
    """Newcomers are to leave so many nodes idle."""
    return SparesChanged, {"spares": chance.choice((0, 1, 2, 3, "auto"))}


def plan_maintenance(chance: random.Random, cluster: Cluster) -> Request:
    """Nodes are not to be used for a while: soon, or from a moment ago."""
    begins = cluster.now + dt.timedelta(seconds=chance.uniform(-2.0, 40.0))
    ends = begins + dt.timedelta(seconds=chance.uniform(3.0, 90.0))
    nodes = tuple(chance.sample(cluster.nodes, chance.choice((1, 1, 2))))
    fields = {"nodes": nodes, "begins": begins, "ends": ends, "reason": "new switch"}
    return MaintenancePlanned, fields


def cancel_maintenance(chance: random.Random, cluster: Cluster) -> Request:
    """What is planned for a node is called off."""
    return MaintenanceCancelled, {"nodes": (chance.choice(cluster.nodes),)}


_WISHES = (set_quota, set_spares, plan_maintenance, cancel_maintenance)
_WEIGHTS = (6, 3, 3, 1)
_SHARED = 0.6
"""How many of the quotas are part of a cohort."""


def wish(chance: random.Random, cluster: Cluster) -> Request:
    """One of them."""
    return chance.choices(_WISHES, _WEIGHTS)[0](chance, cluster)


def lift_limits(book: State) -> Iterator[Request]:
    """In the end nobody is kept waiting by a quota or for spares; maintenance ends by itself."""
    for queue in book.queues.values():
        if queue.gpus is not None:
            yield QueueChanged, {"quota": Quota(name=queue.name)}
    if book.fleet.spares:
        yield SparesChanged, {"spares": 0}
