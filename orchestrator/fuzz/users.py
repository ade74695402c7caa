"""Users: they submit runs, make requests at bad moments, and clear up in the end."""

from __future__ import annotations

import dataclasses
import random
from typing import Any

from jobs.events import Event
from orchestrator.core.messages.events import (
    CheckpointPinned,
    CheckpointRemovalAsked,
    CheckpointVerificationAsked,
    IncidentChanged,
    MaintenanceCancelled,
    NodeChanged,
    RestartAsked,
    RollbackAsked,
    RunCancelled,
    RunHeld,
    RunReleased,
    RunSubmitted,
)
from orchestrator.core.model.entities import Run
from orchestrator.core.model.records import MAINTENANCE
from orchestrator.core.model.states import IncidentState, NodeState, RunState
from orchestrator.fuzz import administrators
from orchestrator.fuzz.event_loop import WORLD, rest
from orchestrator.fuzz.plan import Submission
from orchestrator.fuzz.world import World

_ROUNDS_SECONDS = 20.0
_LIVE_SHARE = 0.9
"""Share of the requests that are for a run that is not over."""


def _event(world: World, kind: type[Event], **fields: Any) -> Event:
    given = {"id": world.new_id("P"), "at": world.clock.now(), "actor": "operator:ann", **fields}
    return kind.model_validate(given)


def _ask(world: World, kind: type[Event], **fields: Any) -> None:
    """Ask a server that leads, if any does, and do not wait for the answer."""
    leading = [server for server in world.servers if server.leads] or world.servers
    world.trace.add(f"a user asks: {kind.__name__} {fields}")
    leading[0].ask(_event(world, kind, **fields))


async def submit(world: World, submission: Submission) -> None:
    """Submit a run, again and again until it is stored: its id makes it one."""
    await rest(world.loop, submission.at)
    fields = {"run": submission.run, "spec": submission.spec}
    while submission.run not in world.invariants.stored.runs:
        for server in world.servers:
            server.ask(_event(world, RunSubmitted, **fields))
        await rest(world.loop, 1.5)
    world.submitted.add(submission.run)


def submit_again(world: World) -> None:
    """After the restore of a backup: submit the runs that are lost once more. They get new ids."""
    for run, submission in list(world.wanted.items()):
        if run in world.submitted and run not in world.invariants.stored.runs:
            del world.wanted[run]
            again = dataclasses.replace(submission, run=f"{run}-again", at=0.0)
            world.want(again)
            world.loop.spawn(WORLD, submit(world, again))


def ask_for_something(world: World, rng: random.Random) -> None:
    """Make one request of any kind, mostly for a run that is not over."""
    stored = world.invariants.stored
    runs = list(stored.live_runs()) if rng.random() < _LIVE_SHARE else list(stored.runs.values())
    if runs:
        _ask_of(world, rng, rng.choice(runs))


def change_cluster(world: World, rng: random.Random) -> None:
    """An administrator changes a quota, the spares, or the maintenance of nodes."""
    queues = sorted({submission.spec.queue for submission in world.plan.submissions})
    cluster = administrators.ClusterFacts(sorted(world.nodes), queues, world.clock.now())
    kind, fields = administrators.draw_request(rng, cluster)
    _ask(world, kind, **fields)


def _ask_of(world: World, rng: random.Random, run: Run) -> None:
    """Make one request for a run, or for something of it."""
    match rng.randrange(13):
        case 0:
            _ask(world, RunHeld, run=run.id)
        case 1:
            _ask(world, RunHeld, run=None, reason="a look at everything")
        case 2 | 3:
            _ask(world, RunReleased, run=rng.choice((run.id, None)))
        case 4 | 5:
            _ask(world, RestartAsked, run=run.id)
        case 6:
            to_step = rng.choice((None, 0, rng.randint(1, 30)))
            skip = rng.choice((None, (3, 9)))
            force = to_step is not None and rng.random() < 0.5
            _ask(world, RollbackAsked, run=run.id, to_step=to_step, skip=skip, force=force)
        case 7:
            _ask(world, RunCancelled, run=run.id)
        case 8 | 9:
            state = rng.choice(("cordoned", "draining", "ready"))
            node = rng.choice(sorted(world.nodes))
            _ask(world, NodeChanged, node=node, state=state, reason="a look at it")
        case 10:
            _change_incident(world, rng)
        case _:
            _handle_checkpoint(world, rng, run)


def _change_incident(world: World, rng: random.Random) -> None:
    incidents = sorted(world.invariants.stored.incidents)
    if incidents:
        _ask(
            world,
            IncidentChanged,
            incident=rng.choice(incidents),
            acknowledge=rng.random() < 0.5,
            state=rng.choice((None, IncidentState.RESOLVED)),
            verdict=rng.choice((None, "right", "wrong")),
        )


def _handle_checkpoint(world: World, rng: random.Random, run: Run) -> None:
    stored = world.invariants.stored
    of_run = sorted(c.id for c in stored.checkpoints.values() if c.run == run.id)
    if not of_run:
        return
    kinds = (CheckpointPinned, CheckpointRemovalAsked, CheckpointVerificationAsked)
    _ask(world, rng.choice(kinds), run=run.id, checkpoint=rng.choice(of_run))


async def clear_up(world: World) -> None:
    """After the last fault: runs that wait for a user get what they wait for, round by round."""
    while True:
        await rest(world.loop, _ROUNDS_SECONDS)
        leading = [server for server in world.servers if server.leads]
        if leading:
            _look_after(world)


def _look_after(world: World) -> None:
    stored = world.invariants.stored
    for kind, fields in administrators.lift_limits(stored):
        _ask(world, kind, **fields)
    if stored.fleet.hold:
        _ask(world, RunReleased, run=None)
    for node in stored.nodes.values():
        maintained = node.state is NodeState.DRAINING and node.by == MAINTENANCE
        if node.state in {NodeState.CORDONED, NodeState.DRAINING} and not maintained:
            _ask(world, NodeChanged, node=node.id, state="ready", reason="done with it")
    _end_late_maintenance(world)
    for run in list(stored.live_runs()):
        if run.state is RunState.HELD and "none of its checkpoints can be trusted" in run.reason:
            _ask(world, RollbackAsked, run=run.id, to_step=0)
        elif run.state is RunState.HELD:
            _ask(world, RunReleased, run=run.id)
        elif any(_left_to_users(world, incident.id) for incident in stored.incidents_of(run.id)):
            _ask(world, RestartAsked, run=run.id)


def _end_late_maintenance(world: World) -> None:
    """A server whose clock was set back by an hour would keep a node in maintenance that long."""
    over = administrators.maintenance_over(world.invariants.stored, world.clock.now())
    for name, ends in over:
        if any(server.leads and server.clock.now() < ends for server in world.servers):
            _ask(world, MaintenanceCancelled, nodes=(name,))


def _left_to_users(world: World, incident: str) -> bool:
    """True if automation has waited three rounds for a user's decision on the incident.

    An attempt that began after it gets its time: the incident is resolved once that one is past the
    onset, which restarts each round would put off for ever.
    """
    entity = world.invariants.stored.incidents[incident]
    if entity.attempt != world.invariants.stored.runs[entity.run].attempt:
        return False
    # By the clock of a server, which may have been set by an hour.
    age = abs((world.clock.now() - entity.opened_at).total_seconds())
    asks = entity.state is IncidentState.OPEN and "finding" in entity.evidence
    return asks and age > 3 * _ROUNDS_SECONDS
