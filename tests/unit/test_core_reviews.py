"""Stories of what a careful reader of the core was afraid of: how runs get stuck or go astray."""

from __future__ import annotations

import pytest

from babysit.wire import Tier
from jobs.commands import DeleteCheckpoint
from jobs.events import (
    AttemptStopped,
    CheckpointChecked,
    RankRestored,
    RejectedCheckpoint,
    SaveFailed,
)
from monitors.failures import FailureClass
from monitors.types import FindingKind, Severity
from orchestrator.core.messages.events import (
    CapacityChanged,
    CheckpointPinned,
    CheckpointRemovalAsked,
    IncidentChanged,
    NodeChanged,
    NodeInfo,
    RestartAsked,
    RollbackAsked,
    RunCancelled,
    RunHeld,
    RunReleased,
    WorkerLost,
    WorkerRegained,
)
from orchestrator.core.messages.instructions import Notify
from orchestrator.core.model.states import AttemptState, IncidentState, NodeState, RunState, Trust
from orchestrator.core.model.time_ledger import totals
from orchestrator.core.views.explain import explain
from orchestrator.errors import ConflictError, InvalidError, NotFoundError
from tests.world import World, spec


def trained(steps: int = 25, **fields: object) -> World:
    """A run of two ranks on four nodes that has come so far, saving every 10 steps."""
    world = World()
    world.submit(spec(**fields))
    world.trained_to(steps)
    return world


def silent(world: World, worker: str) -> None:
    """The agent is not heard of any more."""
    world.do(world.event(WorkerLost, run="run-1", worker=worker, confirmed=False, reason="no word"))


def offered(world: World) -> list[tuple[int, str]]:
    """What the newest attempt was told to load, best first."""
    return [(c.step, c.tier) for c in world.told("start_attempt")[-1].command.restore]


# out of contact


def test_a_worker_that_stays_out_of_contact_is_replaced() -> None:
    """The cluster says it is alive, or cannot tell: nobody else will ever move the run on."""
    world = trained(5)
    silent(world, world.attempt().seats[0].worker)
    world.advance(1200)
    world.settle()
    assert world.attempt().number == 2
    assert world.attempt().restart is not None
    assert world.attempt().restart.failure_class is FailureClass.WORKER_LOST


def test_a_worker_that_is_back_in_contact_is_left_alone() -> None:
    world = trained(5)
    worker = world.attempt().seats[0].worker
    silent(world, worker)
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
    silent(world, ready.id)
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


# holds


def test_a_restart_is_refused_while_everything_is_held() -> None:
    """It would stop the gang, and nothing would start the next."""
    world = trained(5)
    world.do(world.event(RunHeld, run=None))
    with pytest.raises(ConflictError, match="babysit release"):
        world.do(world.event(RestartAsked, run="run-1"))
    assert world.attempt().state is AttemptState.RUNNING


@pytest.mark.parametrize("held", ["run-1", None])
def test_a_drain_under_a_hold_is_done_at_its_release(held: str | None) -> None:
    world = trained(5)
    node = world.attempt().seats[0].node
    world.do(world.event(RunHeld, run=held))
    world.do(world.event(NodeChanged, node=node, state="draining", reason="new fans"))
    world.settle()
    assert world.attempt().state is AttemptState.RUNNING
    world.do(world.event(RunReleased, run=held))
    world.settle()
    assert world.attempt().number == 2
    assert node not in {seat.node for seat in world.attempt().seats}


@pytest.mark.parametrize("kind", [FindingKind.HANG, FindingKind.LOSS_SPIKE])
@pytest.mark.parametrize("held", ["run-1", None])
def test_what_was_found_under_a_hold_is_acted_on_at_its_release(
    held: str | None, kind: FindingKind
) -> None:
    world = trained(30)
    world.do(world.event(RunHeld, run=held))
    world.find(kind, onset=30)
    world.settle()
    assert world.attempt().state is AttemptState.RUNNING
    world.do(world.event(RunReleased, run=held))
    world.settle()
    assert world.attempt().number == 2


def test_a_hang_that_ended_by_itself_under_a_hold_is_forgotten() -> None:
    world = trained(30)
    world.do(world.event(RunHeld, run="run-1"))
    world.find(FindingKind.HANG, onset=30)
    assert world.attempt().milestone <= 40, "nobody would hear that it goes on"
    world.reach(40)
    world.do(world.event(RunReleased, run="run-1"))
    world.settle()
    assert world.attempt().number == 1
    assert world.run().state is RunState.RUNNING


