"""People: they submit runs, ask for things at bad moments, and clear up in the end."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

from jobs.events import Event
from orchestrator.core.messages.events import (
    CheckpointPinned,
    CheckpointRemovalAsked,
    CheckpointVerificationAsked,
    IncidentChanged,
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
from orchestrator.fuzz.event_loop import rest
from orchestrator.fuzz.plan import Submission

if TYPE_CHECKING:
    from orchestrator.fuzz.world import World

_ROUNDS_SECONDS = 20.0
_LIVE_SHARE = 0.9
"""Of what is asked for of a run: one that is not over."""


def _event(room: World, kind: type[Event], **fields: Any) -> Event:
    given = {"id": room.new_id("P"), "at": room.clock.now(), "actor": "operator:ann", **fields}
    return kind.model_validate(given)


def _ask(room: World, kind: type[Event], **fields: Any) -> None:
    """Ask whoever leads, and do not wait for the answer."""
    leading = [server for server in room.servers if server.leads] or room.servers
    room.story.tell(f"someone asks: {kind.__name__} {fields}")
    leading[0].ask(_event(room, kind, **fields))


async def submit(room: World, submission: Submission) -> None:
    """Submit a run, again and again until it is stored: its id makes it one."""
    await rest(room.loop, submission.at)
    fields = {"run": submission.run, "spec": submission.spec}
    while submission.run not in room.promises.book.runs:
        for server in room.servers:
            server.ask(_event(room, RunSubmitted, **fields))
        await rest(room.loop, 1.5)


def ask_for_something(room: World, chance: random.Random) -> None:
    """One request, of any kind, for anything there is; mostly of what is not over."""
    book = room.promises.book
    runs = list(book.live_runs()) if chance.random() < _LIVE_SHARE else list(book.runs.values())
    if runs:
        _ask_of(room, chance, chance.choice(runs))


def look_after_cluster(room: World, chance: random.Random) -> None:
    """A quota, spares, or maintenance."""
    queues = sorted({submission.spec.queue for submission in room.plan.submissions})
    cluster = administrators.Cluster(sorted(room.nodes), queues, room.clock.now())
    kind, fields = administrators.wish(chance, cluster)
    _ask(room, kind, **fields)


def _ask_of(room: World, chance: random.Random, run: Run) -> None:
    """One request for a run, or around it."""
    match chance.randrange(13):
        case 0:
            _ask(room, RunHeld, run=run.id)
        case 1:
            _ask(room, RunHeld, run=None, reason="a look at everything")
        case 2 | 3:
            _ask(room, RunReleased, run=chance.choice((run.id, None)))
        case 4 | 5:
            _ask(room, RestartAsked, run=run.id)
        case 6:
            to_step = chance.choice((None, 0, chance.randint(1, 30)))
            skip = chance.choice((None, (3, 9)))
            _ask(room, RollbackAsked, run=run.id, to_step=to_step, skip=skip)
        case 7:
            _ask(room, RunCancelled, run=run.id)
        case 8 | 9:
            state = chance.choice(("cordoned", "draining", "ready"))
            node = chance.choice(sorted(room.nodes))
            _ask(room, NodeChanged, node=node, state=state, reason="a look at it")
        case 10:
            _change_incident(room, chance)
        case _:
            _handle_checkpoint(room, chance, run)


def _change_incident(room: World, chance: random.Random) -> None:
    incidents = sorted(room.promises.book.incidents)
    if incidents:
        _ask(
            room,
            IncidentChanged,
            incident=chance.choice(incidents),
            acknowledge=chance.random() < 0.5,
            state=chance.choice((None, IncidentState.RESOLVED)),
            verdict=chance.choice((None, "right", "wrong")),
        )


def _handle_checkpoint(room: World, chance: random.Random, run: Run) -> None:
    book = room.promises.book
    of_run = sorted(c.id for c in book.checkpoints.values() if c.run == run.id)
    if not of_run:
        return
    kinds = (CheckpointPinned, CheckpointRemovalAsked, CheckpointVerificationAsked)
    _ask(room, chance.choice(kinds), run=run.id, checkpoint=chance.choice(of_run))


async def clear_up(room: World) -> None:
    """After the last fault: whatever waits for a person gets what it waits for."""
    while True:
        await rest(room.loop, _ROUNDS_SECONDS)
        leading = [server for server in room.servers if server.leads]
        if leading:
            _look_after(room)


def _look_after(room: World) -> None:
    book = room.promises.book
    for kind, fields in administrators.lift_limits(book):
        _ask(room, kind, **fields)
    if book.fleet.hold:
        _ask(room, RunReleased, run=None)
    for node in book.nodes.values():
        maintained = node.state is NodeState.DRAINING and node.by == MAINTENANCE
        if node.state in {NodeState.CORDONED, NodeState.DRAINING} and not maintained:
            _ask(room, NodeChanged, node=node.id, state="ready", reason="done with it")
    for run in list(book.live_runs()):
        if run.state is RunState.HELD and "none of its checkpoints can be trusted" in run.reason:
            _ask(room, RollbackAsked, run=run.id, to_step=0)
        elif run.state is RunState.HELD:
            _ask(room, RunReleased, run=run.id)
        elif any(_left_to_people(room, incident.id) for incident in book.incidents_of(run.id)):
            _ask(room, RestartAsked, run=run.id)


def _left_to_people(room: World, incident: str) -> bool:
    """Whether automation waits for a person over it, and has for long enough."""
    known = room.promises.book.incidents[incident]
    age = (room.clock.now() - known.opened_at).total_seconds()
    asks = known.state is IncidentState.OPEN and "finding" in known.evidence
    return asks and age > 3 * _ROUNDS_SECONDS
