"""Hangs: silence makes a run suspect, evidence convicts it, a generous limit ends the rest."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest

from jobs.commands import CaptureStacks, StopAttempt
from jobs.events import RankStack, StacksCaptured
from monitors.failures import FailureClass
from monitors.flight_recorder import Call, GroupRecord
from monitors.types import FindingKind
from orchestrator.core.messages.events import (
    IncidentChanged,
    ProgressSeen,
    RunHeld,
    RunReleased,
)
from orchestrator.core.messages.instructions import Notify
from orchestrator.core.model.states import AttemptState, IncidentState
from orchestrator.core.model.time_ledger import Bucket, totals
from orchestrator.core.model.vocabulary import Response
from orchestrator.core.policy.time_limits import pause_limit
from orchestrator.core.supervision import hangs
from orchestrator.core.views.build import incident_view
from orchestrator.core.views.remedy_text import incident_remedy
from orchestrator.judgement.truth import is_proven_hang
from tests.matching import command
from tests.world import World, reloaded, spec, trained
from tests.world_cluster import sleeping, stopped


def test_a_hang_is_looked_at_before_it_kills() -> None:
    world = trained(15)
    world.find(FindingKind.HANG, onset=15, rank=1)
    workers = [seat.worker for seat in world.attempt().seats]
    assert all(command(CaptureStacks, worker=worker) in world.carried for worker in workers)
    assert command(StopAttempt) not in world.carried
    assert world.attempt().suspect is not None
    world.settle()
    assert all(command(StopAttempt, worker=worker) in world.carried for worker in workers)
    assert world.attempt().number == 2
    assert world.attempt().suspect is None
    restart = world.attempt().restart
    assert restart is not None
    assert restart.failure_class is FailureClass.HANG
    assert "rank 1 is stopped" in restart.reason
    assert restart.node == "node-2"
    (hang,) = (i for i in world.state.incidents_of("run-1") if i.kind == FindingKind.HANG)
    assert is_proven_hang(incident_view(hang)), "a backtest knows it"


def test_a_flight_recorder_names_the_rank_that_the_stacks_do_not() -> None:
    """All ranks wait in one collective; rank 1 has entered one less. That proves no hang yet."""
    world = trained(15)

    def all_reduce(rank: int) -> RankStack:
        waits = rank != 1
        last = Call(number=9 if waits else 8, operation="nccl:all_reduce", ended=not waits)
        frames = ("all_reduce (distributed_c10d.py:9)", "main (train.py:3)")
        groups = (GroupRecord(group="0 default_pg", calls=(last,)),)
        return RankStack(rank=rank, process_state="S", frames=frames, groups=groups)

    world.look = all_reduce
    world.find(FindingKind.HANG, onset=15)
    world.settle()
    suspect = world.attempt().suspect
    assert suspect is not None
    assert suspect.sentence == (
        "flight recorder: rank 0 in nccl:all_reduce no. 9 of group 0 default_pg; rank 1 has not"
        " entered it; the last one there is nccl:all_reduce no. 8"
    )
    world.advance(61)
    world.settle()
    restart = world.attempt().restart
    assert restart is not None
    assert (world.attempt().number, restart.rank, restart.node) == (2, 1, None)
    assert suspect.sentence in restart.reason


def went_on(world: World, kind: FindingKind) -> object:
    """What the evidence of the run's only incident of a kind says; backtests read it."""
    (found,) = (i for i in world.state.incidents_of("run-1") if i.kind == kind)
    return found.evidence.get("went_on")


def slow(world: World) -> list[str]:
    """The incidents `slow` of the run, by state."""
    return [i.state for i in world.state.incidents_of("run-1") if i.kind == FindingKind.SLOW]


def test_a_rank_that_may_go_on_is_left_alone_until_the_limit() -> None:
    world = trained(15)
    world.look = sleeping(1)
    world.find(FindingKind.HANG, onset=15, rank=1)
    world.settle()
    for _ in range(10):
        world.advance(5)
        world.settle()
        assert world.attempt().number == 1
    assert slow(world) == [IncidentState.OPEN]
    suspect = world.attempt().suspect
    assert suspect is not None
    assert suspect.limit_seconds == 60
    assert "rank 1 waits in validate (train.py:70)" in suspect.sentence
    world.advance(12)
    world.settle()
    assert world.attempt().number == 2
    assert slow(world) == [IncidentState.RESOLVED]
    assert went_on(world, FindingKind.SLOW) is False
    restart = world.attempt().restart
    assert restart is not None
    assert restart.node is None, "a pause blames no node"


def test_what_is_stopped_later_is_convicted_at_the_next_look() -> None:
    world = trained(15)
    world.look = sleeping(1)
    world.find(FindingKind.HANG, onset=15, rank=1)
    world.settle()
    world.look = stopped(0)
    world.advance(16)
    world.settle()
    assert world.attempt().number == 2
    assert world.attempt().restart.rank == 0  # type: ignore[union-attr]