def test_a_hold_that_comes_while_stacks_are_captured_keeps_the_gang() -> None:
    world = trained(30)
    world.find(FindingKind.HANG, onset=30)
    world.do(world.event(RunHeld, run="run-1"))
    world.settle()
    world.advance(60)
    assert world.attempt().state is AttemptState.RUNNING
    world.do(world.event(RunReleased, run="run-1"))
    world.settle()
    assert world.attempt().number == 2


def test_time_held_with_nothing_running_is_not_allocated() -> None:
    world = trained(5)
    world.do(world.event(RunHeld, run="run-1"))
    world.die()
    world.settle()
    before = totals(world.run().ledger, world.now)["queued"]
    world.advance(1000)
    assert totals(world.run().ledger, world.now)["queued"] - before == pytest.approx(1000)


# questions to people


def ask_spec(monitor: str) -> dict[str, object]:
    return {"monitors": {monitor: {"action": "ask"}}}


def test_an_unanswered_question_waits_for_the_end_of_a_hold() -> None:
    world = trained(30, **ask_spec("loss_spike"))
    world.find(onset=28)
    world.do(world.event(RunHeld, run=None))
    world.advance(1000)
    assert world.attempt().state is AttemptState.RUNNING
    world.do(world.event(RunReleased, run=None))
    world.settle()
    assert world.attempt().number == 2


def test_an_unanswered_question_about_a_start_that_hangs_is_acted_on() -> None:
    world = World()
    world.submit(spec(**ask_spec("hang")))
    world.settle()
    assert world.attempt().state is AttemptState.STARTING
    world.find(FindingKind.HANG, onset=0)
    world.advance(905)
    world.settle()
    assert world.attempt().number == 2


def test_a_question_is_dropped_when_the_run_goes_on_by_itself() -> None:
    world = trained(30, **ask_spec("hang"))
    world.find(FindingKind.HANG, onset=30)
    world.reach(world.attempt().milestone)
    world.advance(1000)
    world.settle()
    assert world.attempt().number == 1


# which checkpoint


def test_a_pinned_checkpoint_from_after_an_onset_is_kept_but_not_loaded() -> None:
    world = trained(20)
    world.reach(30)
    pinned = world.save(30)
    world.settle()
    world.do(world.event(CheckpointPinned, run="run-1", checkpoint=pinned))
    world.find(onset=25)
    world.settle()
    world.reach(12)
    world.die(last_step=12)
    world.settle()
    assert offered(world)[0][0] < 25
    assert world.state.checkpoints[pinned].deleted_at is None


def test_a_rollback_by_hand_leaves_pinned_checkpoints_to_be_asked_for_again() -> None:
    world = trained(20)
    pinned = "run-1/1/directory/20"
    world.do(world.event(CheckpointPinned, run="run-1", checkpoint=pinned))
    world.do(world.event(RollbackAsked, run="run-1", to_step=10))
    world.settle()
    world.die(last_step=10)
    world.settle()
    assert offered(world)[0] == (10, "directory")
    world.do(world.event(RollbackAsked, run="run-1", to_step=20))
    world.settle()
    assert offered(world)[0] == (20, "directory")


def test_a_rollback_that_dies_before_it_has_loaded_goes_back_as_far_again() -> None:
    world = trained(24)  # step 10 is good, step 20 is not yet
    assert world.state.checkpoints["run-1/1/directory/10"].trust is Trust.GOOD
    world.remember(24)
    world.find(onset=25)
    for message in [m for m in world.messages if m.kind == "attempt_stopped"]:
        world.messages.remove(message)
        world.do(message)
    assert offered(world)[0] == (10, "directory")
    world.messages.clear()
    world.die(last_step=0)
    world.settle()
    assert world.attempt().number == 3
    assert offered(world)[0] == (10, "directory")


def test_what_a_rollback_left_behind_is_neither_loaded_nor_promoted() -> None:
    """Clean steps of the new branch say nothing about a checkpoint of the old one."""
    world = trained(25)
    world.find(onset=25)
    world.settle()
    assert world.attempt().start_step == 10
    world.reach(19)
    world.reach(45)
    left = world.state.checkpoints["run-1/1/directory/20"]
    assert left.trust is Trust.BAD


def test_what_a_fallback_left_behind_is_not_loaded_later() -> None:
    """Memory was not there for one rank: all went on from step 20, and so does the next attempt."""
    world = trained(25)
    world.remember(25)
    world.die(last_step=25)
    for message in [m for m in world.messages if isinstance(m, AttemptStopped)]:
        world.do(message)
    assert offered(world)[:2] == [(25, "memory"), (20, "directory")]
    instead = {"step": 20, "checkpoint": "run-1/1/directory/20"}
    world.messages = [
        m.model_copy(update=instead) if isinstance(m, RankRestored) else m for m in world.messages
    ]
    world.settle()
    assert world.attempt().start_step == 20
    world.reach(26)
    world.die(last_step=26)
    world.settle()
    assert offered(world)[0] == (20, "directory")


