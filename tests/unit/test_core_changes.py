"""Announced changes of the loss, in the core and on their way to the monitors."""

from __future__ import annotations

from jobs.events import ChangeAnnounced
from orchestrator.controller.sample_pipeline import RunSamplePipeline
from orchestrator.core.messages.instructions import Record
from tests.unit.test_run_monitors import sample
from tests.world import World, spec, trained


def announced(world: World) -> ChangeAnnounced:
    event = world.event(
        ChangeAnnounced,
        run="run-1",
        worker=world.attempt().seats[0].worker,
        attempt=world.attempt().number,
        rank=1,
        change="new data mix",
        step=99,
        until_step=200,
    )
    assert isinstance(event, ChangeAnnounced)
    return event


def test_an_announced_change_is_recorded_and_changes_nothing() -> None:
    world = trained(5)
    before = world.attempt()
    world.do(announced(world))
    records = [i.reason for i in world.carried if isinstance(i, Record)]
    assert any("rank 1 announced new data mix until step 200" in reason for reason in records)
    assert world.attempt() == before
    assert world.state.incidents_of("run-1") == []


def test_an_announced_change_reaches_the_monitors_of_ranks_that_did_not_announce_it() -> None:
    def spikes(*, told: bool) -> int:
        pipeline = RunSamplePipeline(spec())
        pipeline.observe([sample(step) for step in range(1, 100)])
        if told:
            pipeline.expect(announced(trained(5)))
        return len(pipeline.observe([sample(step, 5.0) for step in range(100, 130)]))

    assert spikes(told=False) == 1
    assert spikes(told=True) == 0
