"""Agents out of contact: no failure in itself, but not for ever."""

from __future__ import annotations

import datetime as dt

from jobs.commands import StopAttempt
from monitors.failures import FailureClass
from orchestrator.core.messages.events import NodeChanged, TimerFired, WorkerLost, WorkerRegained
from orchestrator.core.messages.instructions import Notify, ProbeWorker
from orchestrator.core.model.states import AttemptState
from orchestrator.core.model.vocabulary import Timer
from orchestrator.core.views.explain import explain
from tests.matching import command, match
from tests.world import World, spec, trained


def test_silence_of_an_agent_is_not_failure() -> None:
    world = trained(5)
    worker = world.attempt().seats[0].worker
    world.do(world.event(WorkerLost, run="run-1", worker=worker, confirmed=False, reason="silent"))
    world.settle()
    assert match(ProbeWorker, worker=worker) in world.carried
    assert command(StopAttempt) not in world.carried
    world.reach(world.attempt().milestone)
    assert world.run().best_step == world.attempt().step > 5


def test_a_worker_that_stays_out_of_contact_is_replaced() -> None:
    """The cluster says it is alive, or cannot tell: nobody else will ever move the run on."""
    world = trained(5)
    world.lose_contact(world.attempt().seats[0].worker)
    world.advance(1200)
    world.settle()
    assert world.attempt().number == 2
    assert world.attempt().restart is not None
    assert world.attempt().restart.failure_class is FailureClass.WORKER_LOST


def test_an_agent_that_a_new_leader_never_heard_of_is_kept_and_people_are_told() -> None:
    """Its ranks train on: what hides it from a new leader hides every agent."""
    world = trained(5)
    worker = world.attempt().seats[0].worker
    world.lose_contact(worker)
    for _ in range(3):
        world.advance(100)
        later = world.now + dt.timedelta(days=1)
        (due,) = [d for d in world.state.due_timers(later) if d.timer is Timer.CONTACT]
        world.do(world.event(TimerFired, **due._asdict(), unheard=True))
    world.settle()
    assert world.attempt().number == 1
    assert command(StopAttempt) not in world.carried
    told = [i for i in world.carried if isinstance(i, Notify)]
    assert "has not been heard of since this server leads" in told[-1].text
    world.do(world.event(WorkerLost, run="run-1", worker=worker, confirmed=True, reason="dead"))
    world.settle()
    assert world.attempt().number == 2, "until the cluster says that it is dead"


def test_a_worker_that_is_back_in_contact_is_left_alone() -> None:
    world = trained(5)
    worker = world.attempt().seats[0].worker
    world.lose_contact(worker)
    world.advance(200)
    world.do(world.event(WorkerRegained, run="run-1", worker=worker))
    world.advance(3600)
    world.settle()
    assert world.attempt().number == 1
    assert not world.run().timers


def test_a_worker_lost_while_its_gang_gathers_is_replaced() -> None:
    world = World()
    world.submit()
    world.do(world.messages.pop(0))
    (ready,) = [w for w in world.state.workers_of("run-1") if w.state == "ready"]
    world.messages.clear()
    world.lose_contact(ready.id)
    assert "contact" in " ".join(explain(world.state, "run-1", world.now).sentences)
    for _ in range(5):
        world.advance(200)
        world.settle()
    assert world.attempt().number == 1


def test_many_workers_out_of_contact_trip_the_breaker_before_any_is_given_up() -> None:
    """Then it is the network, or us: training must not stop because we cannot see it."""
    world = World(nodes=6)
    for i in range(4):
        world.submit(spec(nodes=1), f"run-{i}")
    world.settle()
    for i in range(4):
        worker = world.attempt(f"run-{i}").seats[0].worker
        world.do(
            world.event(WorkerLost, run=f"run-{i}", worker=worker, confirmed=False, reason="no")
        )
    world.advance(3600)
    world.settle()
    assert world.state.fleet.hold is not None
    assert all(world.attempt(f"run-{i}").state is AttemptState.STARTING for i in range(4))


def test_many_nodes_out_of_contact_at_once_freeze_automation() -> None:
    """An unreachable switch: by the time their attempts are fenced, nobody is LOST any more."""
    world = World(nodes=8)
    world.submit(spec(nodes=6))
    world.trained_to(5)
    for seat in world.attempt().seats[:2]:
        world.lose_contact(seat.worker)
    assert not world.state.fleet.hold
    world.lose_contact(world.attempt().seats[2].worker)
    assert "circuit breaker: 3 of 8 nodes" in str(world.state.fleet.hold)


def test_drained_nodes_that_are_switched_off_do_not_freeze_automation() -> None:
    """As when a provider takes back nodes of several runs, and no cluster confirms their ends."""
    world = World(nodes=12)
    for i in range(4):
        world.submit(spec(nodes=1), f"run-{i}")
        world.trained_to(5, f"run-{i}")
    gone = [world.attempt(f"run-{i}").seats[0] for i in range(4)]
    for seat in gone:
        drain = {"node": seat.node, "state": "draining", "reason": "spot"}
        world.do(world.event(NodeChanged, **drain, actor="cluster"))
    for i, seat in enumerate(gone):
        world.lose_contact(seat.worker, f"run-{i}")
    assert world.state.fleet.hold is None
    for i, seat in enumerate(gone):
        lost = {"run": f"run-{i}", "worker": seat.worker, "confirmed": True, "reason": "gone"}
        world.do(world.event(WorkerLost, **lost))
    world.settle()
    assert world.state.fleet.hold is None
    assert [world.run(f"run-{i}").budgets for i in range(4)] == [{}] * 4
    assert {world.attempt(f"run-{i}").number for i in range(4)} == {2}