def test_memory_checkpoints_do_not_pile_up() -> None:
    world = World()
    world.submit()
    world.trained_to(1)
    for step in range(2, 40):
        world.reach(step)
        world.remember(step)
        world.die(last_step=step)
        world.settle()
        world.state.forget()
    memory = [c for c in world.state.checkpoints_of("run-1") if c.tier is Tier.MEMORY]
    assert len(memory) <= 3
    assert offered(world)[0] == (39, "memory")


def test_a_memory_checkpoint_goes_with_the_worker_that_held_it() -> None:
    world = trained(25)
    world.remember(25)
    world.die(last_step=25)
    world.settle()
    world.kill_agent(world.attempt().seats[0].worker)
    world.settle()
    world.state.forget()
    assert not [c for c in world.state.checkpoints_of("run-1") if c.tier is Tier.MEMORY]


def test_a_shard_that_was_given_up_does_not_come_back_to_life() -> None:
    world = trained(25)
    world.remember(25)
    kept = {agent.worker: list(agent.memory) for agent in world.agents.values()}
    world.die(last_step=25)
    world.settle()
    world.do(world.event(RollbackAsked, run="run-1", to_step=10))
    world.settle()
    world.state.forget()
    for agent in world.agents.values():
        agent.memory = kept.get(agent.worker, [])
    world.die(last_step=12)
    world.settle()
    assert offered(world)[0] == (10, "directory")


def test_good_waits_while_an_anomaly_is_only_watched() -> None:
    """Steps after an onset are not clean, whoever decided to do nothing about it."""
    world = trained(20, monitors={"loss_spike": {"action": "observe"}})
    world.find(onset=15)
    for step in (30, 40, 50):
        world.reach(step)
    assert world.state.checkpoints["run-1/1/directory/20"].trust is Trust.VERIFIED


def test_good_goes_on_once_a_person_has_resolved_the_anomaly() -> None:
    world = trained(20, monitors={"loss_spike": {"action": "observe"}})
    world.find(onset=15)
    (incident,) = world.state.incidents_of("run-1")
    world.do(world.event(IncidentChanged, incident=incident.id, state=IncidentState.RESOLVED))
    world.reach(50)
    assert world.state.checkpoints["run-1/1/directory/20"].trust is Trust.GOOD


def test_a_restart_asked_for_during_a_rollback_does_not_undo_it() -> None:
    world = trained(24)
    world.remember(24)
    world.find(onset=22)
    assert world.attempt().state is AttemptState.STOPPING
    world.do(world.event(RestartAsked, run="run-1"))
    world.settle()
    assert offered(world)[0] == (10, "directory")


@pytest.mark.parametrize("skip", [None, (5, 7)])
def test_a_rollback_that_names_no_step_never_throws_everything_away(
    skip: tuple[int, int] | None,
) -> None:
    world = trained(10)
    with pytest.raises(ConflictError, match=r"of steps: 10\. .* `--to 0` restarts from the beg"):
        world.do(world.event(RollbackAsked, run="run-1", skip=skip))
    world.do(world.event(RollbackAsked, run="run-1", to_step=0))
    world.settle()
    assert world.attempt().start_step == 0


@pytest.mark.parametrize(("ok", "trust"), [(True, Trust.VERIFIED), (False, Trust.BAD)])
def test_the_last_checkpoint_is_read_back_though_the_run_is_over(*, ok: bool, trust: Trust) -> None:
    """It is what the run was for; its answer comes after the ranks have ended."""
    world = trained(19)
    world.reach(20)
    last = world.save(20)
    checks = [m for m in world.messages if isinstance(m, CheckpointChecked)]
    world.messages = [m for m in world.messages if m not in checks]
    world.end()
    assert world.run().state is RunState.SUCCEEDED
    for check in checks:
        world.do(check.model_copy(update={"ok": ok, "error": "" if ok else "content differs"}))
    assert world.state.checkpoints[last].trust is trust
    told = [i.text for i in world.carried if isinstance(i, Notify)]
    assert any("step 20 is corrupt" in text for text in told) is not ok


def test_a_corrupt_checkpoint_is_no_longer_missed_once_a_newer_one_is_read_back() -> None:
    world = trained(19)
    world.reach(20)
    world.save(20)
    world.messages = [
        m.model_copy(update={"ok": False, "error": "bits differ"})
        if isinstance(m, CheckpointChecked)
        else m
        for m in world.messages
    ]
    world.settle()
    (incident,) = world.state.incidents_of("run-1")
    world.trained_to(29)
    assert world.state.incidents[incident.id].state is IncidentState.OPEN
    world.trained_to(30)
    assert world.state.incidents[incident.id].state is IncidentState.RESOLVED