@pytest.mark.parametrize("how", ["step", "beat"])
def test_a_pause_that_ends_by_itself_costs_what_it_cost(how: str) -> None:
    world = trained(15)
    world.look = sleeping(1)
    world.find(FindingKind.HANG, onset=15, rank=1)
    world.settle()
    world.advance(30)
    world.settle()
    productive = totals(world.run().ledger, world.now)[Bucket.PRODUCTIVE]
    if how == "step":
        world.reach(world.attempt().milestone)
    else:
        world.do(world.event(ProgressSeen, run="run-1", attempt=1))
    assert world.attempt().suspect is None
    assert slow(world) == [IncidentState.RESOLVED]
    assert went_on(world, FindingKind.SLOW) is True
    seconds = totals(world.run().ledger, world.now)
    assert seconds[Bucket.STALLED] >= 30
    assert seconds[Bucket.PRODUCTIVE] < productive
    world.advance(3600)
    world.settle()
    assert world.attempt().number == 1, "no timer of the suspicion is left"


def test_a_pause_that_was_ended_is_granted_twice_as_much_and_then_people_are_asked() -> None:
    """The same pause at the same place: a restart did not help, so it is part of the training."""
    world = trained(15)
    world.look = sleeping(1)

    def silent_until_restart(*, goes_on: bool = True) -> float:
        attempt, begun = world.attempt().number, world.now
        world.find(FindingKind.HANG, onset=15, rank=1)
        while world.attempt().number == attempt and (world.now - begun).total_seconds() < 2000:
            world.settle()
            world.advance(2)
        world.settle()
        if goes_on:
            world.reach(world.attempt().milestone)
        return (world.now - begun).total_seconds()

    assert 60 <= silent_until_restart() < 100
    pages = [i for i in world.carried if isinstance(i, Notify)]
    assert 120 + 900 <= silent_until_restart() < 120 + 1000, "asked, and not answered"
    asked = [i for i in world.carried if isinstance(i, Notify) and i not in pages]
    assert any("Shall I restart from step 1" in notice.text for notice in asked)
    assert silent_until_restart(goes_on=False) >= 2000, (
        "tried twice in vain: nothing is done without an answer"
    )
    assert world.attempt().number == 3
    (open_,) = [i for i in world.state.incidents_of("run-1") if i.state is IncidentState.OPEN]
    assert incident_remedy(open_) == "asked; would restart from step 10"
    world.do(world.event(RunHeld, run="run-1"))
    world.do(world.event(RunReleased, run="run-1"))
    world.advance(10_000)
    world.settle()
    assert world.attempt().number == 3, "the release of a hold is no answer"


@pytest.mark.parametrize("phase", ["training", "finished"])
@pytest.mark.parametrize(
    ("channel", "seconds"),
    [("futex_do_wait", 0), ("hrtimer_nanosleep", 60)],
    ids=["stuck", "works"],
)
def test_a_rank_that_died_of_an_exception_is_judged_by_it(
    phase: str, channel: str, seconds: int
) -> None:
    """Its loop was left, so it may look like a run that lingers after its last step."""
    world = trained(15)
    trace = "Traceback (most recent call last):\n  File \"t.py\", line 1, in f\nKeyError: 'x'\n"
    facts = {"raised": trace, "wait_channel": channel}
    seen = sleeping(1)
    world.look = lambda rank: seen(rank).model_copy(update=facts if rank == 1 else {})
    ranks = [{"rank": r, "phase": phase, "step": 15, "silent_seconds": 31} for r in (0, 1)]
    world.find(FindingKind.HANG, onset=15, rank=1, evidence={"ranks": ranks, "starting": True})
    world.settle()
    if seconds:
        assert world.attempt().number == 1
        world.advance(seconds + 5)
        world.settle()
    restart = world.attempt().restart
    assert restart is not None
    assert (restart.failure_class, restart.node) == (FailureClass.USER_CODE, None)
    assert restart.reason.startswith("KeyError: 'x' (hang since step 15")


def test_a_stated_limit_ends_a_pause() -> None:
    world = trained(15, monitors={"hang": {"after": 20}})
    world.look = sleeping(1)
    world.find(FindingKind.HANG, onset=15, rank=1)
    world.settle()
    world.advance(21)
    world.settle()
    assert world.attempt().number == 2


def test_stacks_that_never_come_do_not_keep_a_hang_alive() -> None:
    world = trained(15)
    world.find(FindingKind.HANG, onset=15, rank=1)
    world.messages.clear()
    world.advance(9)
    assert slow(world) == [IncidentState.OPEN], "no answer is no proof"
    for _ in range(6):
        world.messages.clear()
        world.advance(10)
    world.settle()
    assert world.attempt().number == 2


