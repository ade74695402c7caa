"""What the core does when things go wrong, told as stories. No time passes and nothing runs."""

from __future__ import annotations

import pytest

from monitors.failures import Failure, FailureClass
from monitors.types import FindingKind
from orchestrator.core.messages.events import (
    NodeChanged,
    RestartAsked,
    RollbackAsked,
    RunCancelled,
    RunHeld,
    RunReleased,
    RunSubmitted,
    WorkerLost,
)
from orchestrator.core.model.states import AttemptState, NodeState, RunState, Trust
from orchestrator.core.model.time_ledger import ettr, totals
from orchestrator.core.views.explain import explain
from orchestrator.core.views.remedy_text import incident_remedy
from orchestrator.errors import ConflictError, InvalidError, NotFoundError
from tests.world import World, spec

USER_ERROR = Failure(
    failure_class=FailureClass.USER_CODE,
    reason="ValueError: bad batch",
    signature="ValueError train.py",
)


def test_a_run_is_placed_started_and_succeeds() -> None:
    world = World()
    world.submit()
    world.trained_to(30)
    assert world.run().state is RunState.RUNNING
    assert [seat.ranks for seat in world.attempt().seats] == [(0,), (1,)]
    world.end()
    world.settle()
    assert world.run().state is RunState.SUCCEEDED
    assert all(not agent.alive for agent in world.agents.values())


def test_a_run_may_not_save_where_a_live_one_does() -> None:
    world = World()
    world.submit()
    shared = world.run().spec
    with pytest.raises(ConflictError, match=r"checkpoints of tiny \(run-1\), which is .*cancel it"):
        world.do(world.event(RunSubmitted, run="run-2", spec=shared))
    assert "run-2" not in world.state.runs
    world.trained_to(30)
    world.end()
    world.settle()
    world.do(world.event(RunSubmitted, run="run-2", spec=shared))
    assert world.run("run-2").spec.checkpoint.directory == shared.checkpoint.directory


def test_a_killed_rank_restarts_the_gang_from_the_newest_memory_checkpoint() -> None:
    world = World()
    world.submit()
    world.trained_to(25)
    world.remember(25)
    world.die(rank=1, last_step=25)
    world.settle()
    start = world.told("start_attempt")[-1].command
    assert start.attempt == 2
    assert (start.restore[0].step, start.restore[0].tier) == (25, "memory")
    world.reach(26)
    restart = world.attempt().restart
    assert restart is not None
    assert restart.recovered_at is not None
    assert (restart.lost_steps, restart.resumed_step) == (0, 25)
    assert world.run().state is RunState.RUNNING
    assert not world.state.incidents_of("run-1") or all(
        i.state == "resolved" for i in world.state.incidents_of("run-1")
    )


def test_what_a_run_says_of_itself_once_the_lost_steps_are_computed_again() -> None:
    world = World()
    world.submit()
    world.trained_to(25)
    world.die(rank=1, last_step=25)
    world.settle()
    world.reach(21)
    assert world.run().reason == "computing steps 21 to 25 again"
    world.reach(26)
    assert world.run().reason == "training, attempt 2 from step 20"


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
    assert "does not call babysit.init()" in world.run().reason
    world.end()
    assert world.run().state is RunState.SUCCEEDED


def test_the_next_attempt_waits_until_every_worker_says_the_last_one_is_dead() -> None:
    world = World()
    world.submit()
    world.trained_to(5)
    world.die(rank=1)
    stops = [m for m in world.messages if m.kind == "attempt_stopped"]
    assert len(stops) == 2
    world.messages.remove(stops[1])
    world.settle()
    assert world.attempt().state is AttemptState.STOPPING
    world.do(stops[1])
    assert world.attempt().number == 2


def test_a_worker_that_never_answers_is_ended_through_the_cluster() -> None:
    world = World()
    world.submit()
    world.trained_to(5)
    world.die(rank=1)
    mute = world.attempt().seats[0].worker
    world.messages = [m for m in world.messages if m.worker != mute]
    world.settle()
    world.advance(31)
    world.settle()
    assert world.attempt().number == 2
    assert mute not in {seat.worker for seat in world.attempt().seats}
    assert not world.agents[mute].alive


