"""The loss monitor: what it must find, what it must leave alone, and what it must not depend on."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from monitors.loss import LossMonitor, LossSettings
from monitors.non_finite import OVERFLOW_STEPS, WARMUP_OVERFLOW_STEPS
from monitors.types import Finding, FindingKind, Sample, Severity

NAN = math.nan


def sample(step, loss, grad_norm=-1.0, attempt=1, rank=0):
    return Sample(
        attempt=attempt,
        rank=rank,
        step=step,
        batch=step + 1000,
        time=1e9 + step,
        loss=loss,
        grad_norm=grad_norm,
    )


def decay(steps, seed=0, noise=0.02, start=5.5, end=2.5, scale=40.0):
    """A loss as small models show it: fast at first, then flat, noise in proportion."""
    rng = np.random.default_rng(seed)
    t = np.arange(1, steps + 1)
    curve = end + (start - end) * np.exp(-t / scale)
    return [float(v) for v in curve * (1 + noise * rng.standard_normal(steps))]


def feed(monitor, losses, first=1, grad_norms=None, attempt=1):
    found: list[Finding] = []
    for i, loss in enumerate(losses):
        grad = grad_norms[i] if grad_norms is not None else -1.0
        found += monitor.observe(sample(first + i, loss, grad, attempt))
    return found


def kinds(findings):
    return [finding.kind for finding in findings]


def test_explosion_that_stays_up_is_one_spike_with_its_onset_and_figures():
    losses = decay(120) + [11.2] * 20
    (spike,) = feed(LossMonitor(), losses)
    assert spike.kind is FindingKind.LOSS_SPIKE
    assert spike.severity is Severity.CRITICAL
    assert (spike.onset_step, spike.onset_batch, spike.detected_step) == (121, 1121, 123)
    assert "loss 11.2 against a median of 2." in spike.reason
    assert "for 3 steps, since step 121" in spike.reason
    assert spike.evidence["form"] == "persistent"


def test_an_explosion_in_a_young_run_is_found():
    spikes = feed(LossMonitor(), decay(40) + [9.0] * 5)
    assert kinds(spikes) == [FindingKind.LOSS_SPIKE]
    assert spikes[0].onset_step == 41


def test_one_bad_batch_is_only_recorded_and_only_when_it_is_over():
    monitor = LossMonitor()
    losses = decay(150)
    losses[119] *= 2
    assert feed(monitor, losses[:120]) == []
    (blip,) = feed(monitor, losses[120:], first=121)
    assert blip.kind is FindingKind.LOSS_BLIP
    assert blip.severity is Severity.INFO
    assert (blip.onset_step, blip.evidence["peak_step"]) == (120, 120)
    assert blip.detected_step == 122


def test_two_bad_batches_in_a_row_are_still_a_blip():
    losses = decay(150)
    losses[119] *= 2
    losses[120] *= 2
    assert kinds(feed(LossMonitor(), losses)) == [FindingKind.LOSS_BLIP]


def test_a_poisoned_stretch_is_found_again_after_a_rollback():
    monitor = LossMonitor()
    losses = decay(150)
    for i in range(120, 140):
        losses[i] += 2.0
    first = feed(monitor, losses[:126])
    monitor.reset(attempt=2, step=100)
    second = feed(monitor, losses[100:], first=101, attempt=2)
    assert kinds(first) == kinds(second) == [FindingKind.LOSS_SPIKE]
    assert first[0].onset_step == second[0].onset_step == 121
    assert second[0].attempt == 2


@pytest.mark.parametrize("period", [300, 450, 1000])
@pytest.mark.parametrize("back", [0, 60])
def test_a_rise_that_is_due_is_known_after_a_restart(period, back):
    """The start of an epoch: the interval to the one before is counted on over a crash."""
    rng = np.random.default_rng(period)
    losses = 2.0 + 0.02 * rng.standard_normal(9 * period)
    for epoch in range(1, 9):
        losses[epoch * period : epoch * period + 8] += 0.8
    crash = 5 * period + period // 2
    monitor = LossMonitor()
    spikes = [f for f in feed(monitor, losses[:crash]) if f.kind is FindingKind.LOSS_SPIKE]
    assert len(spikes) == 2, "the third time is no alarm"
    resumed = crash - back
    found = feed(monitor, losses[resumed:], first=resumed + 1, attempt=2)
    assert FindingKind.LOSS_SPIKE not in kinds(found)


def test_a_new_attempt_resets_by_itself_and_an_old_one_is_ignored():
    monitor = LossMonitor()
    losses = decay(130)
    feed(monitor, losses)
    assert monitor.observe(sample(90, losses[89], attempt=2)) == []
    assert monitor.observe(sample(131, NAN, attempt=1)) == []
    found = [f for step in (91, 92) for f in monitor.observe(sample(step, NAN, attempt=2))]
    assert kinds(found) == [FindingKind.NON_FINITE]


def test_a_second_reset_before_any_sample_is_kept():
    monitor = LossMonitor()
    feed(monitor, decay(30))
    for attempt in (2, 3, 4):
        monitor.reset(attempt, 0)
    assert kinds(feed(monitor, [*decay(130), *[11.2] * 5], attempt=4)) == [FindingKind.LOSS_SPIKE]


def test_a_step_seen_before_is_ignored():
    monitor = LossMonitor()
    feed(monitor, decay(60))
    assert monitor.observe(sample(60, NAN)) == []


def test_a_spike_after_resuming_from_a_spoilt_checkpoint_is_found_again():
    monitor = LossMonitor()
    losses = decay(120) + [11.2] * 10
    assert kinds(feed(monitor, losses)) == [FindingKind.LOSS_SPIKE]
    monitor.reset(attempt=2, step=126)
    again = feed(monitor, [11.2] * 5, first=127, attempt=2)
    assert kinds(again) == [FindingKind.LOSS_SPIKE]
    assert again[0].onset_step == 127


def test_a_level_that_stays_is_accepted_and_the_monitor_is_not_blind_above_it():
    rng = np.random.default_rng(3)
    low = list(2.0 + 0.02 * rng.standard_normal(150))
    high = list(4.0 + 0.02 * rng.standard_normal(150))
    found = feed(LossMonitor(), [*low, *high, *[9.0] * 5])
    assert kinds(found) == [FindingKind.LOSS_SPIKE] * 2
    assert [f.onset_step for f in found] == [151, 301]


def test_an_aftershock_is_recorded_and_a_greater_shock_is_reported():
    rng = np.random.default_rng(4)
    calm = [float(v) for v in 2.0 + 0.01 * rng.standard_normal(200)]
    found = feed(LossMonitor(), [*calm, *[6.0] * 5, *calm[:5], *[4.0] * 5, *calm[:5], *[8.0] * 5])
    assert kinds(found) == [
        FindingKind.LOSS_SPIKE,
        FindingKind.LOSS_BLIP,
        FindingKind.LOSS_SPIKE,
    ]


def test_an_aftershock_that_outlasts_the_quiet_is_reported():
    rng = np.random.default_rng(4)
    calm = [float(v) for v in 2.0 + 0.01 * rng.standard_normal(200)]
    monitor = LossMonitor(LossSettings(window=32))
    feed(monitor, calm)
    assert kinds(feed(monitor, [*[6.0] * 5, *calm[:2]], first=201)) == [FindingKind.LOSS_SPIKE]
    later = feed(monitor, [*calm[:4], *[5.0] * 15], first=208)
    assert kinds(later) == [FindingKind.LOSS_SPIKE]
    assert later[0].detected_step > 212 + 3


def test_the_onset_walks_back_along_the_drift_before_a_jump():
    losses = [2.0 + 0.01 * (-1) ** i for i in range(120)]
    losses += [2.06, 2.08, 2.09, 5.0, 6.0, 7.0]
    (spike,) = feed(LossMonitor(), losses)
    assert spike.onset_step == 121


def test_the_grad_norm_may_lead_and_then_sets_the_onset():
    losses = [*decay(200), 2.55, 2.55, 4.0, 5.0]
    rng = np.random.default_rng(0)
    grads = [*np.exp(0.1 * rng.standard_normal(200)), 20.0, 60.0, 300.0, 900.0]
    found = feed(LossMonitor(), losses, grad_norms=[float(g) for g in grads])
    assert kinds(found) == [FindingKind.GRAD_NORM_SPIKE, FindingKind.LOSS_SPIKE]
    spike = found[1]
    assert spike.onset_step == 201
    assert spike.detected_step == 204, "two high steps suffice when the gradient norm agrees"
    assert "gradient norm 900 agrees" in spike.reason


def test_a_grad_norm_spike_alone_is_a_warning_and_said_once():
    grads = [1.0 + 0.05 * (-1) ** i for i in range(150)]
    grads[120:125] = [40.0] * 5
    found = feed(LossMonitor(), decay(150), grad_norms=grads)
    assert kinds(found) == [FindingKind.GRAD_NORM_SPIKE]
    assert found[0].severity is Severity.WARNING
    assert "gradient norm 40 against a median of" in found[0].reason


def test_one_bad_batch_with_a_large_grad_norm_is_not_acted_on():
    losses, grads = decay(150), [1.0 + 0.05 * (-1) ** i for i in range(150)]
    losses[119], grads[119] = 5.0, 50.0
    assert set(kinds(feed(LossMonitor(), losses, grad_norms=grads))) == {
        FindingKind.GRAD_NORM_SPIKE,
        FindingKind.LOSS_BLIP,
    }


def test_slow_divergence_is_a_drift():
    rng = np.random.default_rng(5)
    flat = 3.0 + 0.02 * rng.standard_normal(200)
    creep = 3.0 + np.linspace(0, 0.9, 600) + 0.02 * rng.standard_normal(600)
    found = feed(LossMonitor(), [float(v) for v in [*flat, *creep]])
    assert found
    assert found[0].kind is FindingKind.LOSS_SPIKE
    assert found[0].evidence["form"] == "drift"
    assert found[0].onset_step <= 220


@pytest.mark.parametrize("loss", [math.nan, math.inf, -math.inf])
def test_a_loss_that_stays_non_finite_is_found_at_the_second_report_also_at_step_one(loss):
    monitor = LossMonitor()
    assert monitor.observe(sample(1, loss)) == []
    (finding,) = monitor.observe(sample(2, loss))
    assert finding.kind is FindingKind.NON_FINITE
    assert finding.severity is Severity.CRITICAL
    assert (finding.onset_step, finding.detected_step) == (1, 2)


@pytest.mark.parametrize("loss", [math.nan, math.inf])
@pytest.mark.parametrize("between", [2.5, None])
def test_a_step_that_was_skipped_is_recorded_and_nothing_is_done(loss, between):
    """Loss scaling, or the script, skipped a batch: the weights are sound. Three are told."""
    losses = decay(300)
    for place in (80, 120, 160, 200, 240):
        losses[place] = loss
        losses[place + 1] = between
    found = feed(LossMonitor(), losses)
    assert kinds(found) == [FindingKind.LOSS_BLIP] * 3
    assert [f.onset_step for f in found] == [81, 121, 161]
    assert "the step was skipped" in found[0].reason


def test_reports_without_a_loss_neither_end_nor_lengthen_a_stretch_of_nan():
    losses = [NAN if step % 10 == 0 else None for step in range(1, 31)]
    (finding,) = feed(LossMonitor(), losses)
    assert (finding.kind, finding.onset_step) == (FindingKind.NON_FINITE, 10)
    assert finding.detected_step == 20


def test_a_run_that_loses_every_other_step_is_not_well():
    losses = decay(200)
    losses[100::2] = [NAN] * 50
    found = feed(LossMonitor(), losses)
    assert FindingKind.NON_FINITE in kinds(found)
    assert next(f for f in found if f.kind is FindingKind.NON_FINITE).detected_step <= 120


def test_nan_that_stays_is_said_once_and_again_after_it_was_gone():
    found = feed(LossMonitor(), [*decay(50), *[NAN] * 30, *decay(50)[40:], NAN, NAN])
    assert kinds(found) == [FindingKind.NON_FINITE] * 2
    assert [f.onset_step for f in found] == [51, 91]


def test_a_zero_loss_beside_a_nan_grad_norm_is_a_masked_nan():
    monitor = LossMonitor()
    feed(monitor, decay(50), grad_norms=[1.0] * 50)
    assert monitor.observe(sample(51, 0.0, NAN)) == []
    (finding,) = monitor.observe(sample(52, 0.0, NAN))
    assert finding.kind is FindingKind.NON_FINITE
    assert "masked" in finding.reason


def test_a_zero_loss_alone_is_a_loss():
    assert feed(LossMonitor(), [0.0] * 100, grad_norms=[0.0] * 100) == []


def test_a_lone_grad_overflow_of_loss_scaling_is_left_alone():
    grads = [1.0] * 200
    for i in (70, 90, 91, 150):
        grads[i] = math.inf
    assert feed(LossMonitor(), decay(200), grad_norms=grads) == []


def test_grad_norms_that_stay_infinite_are_found_with_their_onset():
    grads = [1.0] * 100 + [math.inf] * 50
    (finding,) = feed(LossMonitor(), decay(150), grad_norms=grads)
    assert finding.kind is FindingKind.NON_FINITE
    assert finding.onset_step == 101
    assert finding.detected_step == 100 + OVERFLOW_STEPS


def test_loss_scaling_may_search_longer_at_the_start():
    grads = [math.inf] * (WARMUP_OVERFLOW_STEPS - 1) + [1.0] * 60
    assert feed(LossMonitor(), decay(len(grads)), grad_norms=grads) == []


@pytest.mark.parametrize("seed", range(20))
def test_a_small_model_that_learns_fast_raises_no_alarm(seed):
    scale = (15.0, 25.0, 40.0, 80.0)[seed % 4]
    assert feed(LossMonitor(), decay(400, seed, noise=0.03, scale=scale)) == []


def test_a_noisy_bimodal_loss_raises_no_alarm():
    """Mixup and label smoothing make a loss that jumps between two levels at every step."""
    rng = np.random.default_rng(7)
    losses = np.where(rng.random(3000) < 0.7, 1.2, 3.0) + 0.1 * rng.standard_normal(3000)
    assert feed(LossMonitor(), [float(v) for v in losses]) == []


def test_memory_is_bounded():
    monitor = LossMonitor(LossSettings(window=16))
    feed(monitor, decay(5000))
    assert len(monitor._history) == 8 * 16
    assert len(monitor._loss.window) == 16


curves = st.builds(
    decay,
    st.integers(60, 300),
    seed=st.integers(0, 10_000),
    noise=st.floats(0.001, 0.04),
    start=st.floats(3.0, 12.0),
    end=st.floats(0.5, 2.9),
    scale=st.floats(10.0, 200.0),
)


@settings(max_examples=60, deadline=None)
@given(curves)
def test_smooth_decay_with_gaussian_noise_is_never_a_reason_to_act(losses):
    assert not [f for f in feed(LossMonitor(), losses) if f.severity is Severity.CRITICAL]


@settings(max_examples=30, deadline=None)
@given(curves, st.integers(-20, 20), st.integers(50, 58))
def test_findings_do_not_depend_on_the_unit_of_the_loss(losses, power, at):
    losses[at:] = [loss * 3 for loss in losses[at:]]
    plain = feed(LossMonitor(), losses)
    scaled = feed(LossMonitor(), [loss * 2.0**power for loss in losses])
    assert [(f.kind, f.onset_step, f.detected_step) for f in plain] == [
        (f.kind, f.onset_step, f.detected_step) for f in scaled
    ]


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.integers(-64, 64))
def test_without_the_relative_floors_findings_do_not_depend_on_an_offset(seed, offset):
    rng = np.random.default_rng(seed)
    grid = [round(v * 1024) / 1024 for v in 2.0 + 0.05 * rng.standard_normal(150)]
    grid[120:130] = [v + 4.0 for v in grid[120:130]]  # on a grid of 2**-10, sums are exact
    bare = LossSettings(relative_floor=0.0, drift_rise=1e-9)
    plain = feed(LossMonitor(bare), grid)
    moved = feed(LossMonitor(bare), [v + offset for v in grid])
    assert FindingKind.LOSS_SPIKE in kinds(plain)
    assert [(f.kind, f.onset_step) for f in plain] == [(f.kind, f.onset_step) for f in moved]


@settings(max_examples=40, deadline=None)
@given(curves, st.integers(25, 55), st.integers(0, 5))
def test_after_a_rollback_the_monitor_is_as_if_the_lost_steps_had_never_been(losses, resume, bad):
    """Wound back, it finds in the replay exactly what a monitor finds that saw only the replay."""
    replay = [*losses[resume:], *[20.0] * 4]
    lost = [loss * (6 if i < bad else 1) for i, loss in enumerate(losses[resume:])]
    wound = LossMonitor()
    feed(wound, losses[:resume] + lost)
    wound.reset(attempt=2, step=resume)
    straight = LossMonitor()
    feed(straight, losses[:resume])
    straight.reset(attempt=2, step=resume)
    assert feed(wound, replay, first=resume + 1, attempt=2) == feed(
        straight, replay, first=resume + 1, attempt=2
    )


@settings(max_examples=20, deadline=None)
@given(curves)
def test_the_same_samples_give_the_same_findings(losses):
    losses[50] *= 4
    assert feed(LossMonitor(), losses) == feed(LossMonitor(), losses)