def test_an_unanswered_question_is_acted_on_after_its_time() -> None:
    world = trained(15, monitors={"hang": {"action": "ask"}})
    world.find(FindingKind.HANG, onset=15, rank=1)
    world.settle()
    assert world.attempt().state is AttemptState.RUNNING
    world.advance(901)
    world.settle()
    assert world.attempt().number == 2


@pytest.mark.parametrize("goes_on", [False, True])
def test_a_hang_that_a_person_called_over_is_asked_about_again_while_it_lasts(
    goes_on: bool,
) -> None:
    world = trained(15, **ask_spec("hang"))
    world.find(FindingKind.HANG, onset=15, rank=1)
    world.settle()
    (asked,) = world.state.incidents_of("run-1")
    resolved = IncidentState.RESOLVED
    event = world.event(IncidentChanged, incident=asked.id, state=resolved, actor="operator:ann")
    world.do(event)
    if goes_on:
        world.reach(world.attempt().milestone)
    world.advance(hangs.CALLED_OVER_SECONDS + 1)
    world.settle()
    again = [i for i in world.state.incidents_of("run-1") if i.state is not resolved]
    assert [i.response for i in again] == ([] if goes_on else [Response.ASKED])
    world.advance(901)
    world.settle()
    assert world.attempt().number == (1 if goes_on else 2)


def ask_spec(monitor: str) -> dict[str, object]:
    return {"monitors": {monitor: {"action": "ask"}}}


def test_an_unanswered_question_about_a_start_that_hangs_is_acted_on() -> None:
    world = World()
    world.submit(spec(**ask_spec("hang")))
    world.settle()
    assert world.attempt().state is AttemptState.STARTING
    world.find(FindingKind.HANG, onset=0)
    world.settle()
    world.advance(905)
    world.settle()
    assert world.attempt().number == 2


