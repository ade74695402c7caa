"""The core and an agent that knows more than the database."""

from __future__ import annotations

import copy
import dataclasses
import datetime as dt

import pytest

from jobs.commands import StartAttempt, StopAttempt
from jobs.events import AttemptStopped
from orchestrator.core.attempts.lifecycle import FENCE_SECONDS
from orchestrator.core.messages.events import RunCancelled, RunHeld, WorkerLost
from orchestrator.core.messages.instructions import Notify
from orchestrator.core.messages.reconciliation_events import (
    AgentAhead,
    AttemptCompared,
    RanksSeen,
)
from orchestrator.core.messages.version_events import ReportUnreadable
from orchestrator.core.model.entities import Attempt
from orchestrator.core.model.state import Entity, State
from orchestrator.core.model.states import AttemptState, RunState, WorkerState
from orchestrator.core.model.vocabulary import Timer
from orchestrator.core.supervision.reconciliation import (
    COMPARE_SECONDS,
    KIND,
    is_ahead,
    number_of,
)
from tests.matching import command
from tests.world import World, spec, trained

NEWER = 5


def seats(world: World) -> dict[str, tuple[int, ...]]:
    return {seat.worker: seat.ranks for seat in world.attempt().seats}


def ahead(world: World, worker: str, attempt: int = NEWER, node: str = "") -> None:
    """An agent says hello, and has been told of an attempt."""
    node = node or world.state.workers[worker].node
    world.do(
        world.event(
            AgentAhead,
            run="run-1",
            worker=worker,
            node=node,
            attempt=attempt,
            reports_lost=True,
            address="10.0.0.9",
        )
    )


def compared(world: World, *seen: RanksSeen, last: bool = False, attempt: int = NEWER) -> None:
    world.do(world.event(AttemptCompared, run="run-1", attempt=attempt, seen=seen, last=last))


def shown(worker: str, *ranks: int, dead: tuple[int, ...] = (), attempt: int = NEWER) -> RanksSeen:
    return RanksSeen(worker=worker, attempt=attempt, ranks=ranks, dead=dead, moved=ranks)


def notices(world: World) -> list[Notify]:
    return [i for i in world.carried if isinstance(i, Notify) and i.incident_kind == KIND]


def newer() -> tuple[World, str, str]:
    """Both agents of a run run an attempt that the database does not have."""
    world = trained(15)
    first, second = seats(world)
    world.carried.clear()
    ahead(world, first)
    ahead(world, second)
    return world, first, second


def test_a_newer_attempt_that_is_whole_goes_on() -> None:
    world, first, second = newer()
    assert world.run().attempt == NEWER
    assert world.run().state is RunState.RECOVERING
    assert len(notices(world)) == 1, "once for all of its agents"
    compared(world, shown(first, 1), shown(second, 0))
    assert seats(world) == {second: (0,), first: (1,)}, "as they show, not as it was"
    assert world.run().due(Timer.COMPARE) is world.run().due(Timer.START) is None
    world.reach(40)
    assert world.run().state is RunState.RUNNING
    assert world.attempt().number == NEWER
    assert command(StopAttempt) not in world.carried
    world.die(0)
    world.settle()
    assert world.attempt().number == NEWER + 1, "no number is given twice"


