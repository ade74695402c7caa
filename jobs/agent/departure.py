"""The end of an agent that gets SIGTERM: its node drains, its Pod is evicted, its machine stops.

The ranks save first. As a rule the control plane hears of it from the cluster and orders all agents
of the run to stop, with the grace. An agent that hears of no such order asks its own ranks; those
of other nodes follow, since `run.should_stop` is agreed between ranks. Their exits then count as a
preemption: a run whose ranks have saved and left has not succeeded. So does the exit of a rank that
handles SIGTERM, as all processes of a machine that stops get it; but not that of a loop that came
to its end.
"""

from __future__ import annotations

import asyncio

from jobs.agent.gang import Gang, handles_sigterm
from jobs.agent.spool import Spool
from jobs.clock import Clock, wait_at_most
from monitors.failures import Evidence, Failure, FailureClass

ORDER_SECONDS = 5.0
"""Patience for the control plane's order; the rest of the grace is for the save."""
TELL_SECONDS = 5.0
"""Least patience for the control plane to store the last reports: of the save, and of the end. What
is left of the grace counts, too: the leader may be on the same node, and another one takes over."""
_LOOK_SECONDS = 0.05


def preempted(rank: int) -> Failure:
    """The end of a rank that was asked to save by its agent alone, or by the same SIGTERM."""
    return Failure(
        failure_class=FailureClass.PREEMPTION,
        reason=f"rank {rank} was asked to save and leave: its agent got SIGTERM",
        signature=f"{FailureClass.PREEMPTION.value}:agent",
        source=Evidence.EXIT,
    )


async def save_first(gang: Gang, grace_seconds: float, clock: Clock) -> float:
    """Let the ranks save and leave; returns when they have, or the grace is over.

    Returns the end of the grace, in monotonic seconds.
    """
    ends = clock.monotonic() + grace_seconds
    for process in gang.ranks.values():
        if process.alive and handles_sigterm(process.pid):
            process.excuse = preempted(process.rank)
    await wait_at_most(clock, gang.dead, min(ORDER_SECONDS, grace_seconds))
    if not gang.dead.is_set() and not gang.stopping:
        gang.stopping = True
        for process in gang.ranks.values():
            process.failure = process.failure or preempted(process.rank)
        gang.request_stop()
    await wait_at_most(clock, gang.dead, max(0.0, ends - clock.monotonic()))
    return ends


async def tell(spool: Spool, answering: asyncio.Lock, ends: float, clock: Clock) -> None:
    """Wait until the control plane has stored all reports: until `ends`, at least `TELL_SECONDS`.

    `answering` is locked while a command is carried out whose answer is still to be reported.
    """
    ends = max(ends, clock.monotonic() + TELL_SECONDS)
    while spool.first_sequence != spool.next_sequence or answering.locked():
        if clock.monotonic() >= ends:
            return
        await clock.sleep(_LOOK_SECONDS)