def test_a_corrupt_checkpoint_that_was_fallen_back_from_is_settled_by_new_steps() -> None:
    world = trained(25)
    world.die(last_step=25)
    while world.attempt().number == 1:
        world.do(world.messages.pop(0))
    refused = RejectedCheckpoint(id="run-1/1/directory/20", reason="bits differ")
    instead = {"step": 10, "checkpoint": "run-1/1/directory/10", "rejected": (refused,)}
    world.messages = [
        m.model_copy(update=instead) if isinstance(m, RankRestored) else m for m in world.messages
    ]
    world.settle()
    world.reach(19)
    kinds = {i.kind for i in world.state.incidents_of("run-1")}
    assert kinds == {"signal", "checkpoint_corrupt"}
    world.reach(26)
    assert {i.state for i in world.state.incidents_of("run-1")} == {IncidentState.RESOLVED}


def test_a_rollback_goes_by_the_step_that_was_truly_reached() -> None:
    """The core hears of milestones only, which lie up to a hundred steps apart."""
    world = trained(69, checkpoint={"directory": "/checkpoints", "every_steps": 20})
    assert world.run().best_step < 60
    world.do(world.event(RollbackAsked, run="run-1"))
    world.settle()
    assert world.attempt().start_step == 60


def test_an_agent_that_dies_between_milestones_loses_what_was_computed() -> None:
    world = trained(40, resources={"nodes": 1}, checkpoint={"directory": None})
    world.kill_agent(world.attempt().seats[0].worker)
    world.settle()
    restart = world.attempt().restart
    assert restart is not None
    assert (restart.best_step, restart.lost_steps) == (40, 40)


@pytest.mark.parametrize("skip", [(10, 5), (0, 5), (-3, -1)])
def test_batches_to_skip_are_checked(skip: tuple[int, int]) -> None:
    world = trained(20)
    with pytest.raises(InvalidError, match="skip"):
        world.do(world.event(RollbackAsked, run="run-1", skip=skip))


def test_a_checkpoint_that_is_being_loaded_is_not_deleted() -> None:
    world = trained(25)
    world.die(last_step=25)
    stops = [m for m in world.messages if isinstance(m, AttemptStopped)]
    for message in stops:
        world.do(message)
    assert offered(world)[0] == (20, "directory")
    with pytest.raises(ConflictError, match="loaded"):
        world.do(
            world.event(CheckpointRemovalAsked, run="run-1", checkpoint="run-1/1/directory/20")
        )


def test_a_checkpoint_is_deleted_by_its_own_run_only() -> None:
    world = trained(25)
    world.submit(spec("other"), "run-2")
    with pytest.raises(NotFoundError):
        world.do(
            world.event(CheckpointRemovalAsked, run="run-2", checkpoint="run-1/1/directory/10")
        )
    assert not any(isinstance(i.command, DeleteCheckpoint) for i in world.told("delete_checkpoint"))


# incidents


def fail_to_save(world: World, step: int, rank: int) -> None:
    seat = world.attempt().seats[rank]
    world.do(
        world.event(
            SaveFailed,
            run="run-1",
            worker=seat.worker,
            attempt=world.attempt().number,
            rank=rank,
            step=step,
            tier="memory",
            error="No space left on device",
        )
    )


def test_saves_that_fail_all_the_time_are_one_incident_and_page_once() -> None:
    world = trained(5)
    for step in range(6, 30):
        for rank in (0, 1):
            fail_to_save(world, step, rank)
    (incident,) = world.state.incidents_of("run-1")
    assert incident.severity is Severity.CRITICAL
    notices = [i for i in world.carried if isinstance(i, Notify)]
    assert [n.severity for n in notices] == [Severity.WARNING, Severity.CRITICAL]
    assert {n.incident_kind for n in notices} == {incident.kind}
    assert {n.dedup_key for n in notices} == {f"run-1/{incident.kind}/1"}


def test_one_failed_save_on_every_rank_does_not_page() -> None:
    world = trained(5)
    for rank in (0, 1):
        fail_to_save(world, 6, rank)
    (incident,) = world.state.incidents_of("run-1")
    assert incident.severity is Severity.WARNING


