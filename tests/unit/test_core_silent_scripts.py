"""Scripts that never call `babysit.init()`: what is known of them comes from their output."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest

from babysit.wire import Tier
from jobs.events import (
    CheckpointDeleted,
    Heartbeat,
    RankBeat,
    RankRestored,
    RankStack,
    ShardWritten,
)
from jobs.spec import RunSpec
from monitors.types import FindingKind
from orchestrator.controller.sample_pipeline import RunSamplePipeline
from orchestrator.core.messages.events import StepReached
from orchestrator.core.model.states import AttemptState, RunState, Trust
from orchestrator.core.model.time_ledger import Bucket
from orchestrator.core.model.vocabulary import Response
from orchestrator.core.policy.silent_scripts import seconds_to_next_look
from orchestrator.core.policy.time_limits import pause_limit
from orchestrator.core.views.build import restart_view, run_detail
from tests.world import World, spec


def deliver(world: World) -> None:
    """Agents report, but no rank joins."""
    while world.messages:
        message = world.messages.pop(0)
        if message.kind not in {"rank_ready", "rank_restored"}:
            world.do(message)


def silent() -> World:
    """A run whose ranks are started and say nothing."""
    world = World()
    world.submit()
    deliver(world)
    return world


def printed(world: World, step: int, first_step: int) -> None:
    """The output shows a step."""
    attempt = world.attempt().number
    world.do(
        world.event(
            StepReached,
            run="run-1",
            attempt=attempt,
            step=step,
            first_step=first_step,
            blocked_seconds=0.0,
        )
    )


@pytest.mark.parametrize("startup", [5, 90], ids=["at once", "after it counted as silent"])
def test_a_restart_knows_where_the_script_resumed(startup: int) -> None:
    """A script that resumes by itself at 40 loses 20 steps, however long it took to start."""
    world = silent()
    world.advance(startup)
    printed(world, 1, 1)
    world.advance(30)
    printed(world, 60, 1)
    world.die()
    deliver(world)
    world.advance(2)
    deliver(world)
    world.advance(startup)
    printed(world, 41, 41)
    assert world.run().ledger.bucket is Bucket.LOST
    printed(world, 61, 41)
    restart = world.attempt().restart
    assert restart is not None
    assert (restart.resumed_step, restart.lost_steps) == (40, 20)
    assert world.run().ledger.bucket is Bucket.PRODUCTIVE
    assert restart.recovered_at is not None
    took = (restart.recovered_at - restart.failed_at).total_seconds()
    assert sum(v for v in restart_view(restart).seconds.values() if v) == pytest.approx(took)


def test_spikes_are_recorded_only() -> None:
    """Such a script cannot be sent back to a checkpoint; its hangs are ended as others' are."""
    world = silent()
    printed(world, 60, 1)
    for kind in (FindingKind.LOSS_SPIKE, FindingKind.NON_FINITE):
        world.find(kind, onset=55)
    assert world.attempt().state is AttemptState.RUNNING
    assert {i.response for i in world.state.incidents_of("run-1")} == {Response.OBSERVED}


def test_a_run_without_a_step_does_not_claim_one() -> None:
    """Its end says that no step is known."""
    world = silent()
    world.advance(61)
    world.end()
    assert world.run().state is RunState.SUCCEEDED
    assert world.run().reason == "every rank ended well; no step is known"


def test_a_script_that_starts_slowly_is_not_called_one_without_babysit() -> None:
    """After a minute nobody knows whether it will call `babysit.init()`; the reason follows it."""
    world = World()
    world.submit()
    late = []
    while world.messages:
        message = world.messages.pop(0)
        if message.kind in {"rank_ready", "rank_restored"}:
            late.append(message)
        else:
            world.do(message)
    world.advance(61)
    assert "has not called babysit.init() yet" in world.run().reason
    for message in late:
        world.do(message)
    assert world.run().reason == "its ranks have called babysit.init(); no step has ended yet"
    world.reach(1)
    assert world.run().reason == "training, attempt 1 from the beginning"


def test_a_first_step_after_the_silence_ends_its_reason() -> None:
    world = silent()
    world.advance(61)
    printed(world, 1, 1)
    assert world.run().reason == "training, attempt 1 from the beginning"


def test_a_run_that_has_ended_is_not_suspect() -> None:
    """Its last line may be long before its end; the silence does not grow for ever."""
    world = silent()
    printed(world, 60, 1)
    world.find(FindingKind.HANG, onset=60)

    def shown() -> object:
        attempts = [world.attempt()]
        return run_detail(world.run(), attempts, [], [], now=world.now).suspect

    assert shown() is not None
    world.end()
    assert world.run().state is RunState.SUCCEEDED
    assert shown() is None


