"""Slowdowns of a whole run: found in provoked series, with cost and onset; not in healthy noise."""

from __future__ import annotations

import re

import numpy as np
import pytest

from benchmarks.support.slow_series import Play
from monitors.run_monitors import MonitorSettings, RunMonitors
from monitors.slowdown_findings import OVER
from monitors.types import FindingKind, Pace, Severity


def play(seed=0, **fields):
    run = Play(np.random.default_rng(seed), **fields)
    run.begin()
    return run


def kinds(run):
    return [(each.kind, each.evidence.get("form", "begun")) for each in run.found]


def slow_loader(number, step):
    step.data = 0.5


@pytest.mark.parametrize("seed", range(3))
def test_a_loader_that_becomes_slow_is_found_with_onset_and_cost_and_told_when_it_is_over(seed):
    run = play(seed)
    run.train(900)
    onset = run.step + 1
    run.train(400, slow_loader)
    run.train(200)
    assert kinds(run) == [(FindingKind.DATA_STALL, "begun"), (FindingKind.DATA_STALL, OVER)]
    stall, over = run.found
    assert abs(stall.onset_step - onset) <= 65, "to a window of a minute"
    assert stall.severity is Severity.WARNING
    assert stall.detected_step - onset < 250
    # 0.48 s more in a step of 1.5 s: a third of each hour.
    assert stall.evidence["cost_seconds_an_hour"] == pytest.approx(3600 * 0.48 / 1.5, rel=0.1)
    assert re.match(
        r"since step \d+, the ranks wait for data for 3[234]% of a step \(\d+ ms\), against 2%"
        r" \(\d\d(\.\d)? ms\) before; it costs \d+ s an hour$",
        stall.reason,
    )
    assert over.evidence["lost_seconds"] == pytest.approx(400 * 0.48, rel=0.25)


@pytest.mark.parametrize("tokens", [0.0, 4096.0])
def test_steps_that_get_slower_for_good_are_a_drop_of_the_throughput(tokens):
    def slow(number, step):
        step.compute, step.tokens = 1.5, tokens

    def usual(number, step):
        step.tokens = tokens

    run = play()
    run.train(1500, usual)
    onset = run.step + 1
    run.train(500, slow)
    run.train(300, usual)
    assert kinds(run) == [
        (FindingKind.THROUGHPUT_DROP, "begun"),
        (FindingKind.THROUGHPUT_DROP, OVER),
    ]
    drop = run.found[0]
    assert abs(drop.onset_step - onset) <= 65, "to a window of a minute"
    assert drop.severity is (Severity.WARNING if tokens else Severity.INFO)
    assert drop.evidence["cost_seconds_an_hour"] == pytest.approx(3600 * (1 - 1.02 / 1.52), rel=0.1)
    assert ("reports no tokens, so its batches may have grown" in drop.reason) == (tokens == 0)
    assert drop.evidence["unit"] == ("tokens" if tokens else "steps")


def test_a_drop_is_judged_by_mfu_where_the_script_reports_one():
    def series(mfu, compute):
        def change(number, step):
            step.tokens, step.mfu, step.compute = 4096.0, mfu, compute

        return change

    run = play()
    run.train(1500, series(0.45, 1.0))
    run.train(800, series(0.44, 4.0))  # longer sequences, as many tokens a step, the same MFU
    assert run.found == []
    run.train(200, series(0.25, 4.0))
    (drop,) = run.found
    assert drop.kind is FindingKind.THROUGHPUT_DROP
    assert "MFU is 0.25, against 0.44 before: 43% less throughput" in drop.reason


def saving(every, blocked, write):
    def change(number, step):
        if number % every == every - 1:
            step.blocked, step.write = blocked, write

    return change


def test_saves_that_take_far_longer_are_a_stall():
    run = play()
    run.train(1000, saving(100, 0.2, 4.0))
    first = run.step + 100
    run.train(400, saving(100, 0.2, 60.0))
    run.train(300, saving(100, 0.2, 4.0))
    assert kinds(run) == [
        (FindingKind.CHECKPOINT_STALL, "begun"),
        (FindingKind.CHECKPOINT_STALL, OVER),
    ]
    stall = run.found[0]
    assert (stall.onset_step, stall.detected_step) == (first, first + 200)
    assert "a save takes 60.2 s until it is on disk, against 4.2 s before" in stall.reason
    assert "a crash meanwhile loses 56 s more" in stall.reason


def test_saves_that_block_training_for_longer_are_a_stall_that_says_what_it_costs():
    run = play()
    run.train(1000, saving(100, 0.5, 0.0))
    run.train(400, saving(100, 40.0, 0.0))
    (stall,) = run.found
    assert stall.kind is FindingKind.CHECKPOINT_STALL
    assert "a save blocks training for 40 s, against 500 ms before" in stall.reason
    assert stall.evidence["cost_seconds_an_hour"] == pytest.approx(3600 * 39.5 / 142, rel=0.05)