def test_the_attempt_before_is_fenced_since_nothing_confirms_its_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It may have been fenced after the backup, and an agent that is cut off runs it still."""
    world = trained(15)
    put, written = State.put, dict[int, AttemptState]()

    def note(state: State, entity: Entity) -> None:
        if isinstance(entity, Attempt):
            written[entity.number] = entity.state
        put(state, entity)

    monkeypatch.setattr(State, "put", note)
    ahead(world, next(iter(seats(world))))
    assert written == {1: AttemptState.FENCED, NEWER: AttemptState.STARTING}


def test_agents_that_the_database_lacks_are_taken_over() -> None:
    world = trained(15)
    first, second = seats(world)
    node = world.state.workers[second].node
    spare = next(name for name in world.state.nodes if name not in {node, "node-1"})
    unknown = "run-1-w9"
    ahead(world, first)
    ahead(world, unknown, node=spare)
    taken = world.state.workers[unknown]
    assert (taken.state, taken.node, taken.address) == (WorkerState.READY, spare, "10.0.0.9")
    assert world.run().workers_made >= 9
    compared(world, shown(first, 0), shown(unknown, 1))
    assert seats(world) == {first: (0,), unknown: (1,)}
    assert command(StopAttempt) not in world.carried


def test_an_attempt_with_a_dead_rank_restarts_and_people_are_told() -> None:
    world, first, second = newer()
    compared(world, shown(first, 0), shown(second, 1, dead=(1,)))
    assert world.attempt().state is AttemptState.STARTING, "its exit may be on its way"
    compared(world, shown(first, 0), shown(second, 1, dead=(1,)), last=True)
    world.settle()
    assert world.attempt().number == NEWER + 1
    assert "rank 1 is dead" in notices(world)[-1].text


def test_a_rank_that_runs_twice_ends_both() -> None:
    world, first, second = newer()
    compared(world, shown(first, 0), shown(second, 0), last=True)
    stops = [i for i in world.carried if i == command(StopAttempt)]
    assert stops
    world.settle()
    assert world.attempt().number == NEWER + 1


def test_what_is_not_heard_of_is_not_stopped() -> None:
    world, first, _ = newer()
    compared(world, shown(first, 0), last=True)
    world.advance(COMPARE_SECONDS * 100)
    assert world.attempt().number == NEWER
    assert world.attempt().state is AttemptState.STARTING
    assert command(StopAttempt) not in world.carried
    assert command(StartAttempt) not in world.carried
    assert "nothing is stopped" in notices(world)[-1].text


def test_a_run_that_is_held_stays_held() -> None:
    world = trained(15)
    first, second = seats(world)
    world.do(world.event(RunHeld, run="run-1", reason="a look"))
    reason = world.run().reason
    ahead(world, first)
    ahead(world, second)
    compared(world, shown(first, 0), shown(second, 1))
    assert (world.run().state, world.run().reason) == (RunState.HELD, reason)
    assert world.run().attempt == NEWER


def test_lost_reports_of_the_same_attempt_are_made_up_for() -> None:
    """The failover lost that ranks have started: nobody says so again."""
    world = trained(15)
    first, second = seats(world)
    world.state.put(dataclasses.replace(world.attempt(), started_ranks=frozenset()))
    number = world.attempt().number
    ahead(world, first, attempt=number)
    compared(
        world, shown(first, 0, attempt=number), shown(second, 1, attempt=number), attempt=number
    )
    assert world.attempt().started_ranks == {0, 1}
    assert world.run().due(Timer.START) is None


def test_ranks_of_an_older_attempt_are_stopped_beside_the_newer_one() -> None:
    """A standby was told to start it in what is lost; meanwhile the run goes on elsewhere.

    Two attempts would write their checkpoints into one directory.
    """
    world = trained(15, placement={"standbys": 1})
    (standby,) = world.state.workers.keys() - seats(world).keys()
    number = world.attempt().number
    world.state.runs["run-1"] = dataclasses.replace(world.run(), attempt=number + 1)
    world.state.attempts["run-1"] = dataclasses.replace(world.attempt(), number=number + 1)
    world.carried.clear()
    ahead(world, standby, attempt=number)
    (stop,) = [i for i in world.carried if i == command(StopAttempt)]
    assert (stop.worker, stop.command.attempt) == (standby, number)
    assert world.attempt().state is AttemptState.RUNNING


def test_an_order_to_stop_that_was_lost_ends_the_attempt_all_the_same() -> None:
    """It was given before the restore, and obeyed after it: no rank says its end."""
    world = trained(15)
    first, _ = seats(world)
    of_first = {"run": "run-1", "worker": first, "attempt": world.attempt().number}
    world.do(world.event(AttemptStopped, **of_first, last_step=15))
    world.settle()
    assert world.attempt().number == 2
    restart = world.attempt().restart
    assert restart is not None
    assert "got an order to stop; the database is older than the run" in restart.reason
    assert restart.node is None
    assert len(notices(world)) == 1


@pytest.mark.parametrize(
    ("nodes", "launched_since"),
    [
        (2, False),
        ({"min": 1, "max": 2}, False),
        (2, True),  # an agent that never ran the attempt stops at once, and proves nothing
    ],
)
def test_an_attempt_with_an_agent_that_the_database_lacks_is_fenced_before_the_next_begins(
    nodes: object, launched_since: bool
) -> None:
    """A restored backup knows neither the attempt nor its second agent, which is cut off."""
    world = trained(15, resources={"nodes": nodes})
    first, second = seats(world)
    if launched_since:
        other = dataclasses.replace(world.state.workers[second], id="run-1-w9", node="node-4")
        world.state.put(other)
        idle = dataclasses.replace(world.agents[second], worker=other.id, node=other.node)
        world.agents[other.id] = idle
    world.state.put(dataclasses.replace(world.state.workers[second], state=WorkerState.ENDED))
    ahead(world, first)
    if launched_since:
        world.die(world.attempt().seats[0].ranks[0])
    else:
        compared(world, shown(first), last=True)
    world.settle()
    assert world.attempt().state is AttemptState.STOPPING, "whether the second lives, nobody knows"
    world.advance(FENCE_SECONDS + 1)
    world.settle()
    assert world.attempt().number == NEWER + 1


@pytest.mark.parametrize("comes", ["the cluster's word", "an exit that cannot be read"])
def test_an_agent_whose_ranks_are_not_known_may_end(comes: str) -> None:
    """It was launched since the backup, and may run the attempt that is being stopped."""
    world = trained(15)
    first, second = seats(world)
    idle = dataclasses.replace(world.state.workers[second], id="run-1-w9", node="node-4")
    world.state.put(idle)
    world.state.put(dataclasses.replace(world.state.workers[second], state=WorkerState.ENDED))
    ahead(world, first)
    world.die(world.attempt().seats[0].ranks[0])
    assert world.attempt().seats[-1].ranks == ()
    if comes == "the cluster's word":
        fields = {"worker": idle.id, "confirmed": True, "reason": "node lost"}
        world.do(world.event(WorkerLost, run="run-1", **fields))
        assert world.state.workers[idle.id].state is WorkerState.ENDED
    else:
        fields = {"worker": idle.id, "attempt": NEWER, "event": "rank_exited", "body": "{"}
        world.do(world.event(ReportUnreadable, run="run-1", reason="torn", **fields))
    assert world.attempt().state is AttemptState.STOPPING


def test_an_older_attempt_of_an_agent_that_is_unknown_is_left_out() -> None:
    world = trained(15)
    world.die(0)
    world.settle()
    assert world.attempt().number == 2
    ahead(world, "run-1-w9", attempt=1, node="node-4")
    assert "run-1-w9" not in world.state.workers


@pytest.mark.parametrize(
    ("who", "attempt", "reports_lost", "expected"),
    [
        ("seated", 1, False, False),
        ("seated", 1, True, True),
        ("seated", 2, False, True),
        ("unknown", 0, True, False),  # it runs nothing
        ("unknown", 1, False, True),
        ("joined", 0, False, False),
        ("joined", 1, False, True),  # the number was given twice
        ("stopping", 9, True, False),
    ],
)
def test_the_core_says_which_agents_are_ahead(
    who: str, attempt: int, reports_lost: bool, expected: bool
) -> None:
    world = trained(15)
    seated = next(iter(seats(world)))
    if who in {"joined", "stopping"}:
        state = WorkerState.READY if who == "joined" else WorkerState.STOPPING
        other = dataclasses.replace(world.state.workers[seated], id=who, state=state)
        world.state.put(other)
    hello = world.event(
        AgentAhead,
        run="run-1",
        worker=seated if who == "seated" else who,
        node="node-1",
        attempt=attempt,
        reports_lost=reports_lost,
    )
    assert isinstance(hello, AgentAhead)
    assert is_ahead(world.state, hello) is expected
    if not expected:
        before = copy.deepcopy(world.state)
        world.do(hello)
        assert world.state.attempts == before.attempts
        assert world.state.workers == before.workers
    world.do(world.event(RunCancelled, run="run-1", reason="enough"))
    world.settle()
    assert not is_ahead(world.state, hello), "the run is over"


def test_a_database_that_goes_back_gives_no_id_of_a_worker_twice() -> None:
    world = World()
    again = copy.deepcopy(world)
    world.submit(spec())
    again.now += dt.timedelta(milliseconds=1)
    again.submit(spec())
    first, second = set(world.state.workers), set(again.state.workers)
    assert sorted(map(number_of, first)) == sorted(map(number_of, second)) == [1, 2]
    assert not first & second


@pytest.mark.parametrize("restored", [True, False])
def test_launches_that_a_restored_backup_repeats_cost_nothing(
    monkeypatch: pytest.MonkeyPatch, restored: bool
) -> None:
    """Their agents are long gone, and the cluster starts none twice."""
    monkeypatch.setattr(World, "_launch", lambda _world, _order: None)
    world = World()
    run = world.submit(spec(nodes=4))
    names = list(world.state.workers)
    assert len(names) == 4
    if restored:
        at = world.now + dt.timedelta(seconds=1)
        world.state.put(dataclasses.replace(world.state.fleet, restored_at=at))
    for name in names:
        world.do(world.event(WorkerLost, run=run, worker=name, confirmed=True, reason="gone"))
    budgets = world.run().budgets
    assert (budgets == {}) is restored
    assert (world.run().avoid == ()) is restored
