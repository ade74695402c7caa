"""What a run learns of its loss is kept with the run, and outlives a restart of the server."""

from __future__ import annotations

import datetime as dt

import numpy as np
import pytest

from benchmarks.support.loss_repeats import REPEATING
from benchmarks.support.loss_rollbacks import Habits, drawn_rises, played
from benchmarks.support.loss_verdicts import sample_of
from jobs.clock import ManualClock
from monitors.answered import Acted, Height
from monitors.loss import LossMonitor
from monitors.loss_memory import LossMemory
from orchestrator.controller.event_factory import EventFactory
from orchestrator.controller.live_state import SAMPLES_TO_REBUILD, LiveState
from orchestrator.controller.sample_pipeline import RunSamplePipeline
from orchestrator.core.messages.events import StepReached
from orchestrator.database.mapping import RUNS
from orchestrator.database.memory_store import MemoryStore
from tests.world import spec, trained

MAKERS = (drawn_rises, *REPEATING)


def spikes(pipeline: RunSamplePipeline, losses: np.ndarray, first: int) -> list[int]:
    found = []
    for step, loss in enumerate(losses, first):
        sample = sample_of(step, float(loss))
        found += [f.onset_step for f in pipeline.observe([sample]) if f.kind == "loss_spike"]
        pipeline.note(sample)
    return found


def told(pipeline: RunSamplePipeline) -> str:
    return str(pipeline.fields(pipeline._progress).get("learned", ""))


@pytest.mark.parametrize("maker", MAKERS, ids=lambda maker: maker.__name__)
def test_a_new_server_knows_rises_from_before_the_samples_that_it_is_fed(maker):
    series = maker(np.random.default_rng(11))
    restart = (series.rises[3] + series.rises[4]) // 2
    before = RunSamplePipeline(spec())
    assert len(spikes(before, series.losses[:restart], 1)) <= 2
    tail = max(0, restart - SAMPLES_TO_REBUILD)
    after = RunSamplePipeline(spec(), learned=told(before))
    spikes(after, series.losses[tail:restart], tail + 1)
    assert spikes(after, series.losses[restart:], restart + 1) == []


def test_a_new_server_knows_that_two_rollbacks_were_made():
    """Without that, the third rise would be acted on at its third step."""
    losses = 2.0 + 0.01 * np.random.default_rng(3).standard_normal(9000)
    for start in (400, 4400, 8400):
        losses[start : start + 12] *= 1.5
    monitor = LossMonitor()
    acts, came = played(losses[:8300], Habits("without"), monitor)
    assert [act.onset for act in acts] == [401, 4401]
    third = [*came[-SAMPLES_TO_REBUILD:], *losses[8300:]]
    for known, kinds in ((monitor.memory.text(), {"loss_blip"}), ("", {"loss_spike"})):
        later = LossMonitor(known=LossMemory.read(known))
        found = [
            finding
            for step, loss in enumerate(third, 8301 - SAMPLES_TO_REBUILD)
            for finding in later.observe(sample_of(step, float(loss), attempt=3))
        ]
        assert {finding.kind for finding in found} == kinds
        assert found[0].onset_step == 8401


def test_an_act_that_was_told_is_undone_by_the_next_attempt_only():
    """The server restarts between the finding and the rollback that it leads to."""
    calm = 2.0 + 0.01 * np.random.default_rng(0).standard_normal(400)
    before = LossMonitor()
    for step, loss in enumerate([*calm, 3.0, 3.0, 3.0], 1):
        before.observe(sample_of(step, float(loss)))
    assert len(before.memory.acted) == 1
    after = LossMonitor(known=LossMemory.read(before.memory.text()))
    after.observe(sample_of(404, 3.0))
    assert (len(after.memory.acted), len(after.memory.undone)) == (1, 0)
    after.reset(2, 300)
    assert (len(after.memory.acted), len(after.memory.undone)) == (0, 1)


@pytest.mark.parametrize("places", [(500, 500), (200, 350)])
@pytest.mark.parametrize("rise", [0.8, 8.0])
def test_a_divergence_is_acted_on_however_long_the_last_respite_was(places, rise):
    """Each respite is three times as long as the last; without a limit, one would last for ever."""
    undone = [
        (number, Acted(place, place, Height(rise, 2.0), growing=True, took=30_000))
        for number, place in enumerate(places, 1)
    ]
    monitor = LossMonitor(known=LossMemory(undone=tuple(undone)))
    losses = 2.0 + 0.02 * np.random.default_rng(0).standard_normal(5_000)
    losses[500:] += rise
    found = [
        finding
        for step, loss in enumerate(losses)
        for finding in monitor.observe(sample_of(step, float(loss), attempt=3))
    ]
    (acted,) = [f for f in found if f.kind == "loss_spike"]
    assert found[0].evidence["reports"] == 4096
    assert acted.onset_step == 500
    assert acted.detected_step <= 500 + 4096 + 1
    assert acted.detected_step <= found[0].evidence["until_step"]


def test_a_rise_that_comes_back_in_its_respite_is_told_to_be_over():
    undone = [(n, Acted(200 * n, 200 * n, Height(0.8, 2.0), False, 3)) for n in (1, 2)]
    monitor = LossMonitor(known=LossMemory(undone=tuple(undone)))
    losses = 2.0 + 0.02 * np.random.default_rng(0).standard_normal(1_000)
    losses[500:600] += 0.8
    found = [
        finding
        for step, loss in enumerate(losses)
        for finding in monitor.observe(sample_of(step, float(loss), attempt=3))
    ]
    assert {finding.kind for finding in found} == {"loss_blip"}
    forms = [finding.evidence["form"] for finding in found if "form" in finding.evidence]
    assert forms == ["awaited", "returned"]
    assert found[-1].onset_step == 500
    assert found[-1].detected_step < 700


@pytest.mark.parametrize("text", ["", "{}", "no JSON", '{"returned": [[1]]}', '{"new": [1]}', "[]"])
def test_text_that_cannot_be_read_counts_as_nothing_learned(text):
    assert LossMemory.read(text) == LossMemory()
    RunSamplePipeline(spec(), learned=text)


def test_rises_without_bounds_are_left_out_of_the_text():
    monitor = LossMonitor()
    for step in range(1, 3000):
        loss = 1e300 if step % 300 < 4 and step > 200 else 1e-300 * (1 + step % 2)
        monitor.observe(sample_of(step, loss))
    kept = LossMemory.read(monitor.memory.text())
    assert kept.rises == monitor.memory.rises
    assert len(monitor.memory.text()) < 6000


def test_the_core_keeps_what_it_is_told_and_the_next_leader_hands_it_on():
    series = drawn_rises(np.random.default_rng(11))
    pipeline = RunSamplePipeline(spec())
    spikes(pipeline, series.losses[: series.rises[4]], 1)
    learned = told(pipeline)
    assert learned
    assert told(pipeline) == "", "told once"
    world = trained(15)
    for step, text in ((16, learned), (17, None)):
        at = world.now + dt.timedelta(seconds=1)
        world.do(world.event(StepReached, run="run-1", attempt=1, step=step, at=at, learned=text))
        assert world.run().learned == learned
    stored = RUNS.row(world.run())["body"]
    assert RUNS.entity_of(stored).learned == learned
    del stored["learned"]  # as an earlier version wrote it
    assert RUNS.entity_of(stored).learned == ""
    live = LiveState(MemoryStore(), ManualClock(), EventFactory(ManualClock()))
    live.state = world.state
    assert live.pipeline("run-1")._monitors.learned.rises == LossMemory.read(learned).rises
