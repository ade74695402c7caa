"""Series of losses with their rollbacks played, and rises of many shapes that repeat.

The problem: on a series that is only read, every rise is seen to the end. A run that is rolled back
never comes to the end of it, so what repeats must be learned from rollbacks alone.

The design: after each act the run goes back to a checkpoint before the onset, and the next values
come again: the same ones, or without the rise, or without the batches that were quarantined. The
shapes are drawn from a wide space: level, fall, noise, height, length, interval, batch size (which
divides the noise) and steps from report to report.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from benchmarks.support.loss_repeats import Repeats, Rng, Values
from benchmarks.support.loss_verdicts import Act, sample_of
from monitors.loss import LossMonitor
from monitors.types import FindingKind

Replay = Literal["with", "without", "skip"]
"""The values after a rollback: `with` the rise again, `without` it, or `skip`: the second time at
one place, the batches of the rise's beginning are left out."""
_SKIPPED = 20
_ENOUGH_ACTS = 12


@dataclass(frozen=True)
class Habits:
    """How a run reports and saves, and what comes after a rollback."""

    replay: Replay = "with"
    stride: int = 1
    """Steps from report to report."""
    checkpoints: int = 100
    """Reports from checkpoint to checkpoint."""
    late: int = 2
    """Reports that still come until the ranks have stopped."""


def played(
    losses: Values, habits: Habits, monitor: LossMonitor | None = None
) -> tuple[list[Act], Values]:
    """The acts on a series with each rollback played, at most 12, and the series as it came."""
    monitor, attempt, place = monitor or LossMonitor(), 1, 0
    acts: list[Act] = []

    def observe(at: int) -> list[Act]:
        sample = sample_of((at + 1) * habits.stride, float(losses[at]), attempt)
        return [
            Act(finding.onset_step, finding.detected_step)
            for finding in monitor.observe(sample)
            if finding.kind in (FindingKind.LOSS_SPIKE, FindingKind.NON_FINITE)
        ]

    while place < len(losses) and len(acts) < _ENOUGH_ACTS:
        found = observe(place)
        place += 1
        if not found:
            continue
        acts.append(found[0])
        for late in range(place, min(len(losses), place + habits.late)):
            observe(late)
        onset = found[0].onset // habits.stride - 1
        losses = _replayed(losses, onset, acts, habits)
        place = max(0, (onset // habits.checkpoints - 1) * habits.checkpoints)
        attempt += 1
        monitor.reset(attempt, place * habits.stride)
    return acts, losses


def _replayed(losses: Values, onset: int, acts: list[Act], habits: Habits) -> Values:
    if habits.replay == "without":
        return _without(losses, onset)
    near = [act for act in acts if abs(act.onset - acts[-1].onset) <= _SKIPPED * habits.stride]
    if habits.replay == "skip" and len(near) > 1:
        return np.concatenate([losses[:onset], losses[onset + _SKIPPED :]])
    return losses


def _without(losses: Values, onset: int) -> Values:
    """The series with its rise at a place replaced by what came before."""
    before = losses[max(0, onset - 64) : onset]
    limit = 1.03 * float(np.median(before[-40:]))
    end, calm = onset, 0
    while end < len(losses) and calm < 8:
        calm = calm + 1 if losses[end] < limit else 0
        end += 1
    flat = losses.copy()
    flat[onset:end] = np.resize(before, end - onset)
    return flat


def drawn_habits(rng: Rng) -> Habits:
    """Habits of a run, at random."""
    replay: Replay = ("with", "without", "skip")[int(rng.integers(3))]
    return Habits(
        replay,
        stride=int(rng.choice([1, 1, 5, 10, 50])),
        checkpoints=int(rng.integers(20, 150)),
        late=int(rng.integers(0, 8)),
    )


def drawn_rises(rng: Rng) -> Repeats:
    """Six to nine rises of one shape, evenly spaced or not, on a level that falls or stays."""
    count = int(rng.integers(6, 10))
    interval = int(np.exp(rng.uniform(np.log(100), np.log(1500))))
    spread = float(rng.choice([0.0, 0.0, 0.05, 0.5]))
    gaps = [int(interval * (1 + spread * rng.uniform(-1, 1))) for _ in range(count)]
    starts = np.cumsum([max(90, gap) for gap in gaps])
    length = int(np.exp(rng.uniform(np.log(5), np.log(0.6 * min(gaps)))))
    wave = np.zeros(int(starts[-1]) + interval)
    height, shape = np.exp(rng.uniform(np.log(0.15), np.log(1.2))), _shape(rng, length)
    growth = float(rng.choice([0.9, 1.0, 1.0, 1.1]))
    for i, start in enumerate(starts):
        rise = height * growth**i * rng.uniform(0.9, 1.1) * shape
        room = len(wave) - int(start)
        wave[start : start + length] += rise[:room]
    steps = np.arange(len(wave))
    fall = rng.choice([0.0, 0.0, 0.3, 1.0]) * np.exp(-steps / rng.uniform(100, 800))
    level = float(np.exp(rng.uniform(np.log(1e-3), np.log(50)))) * (1 + fall)
    batch = float(rng.choice([1, 4, 16]))
    noise = min(height / 12, float(np.exp(rng.uniform(np.log(0.003), np.log(0.1))))) / batch**0.5
    losses = level * (1 + wave) * np.exp(noise * rng.standard_normal(len(wave)))
    return Repeats(losses, tuple(int(start) for start in starts))


def _shape(rng: Rng, length: int) -> Values:
    """A rise of height 1: a block, a leap that dies away, or a hill."""
    at = np.linspace(0, 1, length)
    kinds = (np.ones(length), 1 - 0.95 * at, np.exp(-3 * at), np.sin(np.pi * (0.02 + 0.96 * at)))
    return np.asarray(kinds[int(rng.integers(len(kinds)))])