def test_an_attempt_that_cannot_be_confirmed_dead_is_fenced() -> None:
    world = World()
    world.submit()
    world.trained_to(5)
    world.die(rank=1)
    world.messages.clear()
    world.advance(31)
    world.messages.clear()
    world.advance(120)
    assert any("could not be confirmed dead: fenced" in i.reason for i in world.carried)
    world.settle()
    assert world.attempt().number == 2
    assert world.run().state is RunState.RECOVERING


def test_a_user_error_stops_after_one_confirmation_with_the_tracebacks_last_line() -> None:
    world = World()
    world.submit()
    world.trained_to(4)
    world.die(failure=USER_ERROR, last_step=4)
    world.settle()
    assert world.attempt().number == 2
    world.die(failure=USER_ERROR, last_step=4)
    world.settle()
    assert world.run().state is RunState.FAILED
    assert world.run().reason == "ValueError: bad batch"


def test_a_script_that_ends_itself_is_confirmed_once_and_no_node_is_blamed() -> None:
    """Row 26: fifty restarts, over all nodes, would tell its owner no more."""
    gave_up = Failure(
        failure_class=FailureClass.UNKNOWN, reason="no data", signature="exit 1", code=1
    )
    closed = Failure(failure_class=FailureClass.CASCADE, reason="closed", signature="closed")
    world = World()
    world.submit()
    world.trained_to(25)
    for _ in range(2):
        world.die(rank=0, failure=closed, last_step=25)
        world.die(rank=1, failure=gave_up, last_step=25)
        world.settle()
    assert (world.run().state, world.run().attempt) == (RunState.FAILED, 2)
    assert world.run().reason == "no data"
    assert not any(node.faults for node in world.state.nodes.values())
    assert not world.run().avoid


def test_a_silent_exit_does_not_condemn_what_was_loaded() -> None:
    """The owner allows more tries: none of them says anything about the checkpoint."""
    gave_up = Failure(
        failure_class=FailureClass.UNKNOWN, reason="no data", signature="exit 1", code=1
    )
    world = World()
    world.submit(spec(recovery={"user": 5}))
    world.trained_to(25)
    for _ in range(3):
        world.die(failure=gave_up, last_step=25)
        world.settle()
        world.advance(61)
        world.settle()
    assert world.attempt().start_step == 20


def test_a_user_error_after_progress_earns_another_try() -> None:
    world = World()
    world.submit()
    world.trained_to(4)
    world.die(failure=USER_ERROR, last_step=4)
    world.settle()
    world.reach(9)
    world.die(failure=USER_ERROR, last_step=9)
    world.settle()
    assert world.attempt().number == 3


def test_peers_that_died_of_the_first_failure_are_not_its_cause() -> None:
    world = World()
    world.submit()
    world.trained_to(4)
    cascade = Failure(
        failure_class=FailureClass.CASCADE, reason="connection closed by peer", signature="closed"
    )
    world.die(rank=0, failure=cascade, last_step=4)
    world.die(rank=1, failure=USER_ERROR, last_step=4)
    world.settle()
    restart = world.attempt().restart
    assert restart is not None
    assert (restart.rank, restart.failure_class) == (1, FailureClass.USER_CODE)


def test_a_spike_rolls_back_to_a_good_checkpoint_from_before_its_onset() -> None:
    world = World()
    world.submit()
    world.trained_to(45)
    good = [c for c in world.state.checkpoints_of("run-1") if c.trust is Trust.GOOD]
    assert max(c.step for c in good) == 30
    world.remember(45)
    world.find(onset=41)
    world.settle()
    start = world.told("start_attempt")[-1].command
    assert [c.step for c in start.restore] == [30, 20, 10][: len(start.restore)]
    assert start.skip_batches == ()
    trusted = {c.step: c.trust for c in world.state.checkpoints_of("run-1") if c.attempt == 1}
    assert trusted.get(45, Trust.BAD) is Trust.BAD


def test_a_spike_that_comes_back_quarantines_its_batches_and_then_stops() -> None:
    world = World()
    world.submit(spec(monitors={"loss_spike": {"skip_batches": 8}}))
    world.trained_to(45)
    world.find(onset=41)
    world.trained_to(43)
    world.find(onset=41)
    world.settle()
    assert world.run().skip_batches == ((41, 48),)
    assert world.told("start_attempt")[-1].command.skip_batches == ((41, 48),)
    for _ in range(2):
        world.trained_to(43)
        world.find(onset=41)
        world.settle()
    assert world.run().state is RunState.FAILED
    assert "came back after 3 rollbacks" in world.run().reason


