"""The host of all monitors of a run."""

from __future__ import annotations

import math

from babysit.wire import Phase
from monitors.run_monitors import RunMonitors
from monitors.types import Beat, FindingKind, Sample


def sample(step, loss=2.0, rank=0, attempt=1, seconds=0.1):
    wobble = 0.01 * ((step * 7919 + 5 * rank) % 13 - 6)
    return Sample(
        attempt=attempt,
        rank=rank,
        step=step,
        batch=step,
        time=1e9 + step,
        loss=None if loss is None else loss + wobble,
        seconds=seconds,
    )


def test_a_spike_on_one_rank_of_several_names_that_rank():
    watch = RunMonitors()
    found = []
    for step in range(1, 110):
        for rank in (0, 1, 2):
            loss = 9.0 if rank == 1 and step > 80 else 2.0
            found += watch.observe([sample(step, loss, rank)])
    assert [(f.kind, f.rank, f.onset_step) for f in found] == [(FindingKind.LOSS_SPIKE, 1, 81)]
    assert found[0].reason.endswith("on rank 1")


def test_a_spike_on_all_ranks_is_reported_once():
    watch = RunMonitors()
    found = []
    for step in range(1, 120):
        for rank in range(8):
            found += watch.observe([sample(step, 9.0 if step > 80 else 2.0, rank)])
    assert [(f.kind, f.rank, f.onset_step) for f in found] == [(FindingKind.LOSS_SPIKE, 0, 81)]


def test_a_spike_on_all_ranks_is_told_of_the_speaker_also_if_its_reports_come_late():
    watch = RunMonitors()

    def part(rank, steps):
        return [sample(step, 9.0 if step > 80 else 2.0, rank) for step in steps]

    found = []
    for first in range(1, 101, 2):  # the agent of rank 1 reports first, two steps at a time
        for rank in (1, 0):
            found += watch.observe(part(rank, range(first, first + 2)))
    assert [(f.kind, f.rank) for f in found] == [(FindingKind.LOSS_SPIKE, 0)]


def test_the_last_stage_of_a_pipeline_speaks_for_the_run():
    watch = RunMonitors()
    found = []
    for step in range(1, 110):
        for rank in range(4):
            loss = 2.0 + 3.0 * (step in {60, 61}) + 7.0 * (step > 80) if rank == 3 else None
            found += watch.observe([sample(step, loss, rank)])
    assert [(f.kind, f.rank) for f in found] == [
        (FindingKind.LOSS_BLIP, 3),
        (FindingKind.LOSS_SPIKE, 3),
    ]


def test_single_bad_batches_of_the_other_ranks_are_not_reported():
    watch = RunMonitors()
    for step in range(1, 300):
        for rank in (0, 1, 2, 3):
            loss = 6.0 if rank and step % 50 == 10 * rank else 2.0
            assert watch.observe([sample(step, loss, rank)]) == []


def test_an_announced_change_holds_for_all_ranks_and_ends():
    watch = RunMonitors()
    found = []
    for step in range(1, 400):
        if step == 100:  # announced by a rank that reports no loss
            watch.expect(1, 99, 200)
        loss = 2.0 if step < 100 else 5.0 if step < 330 else 11.0
        for rank in (1, 2):
            found += watch.observe([sample(step, loss, rank)])
    assert [(f.kind, f.rank, f.onset_step) for f in found] == [(FindingKind.LOSS_SPIKE, 1, 330)]


def test_a_change_announced_after_the_resumed_step_is_forgotten():
    watch = RunMonitors()
    watch.observe([sample(step) for step in range(1, 100)])
    watch.expect(1, 99, 400)
    watch.observe([sample(step) for step in range(100, 120)])
    watch.restart(2, 90)
    again = [sample(step, 9.0 if step > 95 else 2.0, attempt=2) for step in range(91, 110)]
    assert [f.onset_step for f in watch.observe(again)] == [96]


def test_within_an_announced_change_nan_still_counts():
    watch = RunMonitors()
    watch.observe([sample(step) for step in range(1, 100)])
    watch.expect(1, 99, 400)
    found = watch.observe([sample(step, math.nan) for step in (100, 101)])
    assert [f.kind for f in found] == [FindingKind.NON_FINITE]


