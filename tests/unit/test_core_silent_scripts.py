"""Scripts that never call `babysit.init()`: what is known of them comes from their output."""

from __future__ import annotations

import pytest

from jobs.events import Heartbeat, RankBeat
from jobs.spec import RunSpec
from monitors.types import FindingKind
from orchestrator.controller.sample_pipeline import RunSamplePipeline
from orchestrator.core.messages.events import StepReached
from orchestrator.core.model.states import AttemptState, RunState
from orchestrator.core.model.time_ledger import Bucket
from orchestrator.core.model.vocabulary import Response
from orchestrator.core.policy.time_limits import pause_limit
from orchestrator.core.views.build import restart_view, run_detail
from tests.world import World


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


def test_what_is_printed_does_not_make_a_script_one_that_reports() -> None:
    """A server that compares its attempts after a restart would let a spike end the run."""
    pipeline = RunSamplePipeline(RunSpec(name="a", command=("x",)))
    beats = tuple(
        RankBeat(rank=rank, step=9, phase="training", beat=1.0, alive=True, printed=rank == 1)
        for rank in (0, 1)
    )
    pipeline.heartbeat("w", Heartbeat(attempt=1, time=1.0, beats=beats), 1.0)
    assert [seen.moved for seen in pipeline.seen(1.0)] == [(0,)]