def test_a_blip_is_only_recorded() -> None:
    world = World()
    world.submit()
    world.trained_to(15)
    world.find(FindingKind.LOSS_BLIP, onset=12)
    assert world.attempt().state is AttemptState.RUNNING
    assert world.told("stop_attempt") == []


def test_observe_says_what_it_would_do_and_does_nothing() -> None:
    world = World()
    world.submit(spec(monitors={"loss_spike": {"action": "observe"}}))
    world.trained_to(15)
    world.find(onset=12)
    (incident,) = world.state.incidents_of("run-1")
    assert "would roll back to before step 12" in incident_remedy(incident)
    assert world.attempt().state is AttemptState.RUNNING


def test_an_unanswered_question_is_acted_on_after_its_time() -> None:
    world = World()
    world.submit(spec(monitors={"hang": {"action": "ask"}}))
    world.trained_to(15)
    world.find(FindingKind.HANG, onset=15, rank=1)
    assert world.attempt().state is AttemptState.RUNNING
    world.advance(901)
    world.settle()
    assert world.attempt().number == 2


def test_a_hang_captures_stacks_before_it_kills() -> None:
    world = World()
    world.submit()
    world.trained_to(15)
    world.find(FindingKind.HANG, onset=15, rank=1)
    assert len(world.told("capture_stacks")) == 2
    assert world.told("stop_attempt") == []
    world.settle()
    assert world.attempt().number == 2
    restart = world.attempt().restart
    assert restart is not None
    assert restart.failure_class is FailureClass.HANG


def test_stacks_that_never_come_do_not_keep_a_hang_alive() -> None:
    world = World()
    world.submit()
    world.trained_to(15)
    world.find(FindingKind.HANG, onset=15, rank=1)
    world.messages.clear()
    world.advance(9)
    world.settle()
    assert world.attempt().number == 2


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


def test_silence_of_an_agent_is_not_failure() -> None:
    world = World()
    world.submit()
    world.trained_to(5)
    worker = world.attempt().seats[0].worker
    world.do(world.event(WorkerLost, run="run-1", worker=worker, confirmed=False, reason="silent"))
    world.settle()
    assert world.attempt().state is AttemptState.RUNNING
    world.reach(world.attempt().milestone)
    assert world.run().best_step == world.attempt().step > 5


def test_a_hold_stops_all_action_until_released() -> None:
    world = World()
    world.submit()
    world.trained_to(15)
    world.do(world.event(RunHeld, run="run-1", actor="operator:ada", reason="debugging"))
    world.find(onset=12)
    assert world.attempt().state is AttemptState.RUNNING
    world.die(rank=1, last_step=15)
    world.settle()
    assert world.attempt().state is AttemptState.ENDED
    assert world.run().state is RunState.HELD
    world.do(world.event(RunReleased, run="run-1"))
    world.settle()
    assert world.attempt().number == 2


def test_holding_everything_keeps_queued_runs_where_they_are() -> None:
    world = World()
    world.do(world.event(RunHeld, run=None, actor="operator:ada", reason="network work"))
    world.submit()
    world.settle()
    assert world.agents == {}
    assert "network work" in explain(world.state, "run-1", world.now).reason
    world.do(world.event(RunReleased, run=None))
    world.settle()
    assert world.attempt().number == 1


def test_the_second_run_waits_says_for_what_and_starts_when_the_first_ends() -> None:
    world = World(nodes=2)
    world.submit(spec("first"), "run-1")
    world.trained_to(5)
    world.submit(spec("second"), "run-2")
    world.submit(spec("third", nodes=1), "run-3")
    why = explain(world.state, "run-2", world.now)
    assert (why.underlying, why.place, why.ahead) == ("no_capacity", 1, [])
    assert "first" in why.unblock
    assert explain(world.state, "run-3", world.now).ahead == ["second"]
    world.end("run-1")
    world.settle()
    assert world.attempt("run-2").number == 1
    assert "run-3" not in world.state.attempts


def test_more_than_the_cluster_has_is_refused_with_what_it_has() -> None:
    world = World(nodes=2)
    with pytest.raises(InvalidError, match="cluster has 2 nodes"):
        world.submit(spec(nodes=3))
    assert world.state.runs == {}


