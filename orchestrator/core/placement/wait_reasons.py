"""Why runs wait, in words: one table for the status of a run, `explain`, dry runs and the docs.

The scheduler says :class:`Pending`; this table says what a person reads. A reason without a row
raises KeyError wherever it is first shown, and a test demands a row for each.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from orchestrator.core.scheduling import Pending


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Words:
    """One reason. Its reader fills in the `{names}`: see `orchestrator.core.views.explain`."""

    status: str
    """Clause after `waits for 2 nodes: `. It holds no figure that changes while the run waits:
    thousands of runs may wait, and each change of a status is written to the run database."""
    cause: str = ""
    """Sentence of `explain` with the figures of the moment; empty: the shortage says it all."""
    unblock: str = ""
    """Clause after `It starts when `; empty: when nodes become free (:data:`CAPACITY`)."""


CAPACITY = "nodes are added or uncordoned"
"""The event that starts a waiting run if no other run uses the nodes that it could have."""

WORDS: Mapping[Pending, Words] = {
    Pending.NO_CAPACITY: Words(status="not enough free nodes fit"),
    Pending.TOPOLOGY: Words(
        status="enough nodes are free, but not within one {pack}",
        cause="Fewer than {missing} free nodes are within one {pack}.",
    ),
    Pending.QUOTA: Words(
        status="the quota of its queue is used up or lent",
        cause="Its quota does not allow it now: {detail}.",
        unblock="runs of queue {holders} end, or `babysit queues set {queue} --gpus N` raises"
        " its quota",
    ),
    Pending.RESERVED: Words(
        status="the free nodes are reserved for a run ahead of it",
        cause="The free nodes are reserved for {behind}, which is ahead of it.",
        unblock="{behind}, which is ahead of it, has its nodes",
    ),
    Pending.SPARES: Words(
        status="the free nodes are spares for recoveries",
        cause="The free nodes are spares, which only recoveries may use.",
        unblock="nodes are added, or `babysit nodes spares N` sets a smaller number",
    ),
    Pending.MAINTENANCE: Words(
        status="maintenance of the free nodes begins before it would end",
        cause="Maintenance of the free nodes begins before it would end.",
        unblock="{maintenance}",
    ),
    Pending.PREEMPTING: Words(
        status="preempted runs save and leave their nodes to it",
        cause="{victims}.",
        unblock="{leaving} left",
    ),
    Pending.BEHIND: Words(
        status="an earlier run of its queue or cohort waits for quota",
        cause="{behind}, an earlier run of its queue or cohort, waits for quota.",
        unblock="{behind}, which is ahead of it, has its nodes",
    ),
    Pending.TOO_LARGE: Words(
        status="it needs more than the cluster or its quota has",
        cause="That is more than there is: {detail}.",
        unblock="nodes are added or uncordoned, or its quota is raised",
    ),
    Pending.HELD: Words(
        status="a hold stops all automatic action", unblock="`babysit release` ends the hold"
    ),
    Pending.BACK_OFF: Words(
        status="the pause before the next attempt is not over", unblock="the pause is over"
    ),
    Pending.WORKERS: Words(
        status="it has its nodes, and its agents are starting", unblock="its agents have joined"
    ),
}
"""Every reason, in the words that people read."""


def status(why: Pending, *, pack: str) -> str:
    """The clause that says why a run waits; `pack` is the level its gang must stay within."""
    return WORDS[why].status.format(pack=pack)


def waiting(why: Pending, missing: int, *, pack: str) -> str:
    """`waits for 2 nodes: not enough free nodes fit`: the reason of a run that waits for nodes."""
    return f"waits for {missing} {'node' if missing == 1 else 'nodes'}: {status(why, pack=pack)}"
