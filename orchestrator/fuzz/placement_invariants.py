"""The invariants about who gets which node: pure, on what is stored after a turn and what it adds.

They say again, on their own, what docs/scheduling.md invariants; nothing here asks the scheduler.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
from collections import Counter
from collections.abc import Iterator, Sequence

from orchestrator.core.messages.instructions import LaunchWorker
from orchestrator.core.model.entities import Queue, Run
from orchestrator.core.model.records import Window
from orchestrator.core.model.state import State
from orchestrator.core.model.states import NodeState, WorkerState
from orchestrator.core.model.vocabulary import Timer
from orchestrator.database.port import Batch

_LEAD = dt.timedelta(hours=1)
"""A run without a time limit starts on no node this long before its maintenance."""
_LEAVING = frozenset({WorkerState.STOPPING, WorkerState.ENDED})
_MOST_LAUNCHES = 80
"""Of agents of one run: three times what any seed needs. More goes round in circles."""
_PUNCTUAL = dt.timedelta(seconds=30)
"""A maintenance that begins or ends is acted upon by then, where someone leads."""


@dataclasses.dataclass(frozen=True, slots=True)
class NewRuns:
    """Runs without an attempt, as they stand before a turn."""

    runs: frozenset[str]
    preempting: frozenset[str]
    """Runs that others were preempted for. They get the nodes that those leave, even if a node that
    was lost or freed meanwhile makes the pool of spares want them: it would be worse to have
    stopped a run for nothing."""

    @classmethod
    def among(cls, stored: State) -> NewRuns:
        """Take them from what is stored."""
        new = [run for run in stored.runs.values() if run.attempt == 0]
        claims = {run.id for run in new if run.claim is not None and run.claim.preempting}
        return cls(frozenset(run.id for run in new), frozenset(claims))


def after(stored: State, batch: Batch, new_runs: NewRuns, *, clocks: bool) -> Iterator[str]:
    """Broken rules of a turn that launches agents, once it is stored.

    Args:
        stored: Everything, with the turn.
        batch: The turn.
        new_runs: Runs that had no attempt before it.
        clocks: True if the clocks are right, so that moments can be compared.
    """
    launches = [each for each in batch.outbox if isinstance(each, LaunchWorker)]
    if not launches:
        return
    now = max(entry.at for entry in batch.journal)
    for launch in launches:
        yield from _takes_work(stored, launch)
        if clocks:
            yield from _not_in_maintenance(stored, launch, now)
    made = {launch.worker for launch in launches}
    runs = {str(launch.run) for launch in launches}
    anew = [run for run in runs if run in new_runs.runs or not _goes_on(stored, run, made)]
    queues = {stored.runs[run].spec.queue for run in anew}
    used = _used(stored)
    for name in sorted(queues):
        yield from _within_quota(stored.queues, name, used)
    if runs <= new_runs.runs - new_runs.preempting:
        yield from _leaves_spares(stored, launches)


def _takes_work(stored: State, launch: LaunchWorker) -> Iterator[str]:
    node = stored.nodes[launch.node]
    if node.state is not NodeState.READY:
        yield f"{launch.worker} is launched on {node.id}, which is {node.state}: {node.reason}"
    mine = [w for w in stored.workers_of(str(launch.run)) if w.node == node.id]
    made = stored.runs[str(launch.run)].workers_made
    if made > _MOST_LAUNCHES:
        yield f"{launch.worker} is launched: the {made}th agent of {launch.run}"
    if sum(worker.state not in _LEAVING for worker in mine) > 1:
        yield f"{launch.worker} is launched on {node.id}, where {launch.run} has one"
    wanted = sum(
        stored.runs[worker.run].spec.resources.cpus_per_node
        for worker in stored.workers_on(node.id)
        if worker.state is not WorkerState.ENDED
    )
    if wanted > node.cpus:
        yield f"{node.id} has {node.cpus:g} CPUs, and {wanted:g} are given away"


def _not_in_maintenance(stored: State, launch: LaunchWorker, now: dt.datetime) -> Iterator[str]:
    run = stored.runs[str(launch.run)]
    end = _end(run, now)
    for window in stored.nodes[launch.node].maintenance:
        if window.ends > now and window.begins < end:
            yield (
                f"{launch.worker} is launched on {launch.node} at {now:%H:%M:%S}, which is"
                f" maintained from {window.begins:%H:%M:%S} to {window.ends:%H:%M:%S}"
            )


def _end(run: Run, now: dt.datetime) -> dt.datetime:
    """Until when a run that starts now is sure to need its nodes."""
    limit = run.due(Timer.MAX_RUNTIME)
    if limit is not None:
        return limit
    longest = run.spec.max_runtime
    return now + (_LEAD if longest is None else dt.timedelta(seconds=longest))


# quotas


def _goes_on(stored: State, run: str, made: set[str]) -> bool:
    """True if a run recovers with nodes that it holds: it keeps its share, whatever its quota."""
    return any(w.state not in _LEAVING and w.id not in made for w in stored.workers_of(run))


def _used(stored: State) -> Counter[str]:
    """By queue: the agents that its runs have, or are getting; each counts as one GPU.

    A run that moves has an agent that leaves one node while another starts elsewhere: for
    that moment it counts with no more than its spec's nodes, or with the agents that stay.
    """
    used: Counter[str] = Counter()
    for run in stored.runs.values():
        there = [w for w in stored.workers_of(run.id) if w.state is not WorkerState.ENDED]
        stay = sum(w.state not in _LEAVING for w in there)
        used[run.spec.queue] += max(stay, min(len(there), run.spec.resources.max_nodes))
    return used


def _within_quota(queues: dict[str, Queue], name: str, used: Counter[str]) -> Iterator[str]:
    quota = queues.get(name)
    if quota is None or quota.gpus is None:
        return
    above = used[name] - quota.gpus
    if quota.cohort is None and above > 0:
        yield f"queue {name} gets more, and uses {used[name]} of {quota.gpus}"
    elif quota.borrowing_limit is not None and above > quota.borrowing_limit:
        yield f"queue {name} gets more, and borrows {above} of {quota.borrowing_limit}"
    elif quota.cohort is not None:
        mates = [q for q in queues.values() if q.cohort == quota.cohort and q.gpus is not None]
        borrowed = sum(max(0, used[q.name] - (q.gpus or 0)) for q in mates)
        lent = sum(_lent(q, used[q.name]) for q in mates)
        if borrowed > lent:
            yield f"queue {name} gets more, and cohort {quota.cohort} borrows {borrowed} of {lent}"


def _lent(queue: Queue, used: int) -> int:
    unused = max(0, (queue.gpus or 0) - used)
    return unused if queue.lending_limit is None else min(unused, queue.lending_limit)


# spares


def _leaves_spares(stored: State, launches: Sequence[LaunchWorker]) -> Iterator[str]:
    spares = stored.fleet.spares
    if not isinstance(spares, int) or not spares:
        return
    tenants = Counter(w.node for w in stored.workers.values() if w.state is not WorkerState.ENDED)
    ready = [node.id for node in stored.nodes.values() if node.state is NodeState.READY]
    idle = sum(node not in tenants for node in ready)
    taken = Counter(launch.node for launch in launches)
    if idle < spares and any(tenants[node] == count for node, count in taken.items()):
        yield f"new runs leave {idle} nodes idle, where {spares} are kept as spares"


# maintenance that was not acted upon


def late_maintenance(stored: State, now: dt.datetime) -> Iterator[str]:
    """Windows that began or ended a while ago, and nothing happened."""
    for node in stored.nodes.values():
        for window in node.maintenance if node.state is not NodeState.GONE else ():
            if window.ends + _PUNCTUAL < now:
                yield f"{node.id}: maintenance is not over, {_when(window)}"
            elif window.begins + _PUNCTUAL < now < window.ends and node.state is NodeState.READY:
                yield f"{node.id} takes work in its maintenance, {_when(window)}"


def _when(window: Window) -> str:
    return f"which was to last from {window.begins:%H:%M:%S} to {window.ends:%H:%M:%S}"
