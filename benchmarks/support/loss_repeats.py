"""Made series of losses in which rises repeat: restarts, epochs, seasons, tasks and walks.

Each maker draws level, noise, heights and intervals from a random generator, and says where the
rises begin: from the third on, none of them is an alarm. A walk has no such places.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]
Rng = np.random.Generator


class Repeats(NamedTuple):
    """One series, and the places (counted from 0) at which its rises begin."""

    losses: Values
    rises: tuple[int, ...] = ()

    @property
    def known_from(self) -> int:
        """The place of the third rise; 0: no rise is expected to alarm."""
        return self.rises[2] if len(self.rises) > 2 else 0


def _noisy(rng: Rng, losses: Values, most: float = 1.0) -> Values:
    sigma = min(most, float(rng.choice([0.003, 0.01, 0.03, 0.08])))
    return losses * np.exp(sigma * rng.standard_normal(len(losses)))


def _fall(rng: Rng, steps: int) -> Values:
    """A level: flat, or falling as training goes on."""
    t = np.arange(steps)
    floor = rng.uniform(0.5, 4.0)
    return np.asarray(
        floor * (1 + rng.choice([0.0, 0.3, 1.0]) * np.exp(-t / rng.uniform(200, 900)))
    )


def _smooth(losses: Values, lag: float) -> Values:
    if lag < 1:
        return losses
    out, now = np.empty_like(losses), float(losses[0])
    for i, value in enumerate(losses):
        now += (float(value) - now) / lag
        out[i] = now
    return out


def _starts(intervals: list[int]) -> list[int]:
    return [int(v) for v in np.cumsum(intervals)]


def _cosine(rng: Rng, intervals: list[int], factor: float) -> Repeats:
    """Cosine annealing with restarts: the loss leaps with the rate, and falls with it."""
    starts = [0, *_starts(intervals)]
    steps = starts[-1]
    height = rng.uniform(0.1, 0.8)
    wave = np.zeros(steps)
    for cycle, (begin, end) in enumerate(itertools.pairwise(starts)):
        phase = np.arange(end - begin) / (end - begin)
        top = min(2.0, height * factor**cycle)
        wave[begin:end] = top * 0.5 * (1 + np.cos(np.pi * phase))
    wave = _smooth(wave, float(rng.choice([0, 3, 10, 40])))
    return Repeats(_noisy(rng, _fall(rng, steps) * (1 + wave)), tuple(starts[1:-1]))


def _amplitude(rng: Rng) -> float:
    return float(rng.choice([0.8, 0.9, 1.0, 1.0, 1.1, 1.25]))


def equal_restarts(rng: Rng) -> Repeats:
    """Restarts at equal intervals."""
    return _cosine(rng, [int(rng.integers(250, 1000))] * 8, _amplitude(rng))


def growing_restarts(rng: Rng) -> Repeats:
    """Restarts whose intervals grow by a factor (`T_mult` of the usual scheduler)."""
    factor = float(rng.choice([1.5, 2.0]))
    first = int(rng.integers(60, 200))
    cycles = 7 if factor < 2 else 6
    return _cosine(rng, [int(first * factor**i) for i in range(cycles)], _amplitude(rng))


def irregular_restarts(rng: Rng) -> Repeats:
    """Restarts when someone, or a plateau, says so."""
    return _cosine(rng, [int(rng.integers(150, 1200)) for _ in range(8)], _amplitude(rng))


def _bumps(rng: Rng, starts: list[int], steps: int, factor: float, longest: int) -> Repeats:
    height, length = rng.uniform(0.2, 1.5), int(rng.integers(6, longest))
    wave, sharp = np.zeros(steps), rng.random() < 0.5
    for i, start in enumerate(starts):
        shape = np.linspace(1, 0.05, length) if sharp else np.full(length, 1.0)
        shape = height * factor**i * rng.uniform(0.9, 1.1) * shape
        wave[start : start + length] += shape[: max(0, steps - start)]
    visible = float(np.max(wave[: starts[0] + length])) / 15  # from the first one on
    return Repeats(_noisy(rng, _fall(rng, steps) * (1 + wave), visible), tuple(starts))


def epoch_starts(rng: Rng) -> Repeats:
    """The first batches of an epoch are harder."""
    period = int(rng.choice([100, 200, 450, 1000, 2000, 3000]))
    starts = [period * i for i in range(1, 8)]
    return _bumps(rng, starts, 8 * period, _amplitude(rng), min(40, period // 3))


def bumps_at_any_time(rng: Rng) -> Repeats:
    """One hard stretch comes at irregular intervals."""
    starts = _starts([int(rng.integers(200, 900)) for _ in range(8)])
    return _bumps(rng, starts, starts[-1] + 400, _amplitude(rng), 60)


def epoch_saw_tooth(rng: Rng) -> Repeats:
    """The loss creeps up within an epoch, and drops at the next."""
    period = int(rng.choice([100, 300, 700, 1500, 3000]))
    t = np.arange(8 * period)
    drops = rng.choice([1.0, 0.95, 0.85]) ** (t // period)
    wave = rng.uniform(0.05, 0.5) * (t % period) / period
    losses = _noisy(rng, _fall(rng, len(t)) * drops * (1 + wave))
    return Repeats(losses, tuple(period * i for i in range(8)))


def falling_saw_tooth(rng: Rng) -> Repeats:
    """The loss leaps at each epoch, and falls within it: batches go from hard to easy."""
    period = int(rng.choice([100, 300, 700, 1500, 3000]))
    t = np.arange(8 * period)
    wave = rng.uniform(0.05, 0.6) * (1 - (t % period) / period)
    losses = _noisy(rng, _fall(rng, len(t)) * (1 + wave))
    return Repeats(losses, tuple(period * i for i in range(1, 8)))


def season(rng: Rng) -> Repeats:
    """Data by the hour of the day: a wave with a second harmonic."""
    period = int(rng.integers(150, 1500))
    steps = max(4000, 7 * period)
    t = 2 * np.pi * (np.arange(steps) / period + rng.uniform(0, 1))
    wave = np.sin(t) + rng.uniform(0, 0.5) * np.sin(2 * t + rng.uniform(0, 6))
    losses = _noisy(rng, _fall(rng, steps) * np.exp(rng.uniform(0.05, 0.4) * wave))
    return Repeats(losses, tuple(range(0, steps, period)))


def second_task(rng: Rng) -> Repeats:
    """Another task in blocks, at equal or at irregular intervals, long or short."""
    even = rng.random() < 0.5
    block, gap = int(rng.integers(20, 300)), int(rng.integers(100, 600))
    starts, place, wave = [], gap, np.zeros(9000)
    height = rng.uniform(0.2, 1.5)
    while place + block < 8000 and len(starts) < 9:
        length = block if even else int(block * rng.uniform(0.6, 1.4))
        wave[place : place + length] = height
        starts.append(place)
        place += length + (gap if even else int(gap * rng.uniform(0.5, 2)))
    steps = place
    return Repeats(_noisy(rng, _fall(rng, steps) * (1 + wave[:steps])), tuple(starts))


def _walk(rng: Rng, steps: int, pull: float, step: float) -> Values:
    out, x = np.empty(steps), 0.0
    for i, draw in enumerate(rng.standard_normal(steps)):
        x += step * float(draw) - pull * x
        out[i] = x
    return out


def value_loss(rng: Rng) -> Repeats:
    """The value loss of a policy that learns: its logarithm wanders, heavy-tailed noise on it."""
    pull, step = float(rng.choice([0, 0.001, 0.005, 0.02])), rng.uniform(0.005, 0.03)
    noise = rng.uniform(0.05, 0.4) * rng.standard_t(5, 4000)
    return Repeats(rng.uniform(0.01, 5) * np.exp(_walk(rng, 4000, pull, step) + noise))


def level_walk(rng: Rng) -> Repeats:
    """A level that wanders, with little noise on it."""
    pull, step = float(rng.choice([0, 0.002, 0.01, 0.03])), rng.uniform(0.002, 0.01)
    walk = _walk(rng, 4000, pull, step)
    return Repeats(rng.uniform(0.5, 3) * np.exp(walk + 0.02 * rng.standard_normal(4000)))


REPEATING: tuple[Callable[[Rng], Repeats], ...] = (
    equal_restarts,
    growing_restarts,
    irregular_restarts,
    epoch_starts,
    bumps_at_any_time,
    epoch_saw_tooth,
    falling_saw_tooth,
    season,
    second_task,
)
"""Kinds of series that repeat themselves."""

WANDERING: tuple[Callable[[Rng], Repeats], ...] = (value_loss, level_walk)
"""Kinds of series that go up and down as they please."""
