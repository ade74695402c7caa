"""Attempts: started when the gang is whole, stopped, confirmed dead or fenced."""

from __future__ import annotations

import pytest

from jobs.commands import StartAttempt
from monitors.failures import Failure, FailureClass
from orchestrator.core.messages.events import WorkerLost
from orchestrator.core.messages.instructions import (
    Record,
    StopWorker,
)
from orchestrator.core.model.states import AttemptState, RunState
from orchestrator.core.model.vocabulary import Timer
from tests.matching import command, match
from tests.world import World, trained


def test_a_run_is_placed_started_and_succeeds() -> None:
    world = trained(30)
    assert world.run().state is RunState.RUNNING
    assert [seat.ranks for seat in world.attempt().seats] == [(0,), (1,)]
    world.end()
    world.settle()
    assert world.run().state is RunState.SUCCEEDED
    assert all(not agent.alive for agent in world.agents.values())


def test_a_script_that_never_reports_is_called_running_and_ends_by_its_exits() -> None:
    world = World()
    world.submit()
    mute = {"rank_ready", "rank_restored"}
    while world.messages:
        message = world.messages.pop(0)
        if message.kind not in mute:
            world.do(message)
    assert world.run().state is RunState.STARTING
    world.advance(61)
    assert world.run().state is RunState.RUNNING
    assert "has not called babysit.init() yet" in world.run().reason
    world.end()
    assert world.run().state is RunState.SUCCEEDED


def test_ranks_that_are_never_started_fail_the_attempt() -> None:
    """An agent whose standby never gets warm has no rank that could hang."""
    world = World()
    world.submit()
    for _ in range(2):
        world.do(world.messages.pop(0))
    world.messages.clear()
    assert world.attempt().state is AttemptState.STARTING
    world.advance(1200)
    world.settle()
    assert world.attempt().number > 1


def test_the_next_attempt_waits_until_every_worker_says_the_last_one_is_dead() -> None:
    world = trained(5)
    world.die(rank=1)
    stops = [m for m in world.messages if m.kind == "attempt_stopped"]
    assert len(stops) == 2
    world.messages.remove(stops[1])
    world.settle()
    assert command(StartAttempt, attempt=2) not in world.carried
    world.do(stops[1])
    assert command(StartAttempt, attempt=2) in world.carried


def test_a_worker_that_never_answers_is_ended_through_the_cluster() -> None:
    world = trained(5)
    world.die(rank=1)
    mute = world.attempt().seats[0].worker
    world.messages = [m for m in world.messages if m.worker != mute]
    world.settle()
    assert match(StopWorker) not in world.carried
    world.advance(31)
    assert match(StopWorker, worker=mute) in world.carried
    world.settle()
    assert world.attempt().number == 2
    assert mute not in {seat.worker for seat in world.attempt().seats}
    node = world.state.workers[mute].node
    assert world.state.nodes[node].faults == (), "its agent was ended, not lost: a server was busy"


@pytest.mark.parametrize("when", ["before the stop", "after the stop"])
def test_an_agent_out_of_contact_that_was_ended_is_not_held_against_its_node(when: str) -> None:
    world = trained(5)
    silent = world.attempt().seats[0].worker
    if when == "before the stop":
        world.lose_contact(silent)
        world.die(rank=1)
    else:
        world.die(rank=1)
        world.lose_contact(silent)
        world.messages = [m for m in world.messages if m.worker != silent]
        world.advance(31)
    assert match(StopWorker, worker=silent) in world.carried
    world.settle()
    assert world.attempt().number == 2
    node = world.state.workers[silent].node
    assert world.state.nodes[node].faults == ()
    assert not world.run().timers.get(Timer.CONTACT)


def test_a_node_whose_agent_died_by_itself_is_held_against_it() -> None:
    world = trained(5)
    silent = world.attempt().seats[0].worker
    world.lose_contact(silent)
    world.do(world.event(WorkerLost, run="run-1", worker=silent, confirmed=True, reason="down"))
    world.settle()
    node = world.state.workers[silent].node
    assert [fault.failure_class for fault in world.state.nodes[node].faults] == ["worker_lost"]


def test_an_attempt_that_cannot_be_confirmed_dead_is_fenced() -> None:
    world = trained(5)
    world.die(rank=1)
    world.messages.clear()
    world.advance(31)
    world.messages.clear()
    world.advance(120)
    assert any("could not be confirmed dead: fenced" in i.reason for i in world.carried)
    world.settle()
    assert world.attempt().number == 2
    assert world.run().state is RunState.RECOVERING


def test_late_messages_of_an_old_attempt_change_nothing() -> None:
    world = trained(5)
    world.die(rank=1, last_step=5)
    late = next(m for m in world.messages if m.kind == "attempt_stopped")
    world.settle()
    before = world.attempt()
    assert world.do(late) == [match(Record, run="run-1")]
    assert world.attempt() == before


def test_a_lost_agent_is_replaced_on_another_node_after_it_failed_twice() -> None:
    world = World(nodes=3)
    world.submit()
    world.trained_to(5)
    victim = world.attempt().seats[1]
    world.kill_agent(victim.worker)
    world.settle()
    assert world.attempt().number == 2
    again = world.attempt().seats[1]
    assert again.worker != victim.worker
    world.kill_agent(again.worker)
    world.settle()
    world.advance(5)
    world.settle()
    assert world.attempt().number == 3
    assert world.attempt().seats[1].node != again.node


USER_ERROR = Failure(
    failure_class=FailureClass.USER_CODE,
    reason="ValueError: bad batch",
    signature="ValueError train.py",
)


def test_peers_that_died_of_the_first_failure_are_not_its_cause() -> None:
    world = trained(4)
    cascade = Failure(
        failure_class=FailureClass.CASCADE, reason="connection closed by peer", signature="closed"
    )
    world.die(rank=0, failure=cascade, last_step=4)
    world.die(rank=1, failure=USER_ERROR, last_step=4)
    world.settle()
    restart = world.attempt().restart
    assert restart is not None
    assert (restart.rank, restart.failure_class) == (1, FailureClass.USER_CODE)


def test_a_lost_agent_is_the_cause_though_its_peers_complained_first() -> None:
    """The exit of a rank may be heard of before the cluster says why its connection closed."""
    world = trained(15)
    seats = world.attempt().seats
    closed = Failure(
        failure_class=FailureClass.NETWORK, reason="connection closed by peer", signature="closed"
    )
    world.die(0, closed, last_step=15)
    assert world.attempt().state is AttemptState.STOPPING
    world.kill_agent(seats[1].worker)
    world.do(world.messages.pop())  # before anybody has answered the stop
    assert world.attempt().state is AttemptState.STOPPING
    world.settle()
    restart = world.attempt().restart
    assert world.attempt().number == 2
    assert restart is not None
    assert restart.failure_class is FailureClass.WORKER_LOST
    assert restart.node == seats[1].node