def test_a_start_far_longer_than_those_before_is_found_while_it_lasts():
    run = play()
    run.train(50)
    run.begin(start=40, restore=600, step=50)  # loading a checkpoint is no stall
    run.train(50)
    assert run.found == []
    run.begin(start=900, step=100)
    assert [each.kind for each in run.found] == [FindingKind.STARTUP_STALL]
    run.train(50)
    stall, over = run.found
    assert stall.detected_time - stall.onset_time == pytest.approx(165, abs=8)
    assert stall.evidence["longest_start_seconds"] == pytest.approx(40, abs=8)
    assert "the longest of 2 starts before took 4" in stall.reason
    assert "was starting for" in stall.reason
    assert over.evidence["form"] == OVER
    assert over.evidence["lost_seconds"] == pytest.approx(860, abs=10)


def test_a_slow_loader_is_one_finding_not_two():
    run = play()
    run.train(1500, lambda n, step: setattr(step, "tokens", 4096.0))

    def starve(number, step):
        step.data, step.tokens = 2.0, 4096.0

    run.train(800, starve)
    assert kinds(run) == [(FindingKind.DATA_STALL, "begun")]


def test_the_past_outlives_an_attempt_of_the_same_size_only():
    for ranks, expected in ((2, [FindingKind.DATA_STALL]), (4, [])):
        run = play()
        run.train(900)
        run.ranks = ranks
        run.begin(step=900)
        run.train(450, slow_loader)
        assert [each.kind for each in run.found] == expected


def with_samples_kept(run):
    """The run; its samples are in the list, with its attempts."""
    kept = []
    observe = run.monitors.observe

    def keep(samples):
        kept.extend(samples)
        return observe(samples)

    run.monitors.observe = keep
    return kept


def taken_over(run, kept, known=None):
    """Another server: its monitors are fed the samples that are stored."""
    run.monitors = RunMonitors(MonitorSettings(), known)
    for attempt in sorted({sample.attempt for sample in kept}):
        assert not run.monitors.observe([each for each in kept if each.attempt == attempt])
        run.monitors.has_ranks(run.ranks)


def test_the_past_of_all_attempts_outlives_the_server():
    run = play()
    kept = with_samples_kept(run)
    run.train(1500, saving(100, 0.5, 0.0))
    run.begin(step=1500)
    run.train(30)
    taken_over(run, kept)
    run.train(600, lambda n, step: (saving(100, 40.0, 0.0)(n, step), setattr(step, "compute", 1.5)))
    assert {each.kind for each in run.found} == {
        FindingKind.CHECKPOINT_STALL,
        FindingKind.THROUGHPUT_DROP,
    }


@pytest.mark.parametrize("known", [0.0, 60.0])
def test_starts_before_a_new_server_count_with_the_longest_that_is_known(known):
    """Without one, the time of no start is known, and nothing is compared with it."""
    run = play()
    kept = with_samples_kept(run)
    run.train(50)
    run.begin(start=40, step=50)
    run.train(50)
    taken_over(run, kept, Pace(start=known))
    run.train(50)
    run.begin(start=900, step=150)
    if not known:
        assert run.found == []
        return
    (stall,) = run.found
    assert stall.kind is FindingKind.STARTUP_STALL
    assert stall.evidence["longest_start_seconds"] == known
    assert "the longest of 2 starts before took 60 s" in stall.reason


def test_the_longest_start_of_earlier_runs_counts_from_the_first_attempt_on():
    run = play(monitors=RunMonitors(MonitorSettings(), Pace(start=600.0)))
    run.train(50)
    run.begin(step=50)
    run.train(50)
    run.begin(start=900, step=100)
    assert run.found == []


# Healthy runs


def evaluations(run):
    """Validate every 200 steps, announced or not, and save between."""

    def change(number, step):
        if number % 200 == 199:
            step.evaluate = 45.0
        if number % 350 == 349:
            step.compute = 40.0
        if number % 100 == 50:
            step.blocked, step.write = 3.0, 12.0

    run.train(2500, change)


def dense_evaluations_from_the_middle_on(run):
    """Unannounced evaluations of eight steps' time every 12 steps, later."""
    run.train(1200)
    run.train(1200, lambda n, step: setattr(step, "compute", 8.0 if n % 12 == 11 else 1.0))


def announced_evaluations_get_dense(run):
    """Evaluations that `run.phase` announces, every third step from the middle on."""
    run.train(1200)
    run.train(1200, lambda n, step: setattr(step, "evaluate", 1.5 if n % 3 == 2 else 0.0))


def warm_up(run):
    """Compilation in the first steps, a cold cache of data."""

    def change(number, step):
        step.compute = 60.0 if number < 3 else 4.0 if number < 18 else 1.0
        step.data = 2.0 if number < 18 else 0.02

    run.train(1500, change)


def longer_sequences(run):
    """The sequences double, then the batch does."""
    for tokens, compute, data in ((1024, 1.0, 0.05), (2048, 2.6, 0.1), (8192, 11.0, 0.4)):

        def change(number, step, sizes=(tokens, compute, data)):
            step.tokens, step.compute, step.data = sizes

        run.train(900, change)


