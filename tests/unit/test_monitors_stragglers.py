"""Stragglers: the right rank and part in provoked series, and nothing in healthy noise."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.support import step_series
from benchmarks.support.step_series import CULPRITS, HEALTHY, Job
from monitors.run_monitors import RunMonitors
from monitors.stragglers import StragglerMonitor, StragglerSettings
from monitors.types import Beat, FindingKind

_SEEDS = range(17)
"""Of each kind of culprit: 102 provoked series in all."""


def play(job, changes, monitor=None):
    watch = monitor or StragglerMonitor()
    found = []
    for now, beats in job.beats(job.series(changes), 4.0):
        found += watch.tick(now, beats, job.nodes, 1e9 + now)
    return found


def job_of(seed, *, whole_node=False, **fields):
    rng = np.random.default_rng(seed)
    per_node = int(rng.choice([2, 4] if whole_node else [1, 2, 4]))
    ranks = per_node * int(rng.choice([4, 8] if whole_node else [2, 4, 8]))
    return Job(
        rng,
        ranks=ranks,
        per_node=per_node,
        culprit=int(rng.integers(ranks)),
        noise=float(rng.choice([0.02, 0.05, 0.15])),
        **fields,
    )


def is_right(job, name, part, found):
    if len(found) != 1 or found[0].evidence["node"] != job.nodes[job.culprit]:
        return False
    named = found[0].rank is None if name == "slow node" else found[0].rank == job.culprit
    return named and part in {"", found[0].evidence["phase"]}


def test_the_culprit_and_its_part_are_named_in_95_of_100_series():
    wrong, count = [], 0
    for name, (change, part) in CULPRITS.items():
        for seed in _SEEDS:
            job = job_of(seed, whole_node=name == "slow node", onset=20 + 7 * seed, steps=620)
            noise = [step_series.gc_pauses] if seed % 2 else []
            found = play(job, [change, *noise])
            count += 1
            if not is_right(job, name, part, found):
                wrong.append((name, seed, [each.reason for each in found]))
    assert count >= 100
    assert len(wrong) <= 0.05 * count, wrong


@pytest.mark.parametrize("name", HEALTHY)
def test_healthy_noise_names_nobody(name):
    for seed in range(8):
        job = job_of(1000 + seed, steps=700, measured=seed % 3 > 0)
        assert play(job, [HEALTHY[name]]) == []


def test_one_slow_rank_of_1024_is_found_and_none_without_it():
    def big(seed):
        rng = np.random.default_rng(seed)
        return Job(rng, ranks=1024, per_node=8, culprit=700, steps=300, onset=20, noise=0.1)

    def ten_percent(job, spent):
        spent[job.onset :, job.culprit, step_series.FORWARD : step_series.WAIT] *= 1.15

    (found,) = play(big(1), [ten_percent])
    assert (found.rank, found.evidence["node"]) == (700, "node-87")
    assert found.evidence["phase"] in {"forward", "backward"}
    assert play(big(2), []) == []


def test_the_finding_says_what_the_straggler_costs():
    job = Job(np.random.default_rng(3), ranks=4, culprit=2, noise=0.001, step_seconds=2.0)

    def slow(job, spent):
        spent[:, 2, step_series.OPTIMIZER] += 0.5

    (found,) = play(job, [slow])
    assert (found.kind, found.rank) == (FindingKind.STRAGGLER, 2)
    # A healthy step is 0.93 of 2 s, and 0.14 s of exchange: 0.5 s are a fifth of the longer step.
    assert found.evidence["share"] == pytest.approx(0.5 / 2.5, rel=0.02)
    assert found.evidence["rank_hours_a_day"] == pytest.approx(24 * 4 * 0.5 / 2.5, rel=0.02)
    assert found.evidence["seconds_a_step"] == pytest.approx(0.5, rel=0.02)
    assert "rank 2 is slow: optimizer takes 500 ms longer a step" in found.reason
    assert found.onset_time < found.detected_time


def test_without_a_measure_of_waiting_only_parts_without_waiting_are_compared():
    def compute(job, spent):
        spent[:, 1, step_series.BACKWARD] += 0.5

    def data(job, spent):
        spent[:, 1, step_series.DATA] += 0.5

    def job():
        return Job(np.random.default_rng(4), measured=False)

    assert play(job(), [compute]) == []
    (found,) = play(job(), [data])
    assert (found.rank, found.evidence["phase"]) == (1, "data")


def test_a_rank_that_recovers_may_be_found_again():
    job = Job(np.random.default_rng(5), steps=1600, ranks=8, culprit=3)

    def twice(job, spent):
        for begin in (50, 950):
            spent[begin : begin + 450, 3, step_series.FORWARD] *= 2

    assert [each.rank for each in play(job, [twice])] == [3, 3]


def test_a_rank_that_is_slow_on_two_nodes_has_more_work():
    watch = StragglerMonitor()
    for attempt in (1, 2):
        job = Job(np.random.default_rng(6), steps=420, culprit=1)
        spent = job.series([step_series.slow_rank])
        nodes = {**job.nodes, 1: f"node-{attempt}-b"}
        found = []
        for now, beats in job.beats(spent):
            own = [beat._replace(attempt=attempt) for beat in beats]
            found += watch.tick(now + 1e4 * attempt, own, nodes, 1e9)
        assert [each.evidence["elsewhere"] for each in found] == [
            [] if attempt == 1 else ["node-1-b"]
        ]
    assert found[0].reason.endswith("so its share of the work is larger")


def test_a_rank_out_of_contact_for_a_moment_costs_no_window():
    job = Job(np.random.default_rng(7), culprit=2)
    watch, found = StragglerMonitor(), []
    for now, beats in job.beats(job.series([step_series.slow_rank])):
        heard = beats[:3] if int(now) % 7 == 0 else beats
        found += watch.tick(now, heard, job.nodes, 1e9 + now)
    assert [each.rank for each in found] == [2]


def test_a_process_that_begins_anew_and_ranks_without_parts_are_no_findings():
    watch = StragglerMonitor(StragglerSettings(steps=12, after_seconds=0.0, warmup_steps=1))
    for step in range(200):
        count = step % 50 + 1
        beats = [
            Beat(1, 0, step, "training", 1.0, parts=(1.0 * count,) * 7),
            Beat(1, 1, step, "training", 1.0, parts=(1.0 * count,) * 7),
            Beat(1, 2, step, "training", 1.0),
        ]
        assert watch.tick(float(step), beats, {}, 1e9) == []


def test_the_monitors_of_a_run_look_for_stragglers():
    job = Job(np.random.default_rng(8), culprit=3)
    watch, found = RunMonitors(), []
    for now, beats in job.beats(job.series([step_series.slow_disk])):
        found += watch.tick(now, beats, wall=1e9 + now, nodes=job.nodes)
    assert [(each.kind, each.rank) for each in found] == [(FindingKind.STRAGGLER, 3)]
