"""Nodes that take no work for a while, as the scheduler sees them: away, not lost.

A node that drains, reboots, is cordoned or has left the cluster is usually back within minutes.
What was promised on it (claims, gangs of the whole cluster) must survive that. Pure.
"""

from __future__ import annotations

import dataclasses
import datetime as dt

from orchestrator.core.model.entities import Node
from orchestrator.core.model.records import MAINTENANCE
from orchestrator.core.model.states import NodeState
from orchestrator.core.scheduling.node_table import NodeCapacity

AWAY_SECONDS = 3600.0
"""Seconds for which a node that takes no work is expected back.

After a maintenance window they begin at its end. An estimate of ours: a reboot with tests of the
hardware takes well under an hour, a repair takes days.
"""


def capacity(node: Node | None, now: dt.datetime) -> NodeCapacity | None:
    """A node as the scheduler sees it; None: it takes no work and is not expected back."""
    if node is None or node.state is NodeState.READY:
        return None if node is None else node.capacity
    until = expected_until(node)
    if until is None or until <= now:
        return None
    after = [window for window in node.maintenance if window.begins > now]
    return dataclasses.replace(
        node.capacity,
        away=True,
        returns_at=_maintained_until(node),
        counts_until=until,
        window=after[0].begins if after else None,
    )


def expected_until(node: Node) -> dt.datetime | None:
    """When a node that takes no work stops being expected back; None: it never took work."""
    if node.left_at is None:
        return None
    since = max(node.left_at, _maintained_until(node) or node.left_at)
    return since + dt.timedelta(seconds=AWAY_SECONDS)


def _maintained_until(node: Node) -> dt.datetime | None:
    """The end of the maintenance for which it is drained; None: it is not."""
    if node.by != MAINTENANCE or node.left_at is None:
        return None
    return node.maintenance[0].ends if node.maintenance else None