def curriculum(run):
    """Sequences get longer all the time, and attention costs more than its share."""

    def change(number, step):
        step.tokens = 1024 + number
        step.compute = (step.tokens / 1024) ** 1.6

    run.train(3000, change)


def variable_lengths(run):
    """Tokens a step vary by a factor of eight."""

    def change(number, step):
        step.tokens = float(run.rng.choice([1024, 2048, 8192]))
        step.compute = step.tokens / 2048

    run.train(3000, change)


def announced_change(run):
    """Longer sequences with as many tokens a step, announced."""
    run.train(1500, lambda n, step: setattr(step, "tokens", 4096.0))

    def change(number, step):
        step.tokens, step.compute, step.data = 4096.0, 2.5, 1.5
        if number == 0:
            step.expected = 50

    run.train(1500, change)


def single_slow_steps(run):
    """Now and then a step takes minutes: garbage, a hiccup of the network, an upload."""

    def change(number, step):
        if run.rng.random() < 0.01:
            step.compute = 100.0
        if run.rng.random() < 0.005:
            step.data = 150.0

    run.train(2500, change)


def bimodal(run):
    """Two tasks at random, one of which takes three times as long."""
    run.train(3000, lambda n, s: setattr(s, "compute", 3.0 if run.rng.random() < 0.5 else 1.0))


def epoch_stalls(run):
    """The workers of the loader start anew in each epoch, and the first pass is cold."""

    def change(number, step):
        step.data = 90.0 if number % 400 == 0 else 0.3 if number < 400 else 0.02

    run.train(2500, change)


def bursty_loader(run):
    """Every 32nd batch waits for the next file, some files are large."""

    def change(number, step):
        if number % 32 == 0:
            step.data = float(run.rng.choice([2.0, 6.0, 20.0]))

    run.train(2500, change)


def loader_bound(run):
    """The loader is the bottleneck from the beginning, and noisy."""
    run.train(2500, lambda n, step: setattr(step, "data", run.rng.gamma(2.0, 1.0)))


def faster_compute(run):
    """A compiled step is faster; the loader stays as it is, so its share grows."""
    run.train(1000, lambda n, step: setattr(step, "data", 0.1))

    def change(number, step):
        step.data, step.compute = 0.12, 0.2

    run.train(3000, change)


def waits_behind_the_gpu(run):
    """The host runs ahead of its GPU: it waits for data for half of a step that is no longer."""
    run.train(1000)

    def change(number, step):
        step.data, step.compute = 0.5, 0.52

    run.train(1500, change)


def two_tiers(run):
    """Saves to memory every 10 steps, to the directory every 200, which blocks for longer."""

    def change(number, step):
        if number % 10 == 9:
            step.blocked = 0.05
        if number % 200 == 199:
            step.blocked, step.write = 9.0, 30.0

    run.train(2500, change)


def storage_hiccups(run):
    """One save in six is slow."""

    def change(number, step):
        if number % 50 == 49:
            slow = run.rng.random() < 0.17
            step.blocked, step.write = (8.0, 90.0) if slow else (0.5, 5.0)

    run.train(3000, change)


def sparse_reports(run):
    """One report in 10 steps, evaluations every 50."""
    run.report_every = 10
    run.train(4000, lambda n, step: setattr(step, "evaluate", 20.0 if n % 50 == 49 else 0.0))


def larger_model_saved(run):
    """The optimizer's state is saved too, from the middle on."""
    run.train(1000, saving(50, 0.5, 4.0))
    run.shard_bytes *= 4
    run.train(1000, saving(50, 1.5, 17.0))


def restarts(run):
    """Starts of different length, with and without a checkpoint; a slow first minute each."""

    def change(number, step):
        step.compute = 5.0 if number < 15 else 1.0
        step.data = 3.0 if number < 15 else 0.02

    for start, restore in ((20, 0), (35, 300), (90, 20), (150, 400), (60, 0)):
        run.train(500, change)
        run.begin(start=start, restore=restore, step=run.step)
    run.train(500, change)


HEALTHY = (
    evaluations,
    dense_evaluations_from_the_middle_on,
    announced_evaluations_get_dense,
    warm_up,
    longer_sequences,
    curriculum,
    variable_lengths,
    announced_change,
    single_slow_steps,
    bimodal,
    epoch_stalls,
    bursty_loader,
    loader_bound,
    faster_compute,
    waits_behind_the_gpu,
    two_tiers,
    storage_hiccups,
    sparse_reports,
    larger_model_saved,
    restarts,
)


@pytest.mark.parametrize("train", HEALTHY)
@pytest.mark.parametrize("seed", range(2))
def test_healthy_runs_have_no_slowdown(train, seed):
    run = play(seed, noise=(0.03, 0.2)[seed])
    train(run)
    assert [each.reason for each in run.found] == []


def test_a_slow_time_that_comes_again_and_again_is_known():
    """A nightly job slows the storage: after some nights it is part of the run's past."""
    run = play()
    nights = []
    for _ in range(6):
        run.train(900)
        before = len(run.found)
        run.train(400, slow_loader)
        nights.append(len(run.found) > before)
    assert nights[0]
    assert not nights[-1]