def silent_from_the_start(world: World, seconds: int, known: float = 0.0) -> World:
    """No step has ever ended, and the looks at the ranks say nothing new for a time."""
    world.settle()
    evidence = {"starting": True, "longest_start_seconds": known}
    world.find(FindingKind.HANG, onset=0, evidence=evidence)
    world.settle()
    for _ in range(seconds // 15):
        world.advance(15)
        world.settle()
    return world


def starting(look: Callable[[int], RankStack], **fields: object) -> World:
    world = World()
    world.look = look
    world.submit(spec(**fields))
    return world


def all_asleep(rank: int) -> RankStack:
    """A look at a rank of a script that trains without a collective, and reports nothing."""
    return sleeping(rank)(rank)


@pytest.mark.parametrize("look", [sleeping(1), all_asleep])
def test_silence_alone_never_ends_a_run_that_has_not_ended_a_step(
    look: Callable[[int], RankStack],
) -> None:
    """Its data may take an hour to prepare; or it trains, and reports nothing."""
    world = silent_from_the_start(starting(look), 4 * 3600)
    assert world.attempt().number == 1
    (incident,) = [i for i in world.state.incidents_of("run-1") if i.kind == FindingKind.HANG]
    assert (incident.state, incident.response) == (IncidentState.OPEN, Response.ASKED)
    (page,) = [i for i in world.carried if isinstance(i, Notify) and i.incident == incident.id]
    assert "never reported a step" in page.text
    world.reach(1)
    assert [i.state for i in world.state.incidents_of("run-1")] == [IncidentState.RESOLVED] * 2


@pytest.mark.parametrize(
    ("look", "fields", "known"),
    [
        (sleeping(1), {"monitors": {"hang": {"starting": 120}}}, 0.0),  # its owner has set a limit
        (sleeping(1), {}, 20.0),  # other runs of the name have ended a step after 20 s
        (stopped(1), {}, 0.0),
        (sleeping(-1), {}, 0.0),  # all wait in one collective
    ],
)
def test_evidence_or_a_stated_limit_ends_a_run_that_has_not_ended_a_step(
    look: Callable[[int], RankStack], fields: dict[str, object], known: float
) -> None:
    world = silent_from_the_start(starting(look, **fields), 700, known)
    assert world.attempt().number > 1


def hear_of(world: World, step: int) -> None:
    """The core is told how far the run has come, as before a request of a user."""
    world.reach(step)
    world._tell_progress("run-1")


def test_late_news_of_a_step_before_the_silence_is_no_sign_of_life() -> None:
    """The core hears of steps at milestones, and before a request of a user: of old ones then."""
    world = trained(15)
    world.find(FindingKind.HANG, onset=15)  # the furthest rank had ended step 18 by then
    hear_of(world, 18)
    assert world.attempt().suspect is not None
    world.settle()
    assert world.attempt().number == 2


@pytest.mark.parametrize("action", ["observe", "ask"])
def test_a_hang_that_is_left_to_users_stays_open_until_a_new_step(action: str) -> None:
    world = trained(15, monitors={"hang": {"action": action}})
    ranks = [{"rank": 0, "step": 16, "phase": "training"}, {"rank": 1, "step": 15, "phase": "save"}]
    world.find(FindingKind.HANG, onset=15, evidence={"ranks": ranks})
    world.settle()

    def states() -> list[IncidentState]:
        return [i.state for i in world.state.incidents_of("run-1") if i.kind == FindingKind.HANG]

    assert states() == [IncidentState.OPEN]
    hear_of(world, 16)
    assert states() == [IncidentState.OPEN]
    hear_of(world, 17)
    assert states() == [IncidentState.RESOLVED]
    assert went_on(world, FindingKind.HANG) is True
    assert world.attempt().number == 1


def test_a_question_is_dropped_when_the_run_goes_on_by_itself() -> None:
    world = trained(30, **ask_spec("hang"))
    world.find(FindingKind.HANG, onset=30)
    world.settle()
    world.reach(world.attempt().milestone)
    world.advance(1000)
    world.settle()
    assert world.attempt().number == 1


def test_a_run_that_lingers_after_its_last_step_is_told_and_not_restarted() -> None:
    """An upload at the end: people hear of it, and are asked before anything is done."""
    world = trained(15)
    world.look = sleeping(1)
    ranks = [{"rank": r, "phase": "finished", "step": 15, "silent_seconds": 31} for r in (0, 1)]
    world.find(FindingKind.HANG, onset=15, evidence={"ranks": ranks})
    world.settle()
    assert slow(world) == [IncidentState.OPEN]
    for _ in range(170):
        world.advance(10)
        world.settle()
    assert world.attempt().number == 1
    for _ in range(20):
        world.advance(10)
        world.settle()
    asked = [i for i in world.carried if isinstance(i, Notify)]
    assert any("Shall I restart from step 1" in notice.text for notice in asked)
    assert world.attempt().number == 1


@pytest.mark.parametrize(
    ("longest", "starting", "longest_start", "limit"),
    [
        (0.0, False, 0.0, 60),  # nothing was seen: the floor
        (20.0, False, 0.0, 200),  # ten times the longest pause
        (900.0, False, 0.0, 1800),  # half an hour at most
        (0.0, True, 0.0, 600),  # the first start: what the spec says
        (0.0, True, 8.0, 80),  # a later one: ten times the longest
        (0.0, True, 100.0, 600),  # but not more than the spec says
        (0.0, True, 700.0, 1400),  # unless starts that took longer ended by themselves
        (0.0, True, 1200.0, 1800),  # half an hour at most
    ],
)
def test_the_limit_of_a_pause(
    longest: float, starting: bool, longest_start: float, limit: float
) -> None:
    granted = pause_limit(spec(), longest=longest, starting=starting, longest_start=longest_start)
    assert granted == limit


def test_looks_that_were_lost_with_a_server_convict_nobody() -> None:
    """Looks are in memory only; their ranks must not pass for absent under the next leader."""
    world = trained(15)
    world.look = sleeping(1)
    world.find(FindingKind.HANG, onset=15, rank=1)
    seats = world.attempt().seats
    world.messages.clear()
    world.orders.clear()
    world.do(
        world.event(
            StacksCaptured,
            run="run-1",
            worker=seats[0].worker,
            attempt=1,
            stacks=(sleeping(1)(0),),
        )
    )
    assert [stack.rank for stack in world.attempt().stacks] == [0]
    world.state = reloaded(world.state)
    assert world.attempt().stacks == (), "not in the row of the attempt"
    world.carried.clear()
    world.advance(9)
    assert world.attempt().number == 1
    assert all(command(CaptureStacks, worker=seat.worker) in world.carried for seat in seats)
    world.settle()
    assert slow(world) == [IncidentState.OPEN], "judged by the looks at all ranks"


def test_the_evidence_of_a_large_world_has_one_look_of_each_kind() -> None:
    """And the odd rank is among them, however many look alike."""
    attempt = dataclasses.replace(
        trained(15).attempt(), stacks=tuple(map(sleeping(700), reversed(range(1000))))
    )
    looks = hangs._looks(attempt)
    assert [look["rank"] for look in looks] == [700, 0]
    assert [len(look["alike"]) for look in looks] == [1, 999]
    small = dataclasses.replace(attempt, stacks=tuple(map(sleeping(7), range(hangs.LOOKS_KEPT))))
    assert [look["rank"] for look in hangs._looks(small)] == list(range(hangs.LOOKS_KEPT))
