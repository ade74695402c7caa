"""What a run learns of its pauses is kept, and taken by its next attempts and by its namesakes."""

from __future__ import annotations

import dataclasses

import pytest

from babysit.wire import Phase
from jobs.clock import ManualClock
from jobs.events import Heartbeat, RankBeat, RankSamples
from jobs.spec import RunSpec
from monitors.types import FindingKind, Pace
from orchestrator.controller.event_factory import EventFactory
from orchestrator.controller.live_state import LiveState
from orchestrator.controller.sample_columns import unpack
from orchestrator.controller.sample_pipeline import RunSamplePipeline
from orchestrator.core.messages.events import StepReached
from orchestrator.core.policy import usage_history
from orchestrator.database.memory_store import MemoryStore
from tests.unit.test_run_monitors import sample
from tests.world import World, spec, trained

LEARNED = Pace(start=700.0, pause=20.0, evaluation=300.0)


def learn(world: World, run: str = "run-1") -> None:
    attempt = world.attempt(run)
    at = world.now
    event = world.event(
        StepReached, run=run, attempt=attempt.number, step=attempt.step, at=at, pace=LEARNED
    )
    world.do(event)


def known(world: World, name: str) -> Pace | None:
    return usage_history.known_paces(world.state).get((name, "default"))


@pytest.mark.parametrize("ended", [False, True])
def test_other_runs_of_the_name_take_over_what_was_learned(ended: bool) -> None:
    world = trained(15)
    learn(world)
    if ended:
        world.end()
        world.settle()
        assert world.state.forget()
        assert not world.state.runs
    name = spec().name
    assert known(world, name) == LEARNED
    assert known(world, "another") is None


def test_the_shorter_pauses_of_a_later_attempt_take_nothing_back() -> None:
    world = trained(15)
    learn(world)
    event = world.event(
        StepReached, run="run-1", attempt=1, step=16, at=world.now, pace=Pace(start=1.0, pause=30.0)
    )
    world.do(event)
    assert world.run().pace == LEARNED.joined(Pace(pause=30.0))


async def test_the_monitors_of_a_new_run_know_the_pace_of_its_namesake() -> None:
    world = trained(15)
    learn(world)
    live = LiveState(MemoryStore(), ManualClock(), EventFactory(ManualClock()))
    live.state = world.state
    world.submit(run="run-2")
    assert live.pipeline("run-2")._monitors.pace == LEARNED


def beats(step: int, *, phase: Phase = Phase.TRAINING, first: int = 0) -> Heartbeat:
    beat = RankBeat(rank=0, step=step, phase=phase, beat=float(step), alive=True, first_step=first)
    return Heartbeat(attempt=1, time=0.0, beats=(beat,))


def test_the_core_is_told_of_new_pauses_only() -> None:
    world = trained(1)
    worker = world.attempt().seats[0].worker
    pipeline, now = RunSamplePipeline(spec()), 0.0

    def run_on(first: int, last: int, *, pause: int = 0) -> dict[str, object]:
        nonlocal now
        for step in range(first, last):
            for _ in range(1 + (pause if step == first else 0)):
                now += 1.0
                pipeline.heartbeat(worker, beats(step), now)
                pipeline.tick(world.attempt(), world.now, now)
            pipeline.observe([sample(step)])
            pipeline.note(sample(step))
        return pipeline.fields(pipeline._progress)

    run_on(1, 20)
    pace = run_on(20, 30, pause=9)["pace"]
    assert isinstance(pace, Pace)
    assert pace.pause == pytest.approx(10, abs=1)
    assert "pace" not in run_on(30, 40, pause=9)


def test_the_first_step_is_that_of_the_samples_however_late_they_are() -> None:
    """A heartbeat tells of the newest step; the first one decides what was computed again."""
    pipeline = RunSamplePipeline(spec())
    pipeline.heartbeat("worker", beats(44, first=31), 1.0)
    assert pipeline.fields(pipeline._progress)["first_step"] == 31
    pipeline = RunSamplePipeline(spec())
    pipeline.note(sample(31))
    pipeline.note(sample(44))
    assert pipeline.fields(pipeline._progress)["first_step"] == 31


def saving(steps: range, seconds: float) -> RankSamples:
    """Reports of rank 0: each step is saved, which blocks training."""
    rows = len(steps)
    times = [1000.0 * step for step in steps]
    return RankSamples(
        rank=0,
        step=[*steps],
        batch=[*steps],
        time=times,
        loss=[1.0] * rows,
        grad_norm=[1.0] * rows,
        tokens=[1.0] * rows,
        seconds=[1.0] * rows,
        blocked_seconds=[seconds] * rows,
        learning_rate=[0.1] * rows,
    )


@pytest.mark.parametrize("nodes", [2, {"min": 1, "max": 2}], ids=["fixed", "elastic"])
def test_a_new_server_compares_with_attempts_that_had_as_many_ranks(nodes: object) -> None:
    """The number of ranks of earlier attempts is not stored: only that of an elastic run varies."""
    elastic = RunSpec.model_validate(
        {"name": "a", "command": ["x"], "resources": {"nodes": nodes, "processes_per_node": 1}}
    )
    pipeline = RunSamplePipeline(elastic)
    live = dataclasses.replace(trained(1).attempt(), number=2, world_size=2)
    pipeline.rebuild([(1, saving(range(1, 21), 1.0)), (2, saving(range(21, 23), 1.0))], live)
    found = pipeline.observe(list(unpack(2, saving(range(23, 27), 60.0))))
    kinds = [each.kind for each in found]
    assert kinds == ([FindingKind.CHECKPOINT_STALL] if nodes == 2 else [])
