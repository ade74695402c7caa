"""The loss monitor on made series of each kind: what it acts on, and what it leaves alone."""

from __future__ import annotations

import zlib

import numpy as np
import pytest

from benchmarks.support.loss_series import KINDS, slow_rise
from benchmarks.support.loss_verdicts import acts_of, judged, sample_of
from monitors.loss import LossMonitor, LossSettings

MAKERS = [maker for makers in KINDS.values() for maker in makers]


@pytest.mark.parametrize("maker", MAKERS, ids=lambda maker: maker.__name__)
def test_a_series_of_each_kind_is_judged_rightly(maker):
    seed = zlib.crc32(maker.__name__.encode())
    made = maker(np.random.default_rng(seed))
    acts = acts_of(made)
    assert judged(made, acts) == "right", acts


def test_with_drift_off_a_ramp_is_left_alone():
    made = slow_rise(np.random.default_rng(1))
    assert acts_of(made)
    assert not acts_of(made, LossSettings(drift="off"))


def test_the_third_relapse_at_one_place_is_taken_for_the_datas_unless_it_grows():
    """Two rollbacks and skipped batches changed nothing: then the data rise there."""

    def attempts(third):
        monitor = LossMonitor()
        rng = np.random.default_rng(3)
        base = 2.0 + 0.01 * rng.standard_normal(300)
        found = []
        for attempt, height in ((1, 1.4), (2, 1.4), (3, third)):
            if attempt > 1:
                monitor.reset(attempt, 100)
            losses = base.copy()
            losses[150:170] *= height
            for step in range(1 if attempt == 1 else 101, 301):
                sample = sample_of(step, float(losses[step - 1]), attempt=attempt)
                spikes = [f for f in monitor.observe(sample) if f.kind == "loss_spike"]
                found += [f.attempt for f in spikes]
                if spikes and attempt < 3:
                    break
        return found

    assert attempts(third=1.4) == [1, 2]
    assert attempts(third=4.0) == [1, 2, 3]


@pytest.mark.parametrize("seed", range(3))
def test_bursts_of_uneven_heights_that_come_when_due_are_known_the_third_time(seed):
    """Slingshots of an adaptive optimizer: the loss leaps, and is back within a dozen steps."""
    rng = np.random.default_rng(seed)
    losses = 0.01 * np.exp(0.2 * rng.standard_normal(4000))
    for start in range(900, 3600, 800):
        losses[start : start + 12] *= np.linspace(8, 1, 12)
    monitor = LossMonitor()
    found = [
        finding.onset_step
        for step, loss in enumerate(losses, 1)
        for finding in monitor.observe(sample_of(step, float(loss)))
        if finding.kind == "loss_spike"
    ]
    assert len(found) <= 2, found


def test_a_rise_that_is_due_and_stays_is_a_finding():
    rng = np.random.default_rng(1)
    losses = 2.0 + 0.02 * rng.standard_normal(1300)
    for start in (300, 600, 900):
        losses[start : start + 8] *= 1.6
    losses[1200:] *= 1.6
    monitor = LossMonitor()
    found = [
        finding.onset_step
        for step, loss in enumerate(losses, 1)
        for finding in monitor.observe(sample_of(step, float(loss)))
        if finding.kind == "loss_spike"
    ]
    assert any(1195 <= onset <= 1202 for onset in found), found