def test_cancel_lets_the_ranks_leave_and_ends_the_run() -> None:
    world = World()
    world.submit()
    world.trained_to(5)
    world.do(world.event(RunCancelled, run="run-1", actor="operator:ada"))
    world.settle()
    assert world.run().state is RunState.CANCELLED
    with pytest.raises(ConflictError, match="cancelled already"):
        world.do(world.event(RunCancelled, run="run-1", actor="operator:ada"))


def test_operators_restart_and_roll_back() -> None:
    world = World()
    world.submit()
    world.trained_to(35)
    world.do(world.event(RestartAsked, run="run-1", actor="operator:ada"))
    world.settle()
    assert world.attempt().number == 2
    assert world.attempt().start_step == 30
    with pytest.raises(ConflictError, match="no checkpoint of step 17"):
        world.do(world.event(RollbackAsked, run="run-1", to_step=17))
    world.do(
        world.event(RollbackAsked, run="run-1", to_step=20, skip=(21, 25), actor="operator:ada")
    )
    world.settle()
    assert (world.attempt().number, world.attempt().start_step) == (3, 20)
    assert world.run().skip_batches == ((21, 25),)


def test_a_rollback_that_skips_batches_goes_back_to_before_them() -> None:
    world = World()
    world.submit()
    world.trained_to(45)
    ask = world.event(RollbackAsked, run="run-1", skip=(25, 27), actor="operator:ada")
    world.do(ask)
    world.settle()
    assert (world.attempt().start_step, world.run().skip_batches) == (20, ((25, 27),))


def test_ranks_that_report_before_they_are_ready_do_not_upset_the_ledger() -> None:
    world = World()
    world.submit()
    late = []
    while world.messages:
        message = world.messages.pop(0)
        (late.append if message.kind == "rank_ready" else world.do)(message)
    world.reach(1)
    for message in late:
        world.do(message)
    assert world.run().ledger.bucket == "productive"


def test_a_hardware_fault_cordons_the_node() -> None:
    world = World(nodes=3)
    world.submit()
    world.trained_to(5)
    xid = Failure(failure_class=FailureClass.GPU_HARDWARE, reason="Xid 79", signature="xid 79")
    bad = world.attempt().seats[1].node
    world.die(rank=1, failure=xid, last_step=5)
    world.settle()
    assert world.state.nodes[bad].state is NodeState.CORDONED
    assert bad not in {seat.node for seat in world.attempt().seats}


def test_a_drain_moves_the_run_away() -> None:
    world = World(nodes=3)
    world.submit()
    world.trained_to(5)
    node = world.attempt().seats[0].node
    world.do(
        world.event(
            NodeChanged, node=node, state="draining", reason="firmware", actor="operator:ada"
        )
    )
    world.settle()
    assert world.attempt().number == 2
    assert node not in {seat.node for seat in world.attempt().seats}
    with pytest.raises(NotFoundError, match="no such node: node-9"):
        world.do(world.event(NodeChanged, node="node-9", state="ready", reason="x"))


def test_three_faulty_nodes_in_five_minutes_freeze_automation() -> None:
    world = World(nodes=6)
    world.submit(spec(nodes=3))
    world.trained_to(5)
    for seat in world.attempt().seats:
        world.kill_agent(seat.worker)
    world.settle()
    assert "circuit breaker: 3 of 6 nodes" in str(world.state.fleet.hold)
    assert world.attempt().number == 1
    world.do(world.event(RunReleased, run=None))
    world.settle()
    assert world.attempt().number == 2


def test_every_second_is_booked() -> None:
    world = World()
    world.submit()
    world.trained_to(20)
    world.die(rank=1, last_step=20)
    world.advance(3)
    world.settle()
    world.trained_to(30)
    seconds = totals(world.run().ledger, world.now)
    assert sum(seconds.values()) == pytest.approx(
        (world.now - world.run().submitted_at).total_seconds()
    )
    assert seconds["starting"] >= 3
    ratio = ettr(world.run().ledger, world.now)
    assert ratio is not None
    assert 0 < ratio < 1


def test_late_messages_of_an_old_attempt_change_nothing() -> None:
    world = World()
    world.submit()
    world.trained_to(5)
    world.die(rank=1, last_step=5)
    late = next(m for m in world.messages if m.kind == "attempt_stopped")
    world.settle()
    before = world.attempt()
    world.do(late)
    assert world.attempt() == before
    assert "ignored" in world.carried[-1].reason