def test_a_nan_on_any_rank_is_found_and_ranks_that_share_it_say_it_once():
    watch = RunMonitors()
    watch.observe([sample(step, rank=rank) for step in range(1, 50) for rank in (0, 1)])
    found = watch.observe([sample(step, math.nan, rank) for step in (50, 51) for rank in (1, 0)])
    assert [(f.kind, f.rank) for f in found] == [(FindingKind.NON_FINITE, 1)]


def test_the_pace_comes_from_the_samples():
    watch = RunMonitors()
    assert watch.median_step_seconds is None
    watch.observe([sample(step, seconds=0.25) for step in range(1, 10)])
    assert watch.median_step_seconds == 0.25


def test_a_hang_is_found_through_the_watch_and_forgotten_at_a_restart():
    watch = RunMonitors()
    watch.observe([sample(step) for step in range(1, 30)])
    beat = Beat(attempt=1, rank=0, step=29, phase=Phase.TRAINING, beat=1.0)
    found = [f for t in range(10) for f in watch.tick(100.0 + t, [beat])]
    assert [f.kind for f in found] == [FindingKind.HANG]
    watch.restart(2, 20)
    assert [f for t in range(10) for f in watch.tick(110.0 + t, [beat])] == []


def test_steps_may_repeat_in_a_new_attempt_only():
    watch = RunMonitors()
    watch.observe([sample(step) for step in range(1, 101)])
    watch.restart(2, 60)
    steps = (61, 62)
    assert watch.observe([sample(step, math.nan, attempt=1) for step in steps]) == []
    assert len(watch.observe([sample(step, math.nan, attempt=2) for step in steps])) == 1


def test_saying_a_restart_twice_changes_nothing():
    watch = RunMonitors()
    watch.restart(2, 0)
    found = watch.observe([sample(step, attempt=2) for step in range(1, 80)])
    watch.restart(2, 0)
    found += watch.observe([sample(step, 9.0, attempt=2) for step in range(80, 90)])
    assert [f.onset_step for f in found] == [80]


def test_a_watch_rebuilt_from_recent_samples_goes_on_like_the_old_one():
    history = [sample(step) for step in range(1, 301)]
    history += [sample(step, attempt=2) for step in range(251, 340)]
    future = [sample(step, 2.0 if step < 380 else 8.0, attempt=2) for step in range(340, 400)]
    continuous, rebuilt = RunMonitors(), RunMonitors()
    continuous.observe(history)
    rebuilt.observe(history[100:])
    assert continuous.observe(future) == rebuilt.observe(future) != []


def test_samples_delivered_twice_are_judged_once():
    watch = RunMonitors()
    watch.observe([sample(step) for step in range(1, 60)])
    batch = [sample(step, 9.0) for step in range(60, 70)]
    assert len(watch.observe(batch)) == 1
    assert watch.observe(batch) == []


def test_a_start_counts_from_the_first_beat_of_its_attempt():
    watch = RunMonitors()
    now = 1000.0
    for attempt, (start, seconds) in enumerate([(0, 40), (900, 90)], 1):
        for second in range(seconds):
            step = start if second > 20 else 0  # the checkpoint is loaded after 20 s
            beat = Beat(attempt, 0, step, Phase.TRAINING, now, moved=second > 20)
            watch.tick(now + second, [beat])
        watch.observe([sample(start + 1, attempt=attempt)])
        watch.tick(now + seconds, [Beat(attempt, 0, start + 1, Phase.LOADING, now + seconds)])
        now += seconds + 1
        assert seconds - 2 <= watch.pace.start <= seconds + 1


def test_a_checkpoint_that_is_loaded_is_no_step():
    watch = RunMonitors()
    for second in range(60):  # ranks that never report; the step after the load takes half a minute
        step = 901 if second >= 55 else 900 if second >= 20 else 0
        watch.tick(1000.0 + second, [Beat(1, 0, step, Phase.LOADING, 1000.0 + step)])
    assert watch.pace.start >= 54
    assert watch.median_step_seconds is None
