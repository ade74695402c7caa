"""Explanations of runs that wait for nodes: recorded decisions, figures, and who holds the nodes.

Only recorded decisions appear as decisions: a claim, and runs that are leaving for it.
The figures are those of a scheduling pass that changes nothing. Lists of names are bounded: a queue
may have thousands of runs.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from typing import Any, TypedDict

from orchestrator.core.model import away
from orchestrator.core.model.entities import Run
from orchestrator.core.model.state import State
from orchestrator.core.model.states import NodeState, WorkerState
from orchestrator.core.placement import snapshot, wait_reasons
from orchestrator.core.policy import time_limits, usage_history
from orchestrator.core.scheduling import Pending, Plan, Wait
from orchestrator.core.scheduling.blocked import HOLD_SECONDS
from orchestrator.core.scheduling.eligibility import MAINTENANCE_LEAD_SECONDS
from orchestrator.core.scheduling.free_resources import kinds_that_fit, shape_of
from orchestrator.core.text import counted, named

MOST_NAMED = 4
"""Names of runs in one sentence at most."""
_SLIP_SECONDS = 60.0
"""A start that slips by less is not worth a sentence."""
_QUOTA = frozenset({Pending.QUOTA, Pending.BEHIND})


def told(state: State, run: Run, plan: Plan, wait: Wait, now: dt.datetime) -> dict[str, Any]:
    """The fields of an explanation of a run that waits.

    Args:
        state: The state of the core.
        run: The run.
        plan: A pass over the state that is not carried out.
        wait: The run's wait in that plan.
        now: The current time, UTC.
    """
    ahead = [state.runs[other].name for other in ahead_of(state, plan, wait, run, now)]
    facts = _facts(state, run, plan, wait, now)
    unblock = _unblock(state, run, wait, facts)
    starts_at, estimate = _estimate(state, run, plan, wait, now)
    place = None if wait.why is Pending.TOO_LARGE else len(ahead) + 1
    sentences = [*_shortage(run, wait, facts), in_line(place, ahead)]
    if wait.why is Pending.NO_CAPACITY and (users := _users(state, run)):
        sentences.append(f"Nodes that would fit are used by {some(users)}.")
    sentences += [*_away(state, run, now), *_held_idle(state, run, now), *_reservation(run, now)]
    sentences.append(f"It starts when {unblock}.")
    return {
        "underlying": wait.why,
        "place": place,
        "ahead": ahead,
        "unblock": unblock,
        "starts_at": starts_at,
        "sentences": [*sentences, *estimate],
    }


def ahead_of(state: State, plan: Plan, wait: Wait, run: Run, now: dt.datetime) -> list[str]:
    """Ids of the runs ahead of a run for which they matter, in order.

    These are runs that wait for nodes that the run could use as well, and runs that wait for the
    quota of its queue or cohort. Runs that wait for other nodes hold nobody up.
    """
    table = state.node_table(now)
    own = kinds_that_fit(table, shape_of(run.spec.resources))
    kinds = {shape_of(run.spec.resources): own}
    found = []
    for key in plan.ahead(wait.run):
        other = state.runs[key]
        if plan.waits[key].why in _QUOTA:
            competes = _share_quota(state, run.spec.queue, other.spec.queue)
        else:
            shape = shape_of(other.spec.resources)
            if shape not in kinds:
                kinds[shape] = kinds_that_fit(table, shape)
            competes = any(a and b for a, b in zip(own, kinds[shape], strict=True))
        if competes:
            found.append(key)
    return found


def _share_quota(state: State, one: str, other: str) -> bool:
    if one == other:
        return True
    a, b = state.queues.get(one), state.queues.get(other)
    return a is not None and b is not None and a.cohort is not None and a.cohort == b.cohort


def in_line(place: int | None, ahead: Sequence[str], verb: str = "is") -> str:
    """`It is number 3 in the queue, behind a, b.`: readable at place 5,000, too."""
    if place is None:
        return f"It {verb} not in the queue: it holds nobody up."
    if len(ahead) > MOST_NAMED:
        behind = f", behind {ahead[0]} and {len(ahead) - 1:,} others"
    else:
        behind = f", behind {', '.join(ahead)}" if ahead else ""
    return f"It {verb} number {place:,} in the queue{behind}."


def some(names: Sequence[str], joint: str = ", ") -> str:
    """Names as far as a person would read them: `a, b, c, d and 12 others`."""
    more = len(names) - MOST_NAMED
    listed = joint.join(names[:MOST_NAMED])
    return f"{listed} and {counted(more, 'other')}" if more > 0 else listed


def roughly(seconds: float) -> str:
    """`40 s`, `12 min`, `3 h`, `3 h 12 min`, `5 d 2 h`: as exact as an estimate deserves."""
    if seconds < 60:
        return f"{max(0.0, seconds):.0f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 24:
        return f"{hours} h {minutes} min" if minutes else f"{hours} h"
    return f"{hours // 24} d {hours % 24} h" if hours % 24 else f"{hours // 24} d"


def _shortage(run: Run, wait: Wait, facts: Facts) -> list[str]:
    """How many nodes are missing, and why."""
    need = run.spec.resources
    shape = f"{need.gpus_per_node} GPUs, {need.cpus_per_node:g} CPUs"
    more = "" if wait.missing == need.min_nodes else f" more (of {need.min_nodes})"
    count = f"{wait.missing}{more} {'node' if wait.missing == 1 else 'nodes'}"
    sentences = [f"{run.name} needs {count} with {shape} each; {wait.fitting} are free and fit."]
    if cause := wait_reasons.WORDS[wait.why].cause.format_map(facts):
        sentences.append(cause)
    return sentences


class Facts(TypedDict):
    """Values for the `{names}` in the words of a reason."""

    pack: str
    missing: str
    detail: str
    queue: str
    holders: str
    behind: str
    victims: str
    leaving: str
    maintenance: str


def _facts(state: State, run: Run, plan: Plan, wait: Wait, now: dt.datetime) -> Facts:
    leaving = _leaving(state, run)
    one = len(leaving) == 1
    if leaving:
        victims = f"{some(leaving)} {'saves and leaves its' if one else 'save and leave their'}"
        victims += " nodes to it"
    else:
        asked = sorted({state.runs[e.run].name for e in plan.evictions if e.by == run.id})
        who = some(asked) or "other runs"
        victims = f"The next scheduling pass has {who} save and leave nodes to it"
    return {
        "pack": run.spec.placement.pack,
        "missing": str(wait.missing),
        "detail": wait.detail,
        "queue": run.spec.queue,
        "holders": some(_quota_users(state, run.spec.queue), " or ") or run.spec.queue,
        "behind": state.runs[wait.behind].name if wait.behind in state.runs else "another run",
        "victims": victims,
        "leaving": f"{some(leaving) or 'other runs'} {'has' if one else 'have'}",
        "maintenance": _after_maintenance(state, run, now),
    }


def _quota_users(state: State, queue: str) -> list[str]:
    """Queues whose runs use quota that a queue could have: itself, or others of its cohort."""
    used = {other.spec.queue for other, _ in state.tenants()}
    users = sorted(other for other in used if _share_quota(state, queue, other))
    return sorted(users, key=lambda other: other != queue)


def _leaving(state: State, run: Run) -> list[str]:
    """Names of the runs that are leaving nodes which the run has a recorded claim on."""
    claim = run.claim
    if claim is None or not claim.preempting:
        return []
    found = set()
    for node in claim.nodes:
        for worker in state.workers_on(node):
            other = state.runs.get(worker.run)
            if other is not None and other is not run and snapshot.leaving(other, [worker]):
                found.add(other.name)
    return sorted(found)


def _unblock(state: State, run: Run, wait: Wait, facts: Facts) -> str:
    """The condition for a start, as a clause after `when`."""
    # Without a run ahead, the free nodes were left by one that waits as this one does.
    ours = wait.behind is None and wait.why is Pending.RESERVED
    words = "" if ours else wait_reasons.WORDS[wait.why].unblock.format_map(facts)
    users = _users(state, run)
    shrink = any(len(_own(state, r)) > r.spec.resources.min_nodes for r in _runs_on(state, run))
    how = "ends or releases nodes" if shrink else "ends"
    leave = f"{some(users, ' or ')} {how}" if users else ""
    return words or leave or wait_reasons.CAPACITY


def _after_maintenance(state: State, run: Run, now: dt.datetime) -> str:
    within = time_limits.ends_within(run, now)
    lead = MAINTENANCE_LEAD_SECONDS if within is None else within
    until = now + dt.timedelta(seconds=lead)
    nodes = [
        node.id
        for node in state.nodes.values()
        if node.state is NodeState.READY and any(w.begins < until for w in node.maintenance)
    ]
    shorter = "a `max_runtime`" if within is None else "a shorter `max_runtime`"
    return (
        f"the maintenance of {named(nodes)} is over or is called off with"
        f" `babysit nodes maintain NODE --off`, or with {shorter} that ends before it"
    )


def _estimate(
    state: State, run: Run, plan: Plan, wait: Wait, now: dt.datetime
) -> tuple[dt.datetime | None, list[str]]:
    """When it gets its nodes: by the ends of other runs, or else by the history of its queue."""
    if wait.why is Pending.PREEMPTING:
        return _grace(state, run, now)
    if wait.starts_at is not None and wait.starts_at > now:
        left = (wait.starts_at - now).total_seconds()
        sentences = [f"Its nodes are expected to be free in {roughly(left)}."]
        claim = plan.claims.get(run.id)
        promised = None if claim is None else claim.promised
        if promised and (wait.starts_at - promised).total_seconds() > _SLIP_SECONDS:
            late = roughly((wait.starts_at - promised).total_seconds())
            sentences.append(f"That is {late} later than first expected ({promised:%F %H:%M} UTC).")
        return wait.starts_at, sentences
    nodes = run.spec.resources.min_nodes
    usual = usage_history.usual_wait(state.queues.get(run.spec.queue), nodes)
    if usual is None or wait.why is Pending.TOO_LARGE:
        return None, []
    seconds, runs = usual
    sentence = f"Runs of its size waited {roughly(seconds)} here (median of {runs})."
    starts_at = run.submitted_at + dt.timedelta(seconds=seconds)
    return (starts_at if starts_at > now else None), [sentence]


def _grace(state: State, run: Run, now: dt.datetime) -> tuple[dt.datetime | None, list[str]]:
    """When preempted runs have left, or how late they are."""
    grace = time_limits.longest_grace(snapshot.preempted(state))
    since = run.claim.since if run.claim is not None and run.claim.preempting else None
    ends = (since or now) + dt.timedelta(seconds=grace)
    if now <= ends:
        return ends, [f"They have {grace:.0f} s to save and stop."]
    late = roughly((now - ends).total_seconds())
    said = f"They had {grace:.0f} s to save and stop, and are {late} late."
    return None, [said, "It takes other nodes as soon as enough are free."]


def _own(state: State, run: Run) -> list[str]:
    return [w.id for w in state.workers_of(run.id) if w.state is not WorkerState.ENDED]


def _runs_on(state: State, run: Run) -> list[Run]:
    """The runs on nodes that the run has a claim on, or else on all nodes that would fit it."""
    need = run.spec.resources
    claimed = set(run.claim.nodes) if run.claim is not None else set()
    found = {
        worker.run: state.runs[worker.run]
        for node in state.nodes.values()
        if (node.id in claimed if claimed else True)
        and node.gpus >= need.gpus_per_node
        and node.cpus >= need.cpus_per_node
        for worker in state.workers_on(node.id)
        if worker.run != run.id and worker.state is not WorkerState.ENDED
    }
    return list(found.values())


def _users(state: State, run: Run) -> list[str]:
    return sorted(other.name for other in _runs_on(state, run))


def _away(state: State, run: Run, now: dt.datetime) -> list[str]:
    """Nodes that would fit and take no work for a while."""
    need = run.spec.resources
    nodes = [
        node
        for node in state.nodes.values()
        if node.state is not NodeState.READY
        and node.gpus >= need.gpus_per_node
        and node.cpus >= need.cpus_per_node
        and away.capacity(node, now) is not None
    ]
    if not nodes:
        return []
    until = min(end for node in nodes if (end := away.expected_until(node)) is not None)
    names = named([f"{node.id} ({node.state}: {node.reason})" for node in nodes], MOST_NAMED)
    left = roughly((until - now).total_seconds())
    verb = "is" if len(nodes) == 1 else "are"
    return [f"{names} {verb} expected back; without that, the first counts as lost in {left}."]


def _held_idle(state: State, run: Run, now: dt.datetime) -> list[str]:
    """Nodes that the run holds while it waits, and for how long it may."""
    kept = snapshot.kept(state, run)
    since = run.decision.restart.failed_at if run.decision is not None else None
    if not kept or since is None:
        return []
    left = HOLD_SECONDS - (now - since).total_seconds()
    until = f"for {roughly(left)} more" if left > 0 else "until another run needs them"
    return [f"It holds {counted(len(kept), 'node')} idle, {until}."]


def _reservation(run: Run, now: dt.datetime) -> list[str]:
    """The recorded reservation, or when it was dropped."""
    claim = run.claim
    if claim is None:
        return []
    if claim.nodes and not claim.preempting:
        verb = "is" if len(claim.nodes) == 1 else "are"
        return [f"{counted(len(claim.nodes), 'node')} {verb} reserved for it."]
    if claim.lost_at is not None:
        ago = roughly((now - claim.lost_at).total_seconds())
        return [f"Its reservation of {counted(claim.lost_nodes, 'node')} was dropped {ago} ago."]
    return []
