"""Made series of losses on which a rule of thumb goes wrong, and what a monitor should do on them.

Each series is a function of a random generator, so any number of them can be drawn. Levels, noise,
lengths and places of events are drawn too: a rule must fit the kind, not one series.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from benchmarks.support.loss_verdicts import Event, Made, Values

Rng = np.random.Generator


def _noise(rng: Rng, steps: int, sigma: float) -> Values:
    return sigma * rng.standard_normal(steps)


def _flat(rng: Rng, steps: int, sigma: float = 0.01) -> Values:
    """A level with noise in proportion."""
    return float(rng.uniform(1.5, 4.0)) * (1 + _noise(rng, steps, sigma))


def _calm(rng: Rng, steps: int) -> Values:
    return float(rng.uniform(0.2, 2.0)) * np.exp(_noise(rng, steps, 0.1))


# -- healthy -----------------------------------------------------------------------------------


def policy_loss_from_zero(rng: Rng) -> Made:
    t = np.arange(1, 1500.0)
    slope = 10 ** rng.uniform(-7, -3)
    loss = slope * t ** rng.uniform(0.7, 1.4) * (1 + 0.5 * rng.random(len(t)))
    return Made(loss, _calm(rng, len(t)) if rng.random() < 0.7 else None)


def policy_loss_about_zero(rng: Rng) -> Made:
    loss = 0.02 * rng.standard_t(3, 3000) + np.linspace(0, rng.uniform(-0.02, 0.02), 3000)
    return Made(loss)


def kl_penalty_that_levels_off(rng: Rng) -> Made:
    t = np.arange(3000.0)
    loss = rng.uniform(0.02, 0.5) * (1 - np.exp(-t / rng.uniform(200, 900)))
    return Made(loss * np.exp(_noise(rng, 3000, 0.2)), _calm(rng, 3000))


def reward_that_rises(rng: Rng) -> Made:
    t = np.arange(3000.0)
    reward = rng.uniform(0.1, 0.5) + rng.uniform(0.5, 5) * (1 - np.exp(-t / 800))
    return Made(reward + _noise(rng, 3000, 0.05), direction="up")


def gan_critic(rng: Rng) -> Made:
    walk, x = [], 0.0
    for step in rng.standard_normal(4000):
        x = 0.995 * x + 0.03 * step
        walk.append(x)
    return Made(np.array(walk) + _noise(rng, 4000, 0.1))


def energy_that_crosses_zero(rng: Rng) -> Made:
    t = np.arange(4000.0)
    wave = rng.uniform(0.5, 2) * np.sin(2 * np.pi * t / rng.uniform(900, 2500))
    return Made(wave - t / 4000 + _noise(rng, 4000, 0.1))


def likelihood_through_zero(rng: Rng) -> Made:
    t = np.arange(4000.0)
    loss = 3 * np.exp(-t / 700) - rng.uniform(1, 3) * (1 - np.exp(-t / 1500))
    return Made(loss + _noise(rng, 4000, 0.05))


def policy_loss_that_is_zero_at_first(rng: Rng) -> Made:
    t = np.maximum(0, np.arange(2500.0) - rng.integers(50, 300))
    loss = t * 10 ** rng.uniform(-7, -4) * (1 + 0.3 * rng.random(len(t)))
    return Made(np.round(loss, 4) if rng.random() < 0.5 else loss, _calm(rng, len(t)))


def level_that_wanders(rng: Rng) -> Made:
    walk, x = [], 0.0
    for step in rng.standard_normal(4000):
        x = 0.97 * x + 0.02 * step
        walk.append(x)
    return Made(0.69 + np.array(walk) + _noise(rng, 4000, 0.02), spare_acts=1)


def exponential_fall(rng: Rng) -> Made:
    t = np.arange(4000.0)
    floor = 10 ** rng.uniform(-5, -3)
    loss = np.exp(-t / rng.uniform(60, 200)) + floor
    return Made(np.abs(loss * (1 + _noise(rng, 4000, 0.3))))


def sine(rng: Rng) -> Made:
    t = np.arange(4000.0)
    period, height = rng.uniform(200, 700), rng.uniform(0.05, 0.12)
    wave = 1 + height * np.sin(2 * np.pi * t / period)
    return Made(_flat(rng, 4000) * wave, spare_acts=2)


def sorted_epoch(rng: Rng) -> Made:
    t, epoch = np.arange(4000), int(rng.integers(300, 600))
    share = rng.uniform(0.08, 0.2)
    late = (t % epoch) >= (1 - share) * epoch
    return Made(_flat(rng, 4000) * (1 + rng.uniform(0.15, 0.4) * late), spare_acts=2)


def epoch_saw_tooth(rng: Rng) -> Made:
    t, epoch = np.arange(4000), int(rng.integers(200, 500))
    drops = np.exp(-0.15 * (t // epoch))
    rise = 1 + rng.uniform(0.02, 0.09) * (t % epoch) / epoch
    return Made(_flat(rng, 4000) * drops * rise, spare_acts=2)


def second_task_in_blocks(rng: Rng) -> Made:
    t, block = np.arange(4000), int(rng.integers(60, 250))
    other = (t // block) % 3 == 2
    return Made(_flat(rng, 4000) * (1 + rng.uniform(0.3, 1.5) * other), spare_acts=2)


def second_task_now_and_then(rng: Rng) -> Made:
    blocks = [np.full(int(rng.integers(60, 200)), i % 2) for i in range(40)]
    other = np.concatenate(blocks)[:4000]
    return Made(_flat(rng, len(other)) * (1 + rng.uniform(0.3, 1.0) * other), spare_acts=2)


def second_task_at_random(rng: Rng) -> Made:
    share = rng.choice([0.01, 0.03, 0.05, 0.1, 0.15, 0.19, 0.25, 0.4])
    other = rng.random(4000) < share
    return Made(_flat(rng, 4000) * (1 + rng.uniform(0.4, 1.2) * other), spare_acts=1)


def warm_restarts(rng: Rng) -> Made:
    t, period = np.arange(4000), int(rng.integers(500, 900))
    rate = 0.5 * (1 + np.cos(np.pi * (t % period) / period))
    level = 2.0 + 2.0 * np.exp(-t / 600)
    loss = level * (1 + rng.uniform(0.05, 0.3) * (rate - 0.5)) * (1 + _noise(rng, 4000, 0.01))
    known = rng.random() < 0.5
    return Made(loss, rates=1e-3 * rate if known else None, spare_acts=0 if known else 2)


def raised_rate(rng: Rng) -> Made:
    at = int(rng.integers(300, 1500))
    rate = np.full(2500, 1e-4)
    rate[at:] *= rng.uniform(1.5, 4)
    loss = _flat(rng, 2500)
    loss[at:] *= rng.uniform(1.05, 1.3)
    return Made(loss, rates=rate)


def smaller_batch(rng: Rng) -> Made:
    at = int(rng.integers(300, 1500))
    tokens = np.full(2500, 4096.0)
    tokens[at:] /= rng.integers(2, 5)
    loss = _flat(rng, 2500)
    loss[at:] *= rng.uniform(1.05, 1.4)
    return Made(loss, tokens=tokens)


def announced_mix(rng: Rng) -> Made:
    at, steps = int(rng.integers(200, 1500)), int(rng.integers(100, 400))
    t = np.arange(2500.0)
    loss = _flat(rng, 2500)
    factor = 1 + rng.uniform(0.1, 1.5)
    lasting = rng.uniform(1.0, factor)
    fall = np.exp(-(t[at:] - at) / (steps / 4))
    loss[at:] *= lasting + (factor - lasting) * fall
    return Made(loss, expected=((at, steps),))


def noisy_classifier(rng: Rng) -> Made:
    t = np.arange(4000.0)
    loss = np.exp(_noise(rng, 4000, 0.5)) * (0.3 + 2 * np.exp(-t / 300))
    return Made(loss)


def long_flat(rng: Rng) -> Made:
    return Made(_flat(rng, 20_000, rng.choice([0.003, 0.02, 0.1])))


def constant(rng: Rng) -> Made:
    return Made(np.full(5000, rng.uniform(0.1, 10)) + _noise(rng, 5000, 1e-7))


def language_model(rng: Rng) -> Made:
    t = np.arange(1, 8001.0)
    loss = 2.0 + rng.uniform(4, 9) * t ** -rng.uniform(0.25, 0.5)
    return Made(loss * (1 + _noise(rng, 8000, rng.uniform(0.005, 0.03))), _calm(rng, 8000))


# -- with something to act on ------------------------------------------------------------------


def tiny_loss_times_twenty(rng: Rng) -> Made:
    at = int(rng.integers(200, 1500))
    loss = np.abs(10 ** rng.uniform(-6, -3) * (1 + _noise(rng, 2000, 0.3)))
    loss[at : at + 20] *= 20
    return Made(loss, events=(Event(at + 1, 20),))


def tiny_loss_times_three(rng: Rng) -> Made:
    at = int(rng.integers(200, 1500))
    loss = np.abs(10 ** rng.uniform(-6, -3) * (1 + _noise(rng, 2000, 0.3)))
    loss[at:] *= 3
    return Made(loss, events=(Event(at + 1, 100),))


def spike_after_a_drop(rng: Rng) -> Made:
    at = int(rng.integers(300, 1500))
    loss = _flat(rng, 2000)
    loss[at:] *= rng.uniform(0.75, 0.9)
    loss[at + 30 : at + 50] *= rng.uniform(1.3, 1.6)
    return Made(loss, events=(Event(at + 31, 20),))


def spike_after_a_steep_start(rng: Rng) -> Made:
    at = int(rng.integers(40, 64))
    loss = 2.5 + 8 * np.exp(-np.arange(150.0) / 3)
    loss *= 1 + _noise(rng, 150, 0.01)
    loss[0] *= rng.uniform(1, 100)
    loss[at : at + 20] *= rng.uniform(1.5, 3)
    return Made(loss, events=(Event(at + 1, 20),))


def ramp(rng: Rng) -> Made:
    at, length = int(rng.integers(300, 1500)), int(rng.choice([20, 60, 120, 250, 500]))
    loss = _flat(rng, at + 1200)
    loss *= 1 + 0.6 * np.clip((np.arange(len(loss)) - at) / length, 0, 1)
    return Made(loss, events=(Event(at + 1, 60 + length // 2, early=80),))


def ramp_after_a_long_plateau(rng: Rng) -> Made:
    made = ramp(rng)
    return replace(
        made,
        losses=np.concatenate([made.losses[0] * (1 + _noise(rng, 18_000, 0.01)), made.losses]),
        events=tuple(replace(e, start=e.start + 18_000) for e in made.events),
    )


def slow_rise(rng: Rng) -> Made:
    flat, rise = int(rng.integers(500, 4000)), int(rng.integers(2000, 6000))
    level = np.concatenate([np.full(flat, 2.0), np.linspace(2, 3, rise)])
    loss = level * (1 + _noise(rng, len(level), 0.01))
    return Made(loss, events=(Event(flat + 1, int(0.75 * rise), early=200),))


def divergence_after_a_fall(rng: Rng) -> Made:
    at = int(rng.integers(3000, 9000))
    t = np.arange(1, at + 1500.0)
    loss = 2.0 + 6 * t**-0.4
    loss[at:] += 0.004 * (np.arange(len(loss) - at)) ** rng.uniform(0.8, 1.1)
    grad = _calm(rng, len(t))
    grad[at:] *= 1 + 0.05 * np.arange(len(t) - at)
    loss *= 1 + _noise(rng, len(t), 0.01)
    return Made(loss, grad, events=(Event(at + 1, 500, early=150),))


def spike_in_a_season(rng: Rng) -> Made:
    made = sine(rng)
    loss, at = made.losses.copy(), int(rng.integers(2500, 3800))
    loss[at : at + 30] *= 2.5
    return replace(made, losses=loss, events=(Event(at + 1, 30),))


def spike_among_two_tasks(rng: Rng) -> Made:
    made = second_task_at_random(rng)
    loss, at = made.losses.copy(), int(rng.integers(2500, 3800))
    loss[at : at + 40] *= 4
    return replace(made, losses=loss, events=(Event(at + 1, 40),))


def spike_after_an_announced_mix(rng: Rng) -> Made:
    made = announced_mix(rng)
    ((start, steps),) = made.expected
    at = start + steps + 150
    loss = made.losses.copy()
    loss[at : at + 20] *= 2
    return replace(made, losses=loss, events=(Event(at + 1, 20),))


def explosion_of_a_critic(rng: Rng) -> Made:
    made = gan_critic(rng)
    loss, at = made.losses.copy(), int(rng.integers(1000, 3500))
    loss[at:] += np.exp(np.minimum(np.arange(len(loss) - at) * 0.3, 6))
    return replace(made, losses=loss, events=(Event(at + 1, 40),))


def explosion_of_a_policy(rng: Rng) -> Made:
    made = kl_penalty_that_levels_off(rng)
    loss, at = made.losses.copy(), int(rng.integers(1000, 2500))
    loss[at:] *= 50
    grad = _calm(rng, len(loss))
    grad[at:] *= 100
    return replace(made, losses=loss, grad_norms=grad, events=(Event(at + 1, 30),))


def reward_that_collapses(rng: Rng) -> Made:
    made = reward_that_rises(rng)
    loss, at = made.losses.copy(), int(rng.integers(1500, 2500))
    loss[at:] = 0.05 * loss[at:]
    return replace(made, losses=loss, events=(Event(at + 1, 30),))


KINDS: dict[str, tuple[Callable[[Rng], Made], ...]] = {
    "reinforcement learning": (
        policy_loss_that_is_zero_at_first,
        policy_loss_from_zero,
        policy_loss_about_zero,
        kl_penalty_that_levels_off,
        reward_that_rises,
        explosion_of_a_policy,
        reward_that_collapses,
    ),
    "GAN and energy": (
        gan_critic,
        level_that_wanders,
        energy_that_crosses_zero,
        likelihood_through_zero,
        explosion_of_a_critic,
    ),
    "near zero": (exponential_fall, tiny_loss_times_twenty, tiny_loss_times_three),
    "seasonal": (sine, sorted_epoch, epoch_saw_tooth, warm_restarts, spike_in_a_season),
    "several tasks": (
        second_task_in_blocks,
        second_task_now_and_then,
        second_task_at_random,
        spike_among_two_tasks,
    ),
    "announced": (raised_rate, smaller_batch, announced_mix, spike_after_an_announced_mix),
    "long and flat": (long_flat, constant, language_model, noisy_classifier),
    "divergence": (
        ramp,
        ramp_after_a_long_plateau,
        slow_rise,
        divergence_after_a_fall,
        spike_after_a_drop,
        spike_after_a_steep_start,
    ),
}
"""Kinds of series, each with its makers."""