def test_an_incident_can_be_acknowledged_when_its_run_is_long_over() -> None:
    world = trained(30)
    world.find(onset=28)
    (incident,) = world.state.incidents_of("run-1")
    world.do(world.event(RunCancelled, run="run-1"))
    world.settle()
    over = world.state.incidents[incident.id]
    world.state.forget()
    assert "run-1" not in world.state.runs
    world.state.recall(over)
    world.do(world.event(IncidentChanged, incident=over.id, acknowledge=True, verdict="right"))
    assert world.state.incidents[over.id].verdict == "right"


def test_an_incident_resolved_by_hand_does_not_break_the_recovery() -> None:
    world = trained(30)
    world.find(onset=28)
    (incident,) = world.state.incidents_of("run-1")
    world.do(world.event(IncidentChanged, incident=incident.id, state=IncidentState.RESOLVED))
    world.settle()
    assert world.attempt().number == 2


# budgets and ends


def test_anomalies_in_ever_new_places_without_progress_stop_the_run() -> None:
    world = trained(99)
    world.find(onset=98)
    world.settle()
    for onset in (70, 40, 95):
        if world.run().state is RunState.FAILED:
            break
        world.reach(world.attempt().start_step + 1)
        world.find(onset=onset)
        world.settle()
    assert world.run().state is RunState.FAILED
    assert "rollback" in world.run().reason


def test_a_cancelled_run_does_not_fail_of_its_max_runtime() -> None:
    world = trained(5, max_runtime=60)
    world.do(world.event(RunCancelled, run="run-1"))
    world.advance(60)
    world.settle()
    assert world.run().state is RunState.CANCELLED


# nodes


def test_memory_that_is_used_up_is_not_taken_for_memory_without_limit() -> None:
    world = World(nodes=0)
    node = NodeInfo(id="node-1", cpus=8, memory=2**30)
    world.do(world.event(CapacityChanged, nodes=(node,)))
    need = {"nodes": 1, "cpus_per_node": 1, "memory_per_node": "1Gi"}
    for run in ("run-1", "run-2"):
        world.submit(spec(run, resources=need), run)
    assert world.run("run-2").pending == "no_capacity"


def test_a_run_that_no_longer_fits_the_cluster_does_not_block_the_queue() -> None:
    world = World(nodes=2)
    world.do(world.event(NodeChanged, node="node-2", state="cordoned", reason="Xid 79"))
    world.submit(spec("large", nodes=2), "run-1")
    world.submit(spec("small", nodes=1), "run-2")
    assert world.run("run-1").pending == "too_large"
    assert "uncordoning" in explain(world.state, "run-1", world.now).unblock
    assert world.run("run-2").state is RunState.STARTING
    world.submit(spec("next", nodes=1), "run-3")
    assert explain(world.state, "run-3", world.now).ahead == []
    world.do(world.event(NodeChanged, node="node-2", state="ready", reason="replaced"))
    assert world.run("run-1").pending == "no_capacity"
    assert explain(world.state, "run-3", world.now).ahead == ["large"]


def test_a_cordon_outlives_the_nodes_absence() -> None:
    world = World(nodes=2)
    world.do(world.event(NodeChanged, node="node-2", state="cordoned", reason="Xid 79"))
    both = tuple(NodeInfo(id=f"node-{i}", cpus=1) for i in (1, 2))
    world.do(world.event(CapacityChanged, nodes=both[:1]))
    assert world.state.nodes["node-2"].state is NodeState.GONE
    world.do(world.event(CapacityChanged, nodes=both))
    assert world.state.nodes["node-2"].state is NodeState.CORDONED
    assert "Xid 79" in world.state.nodes["node-2"].reason
    world.do(world.event(NodeChanged, node="node-2", state="ready", reason="replaced"))
    world.do(world.event(CapacityChanged, nodes=both[:1]))
    world.do(world.event(CapacityChanged, nodes=both))
    assert world.state.nodes["node-2"].state is NodeState.READY


def test_many_nodes_out_of_contact_at_once_freeze_automation() -> None:
    """An unreachable switch: by the time their attempts are fenced, nobody is LOST any more."""
    world = World(nodes=8)
    world.submit(spec(nodes=6))
    world.trained_to(5)
    for seat in world.attempt().seats[:2]:
        silent(world, seat.worker)
    assert not world.state.fleet.hold
    silent(world, world.attempt().seats[2].worker)
    assert "circuit breaker: 3 of 8 nodes" in str(world.state.fleet.hold)


def test_a_run_that_has_caught_up_says_that_it_trains() -> None:
    world = trained(25)
    world.die(last_step=25)
    world.settle()
    world.reach(21)
    assert world.run().reason == "computing steps 21 to 25 again"
    world.reach(26)
    assert world.run().reason == "training, attempt 2 from step 20"