@pytest.mark.parametrize(
    ("hang", "starting", "longest", "longest_start", "limit"),
    [
        ({}, False, 2.0, 0.0, 1800),  # one that reports has 60 s
        ({}, True, 0.0, 5.0, 1800),
        ({}, True, 0.0, 1500.0, 4500),  # lines far apart, as with every hundredth iteration
        ({"after": 90}, False, 2.0, 0.0, 90),
    ],
)
def test_silence_between_lines_proves_little(
    hang: dict[str, float], starting: bool, longest: float, longest_start: float, limit: float
) -> None:
    """An evaluation prints nothing, and nobody says that it is one."""
    spec = RunSpec(name="a", command=("x",), monitors={"hang": hang})  # type: ignore[arg-type]
    granted = pause_limit(
        spec, longest=longest, starting=starting, longest_start=longest_start, printed=True
    )
    assert granted == limit


def look_at(world: World, seconds: float) -> None:
    """Time passes, and agents answer; no rank joins."""
    for _ in range(int(seconds // 15)):
        world.advance(15)
        deliver(world)


def mute(look: Callable[[int], RankStack]) -> World:
    """A run that has said nothing for half a minute, as the hang monitor finds."""
    world = World()
    world.look = look
    world.submit()
    deliver(world)
    world.find(FindingKind.HANG, onset=0, evidence={"starting": True})
    deliver(world)
    return world


def stopped(rank: int) -> RankStack:
    state = "T" if rank == 1 else "S"
    return RankStack(rank=rank, process_state=state, frames=("main (train.py:3)",))


def in_the_driver(rank: int) -> RankStack:
    frames = ("forward (train.py:3)",)
    return RankStack(rank=rank, process_state="D", wait_channel="uvm_wait", frames=frames)


def without_its_first_thread(rank: int) -> RankStack:
    return RankStack(rank=rank, process_state="Z")


def in_one_collective(rank: int) -> RankStack:
    frames = ("all_reduce (distributed_c10d.py:9)", "main (train.py:3)")
    return RankStack(rank=rank, process_state="S", frames=frames)


def test_a_rank_that_stands_still_ends_a_script_that_never_spoke() -> None:
    world = mute(stopped)
    assert world.attempt().number == 1, "a second look must say the same"
    look_at(world, 15)
    restart = world.attempt().restart
    assert restart is not None
    assert (world.attempt().number, restart.rank) == (2, 1)
    assert "rank 1 is stopped" in restart.reason


@pytest.mark.parametrize("look", [in_the_driver, without_its_first_thread, in_one_collective])
def test_a_script_that_never_speaks_is_left_alone(look: Callable[[int], RankStack]) -> None:
    """A healthy rank may be met there at every look; nobody hears of its silence."""
    world = mute(look)
    look_at(world, 3 * 3600)
    assert world.attempt().number == 1
    assert world.state.incidents_of("run-1") == []
    assert world.run().state is RunState.RUNNING
    shown = run_detail(world.run(), [world.attempt()], [], [], now=world.now)
    assert shown.suspect is None


def test_a_rank_that_was_met_at_rest_once_has_not_hung() -> None:
    looks = itertools.count()
    world = mute(lambda rank: stopped(rank) if next(looks) % 4 < 2 else in_one_collective(rank))
    look_at(world, 3600)
    assert world.attempt().number == 1


def test_a_build_lock_is_shown_before_the_first_word() -> None:
    lock = "a build lock of torch extensions, /x/lock, held by process 7"
    frames = ("wait (file_baton.py:9)", "main (train.py:3)")
    world = mute(
        lambda rank: RankStack(rank=rank, process_state="S", frames=frames, waits_for=lock)
    )
    shown = run_detail(world.run(), [world.attempt()], [], [], now=world.now)
    assert shown.suspect is not None
    assert lock in shown.suspect.evidence


def test_looks_at_a_script_that_never_speaks_grow_rare() -> None:
    assert seconds_to_next_look(30) == 15
    assert seconds_to_next_look(1000) == 100
    assert seconds_to_next_look(1e6) == 600


def test_what_is_printed_does_not_make_a_script_one_that_reports() -> None:
    """A server that compares its attempts after a restart would let a spike end the run."""
    pipeline = RunSamplePipeline(RunSpec(name="a", command=("x",)))
    beats = tuple(
        RankBeat(rank=rank, step=9, phase="training", beat=1.0, alive=True, printed=rank == 1)
        for rank in (0, 1)
    )
    pipeline.heartbeat("w", Heartbeat(attempt=1, time=1.0, beats=beats), 1.0)
    assert [seen.moved for seen in pipeline.seen(1.0)] == [(0,)]


def own_checkpoints(**resume: object) -> World:
    """A run whose script saves by itself, and is given a checkpoint as an argument."""
    world = World()
    found = {"args": ["--resume", "{checkpoint}"], "checkpoints": "/out/{step}", **resume}
    checkpoint = {"directory": None, "good_after_steps": 10, "keep": 1}
    world.submit(spec(resume=found, checkpoint=checkpoint))
    deliver(world)
    printed(world, 1, 1)
    return world


def saved(world: World, step: int) -> str:
    """The agent with rank 0 has found a checkpoint of the script."""
    attempt = world.attempt()
    shard = world.shard(attempt, step, 0, Tier.DIRECTORY)
    shard = shard.model_copy(update={"world_size": 1, "path": f"/out/{step}"})
    seat = attempt.seats[0]
    fields = {"run": "run-1", "worker": seat.worker, "attempt": attempt.number}
    world.do(world.event(ShardWritten, **fields, shard=shard))
    deliver(world)
    return f"run-1/{attempt.number}/directory/{step}"


def given(world: World, step: int, checkpoint: str) -> None:
    """The agents have passed a checkpoint to the script."""
    attempt = world.attempt()
    for seat in attempt.seats:
        for rank in seat.ranks:
            fields = {"run": "run-1", "worker": seat.worker, "attempt": attempt.number}
            world.do(
                world.event(RankRestored, **fields, rank=rank, step=step, checkpoint=checkpoint)
            )


@pytest.mark.parametrize(
    ("place", "source"),
    [
        # Written again and again: the script opens it, and no agent need have seen it whole.
        ("/out/ckpt.pt", "where its script resumes"),
        # The script is given a path, and there is none yet.
        ("/out/{step}", "the beginning"),
    ],
)
def test_a_restart_says_what_the_script_starts_from(place: str, source: str) -> None:
    world = own_checkpoints(args=["--resume"], checkpoints=place)
    world.die()
    deliver(world)
    assert f"attempt 2 starts from {source} on " in world.run().reason


def test_a_spike_sends_a_script_back_to_a_checkpoint_of_its_own() -> None:
    world = own_checkpoints()
    first = saved(world, 10)
    second = saved(world, 30)
    printed(world, 40, 1)
    assert world.state.checkpoints[first].trust is Trust.GOOD
    world.find(FindingKind.LOSS_SPIKE, onset=25)
    deliver(world)
    world.advance(2)
    deliver(world)
    attempt = world.attempt()
    assert attempt.number == 2
    assert attempt.candidates[0] == first
    assert world.state.checkpoints[second].superseded
    given(world, 10, first)
    assert world.run().ledger.bucket is Bucket.STARTING, "it has been given a step, not ended one"
    printed(world, 11, 11)
    assert world.run().ledger.bucket is Bucket.LOST
    printed(world, 41, 11)
    restart = world.attempt().restart
    assert restart is not None
    assert (restart.resumed_step, restart.lost_steps) == (10, 30)
    assert restart.recovered_at is not None


def test_a_script_that_begins_anew_although_it_was_given_a_checkpoint_has_lost_its_work() -> None:
    world = own_checkpoints()
    checkpoint = saved(world, 30)
    printed(world, 40, 1)
    world.die()
    deliver(world)
    world.advance(2)
    deliver(world)
    given(world, 30, checkpoint)
    printed(world, 31, 1)
    printed(world, 41, 1)
    restart = world.attempt().restart
    assert restart is not None
    assert (restart.resumed_step, restart.lost_steps) == (0, 40)


@pytest.mark.parametrize(("keep", "deleted"), [(None, 0), (1, 1)])
def test_a_scripts_own_checkpoints_are_deleted_only_where_the_spec_says_so(
    keep: int | None, deleted: int
) -> None:
    world = own_checkpoints(**({"keep": keep} if keep else {}))
    for step in (10, 20, 30, 40):
        saved(world, step)
        printed(world, step + 10, 1)
    orders = list(world.told("delete_checkpoint"))
    assert bool(orders) is bool(deleted)


def test_what_a_script_deletes_is_not_offered_again() -> None:
    world = own_checkpoints()
    first, second = saved(world, 10), saved(world, 20)
    seat = world.attempt().seats[0]
    fields = {"run": "run-1", "worker": seat.worker, "attempt": 1}
    world.do(world.event(CheckpointDeleted, **fields, checkpoint=second, by_script=True))
    world.die()
    deliver(world)
    world.advance(2)
    deliver(world)
    assert world.attempt().candidates == (first,)
    assert world.state.checkpoints[second].trust is not Trust.BAD
