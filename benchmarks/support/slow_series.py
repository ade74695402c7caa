"""Made series of whole runs, in virtual time: what their ranks report, slow and healthy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from babysit.wire import Phase
from monitors.run_monitors import MonitorSettings, RunMonitors
from monitors.save_stalls import SavedShard
from monitors.types import Beat, Finding, FindingKind, Sample

SLOWDOWNS = frozenset(
    {
        FindingKind.DATA_STALL,
        FindingKind.CHECKPOINT_STALL,
        FindingKind.STARTUP_STALL,
        FindingKind.THROUGHPUT_DROP,
    }
)


@dataclass
class Step:
    """The seconds of one step of all ranks."""

    compute: float = 1.0
    data: float = 0.02
    blocked: float = 0.0
    """By a save."""
    write: float = 0.0
    """Of its shards, in the background; 0: no save."""
    evaluate: float = 0.0
    """Announced by `run.phase`."""
    tokens: float = 0.0
    mfu: float = 0.0
    expected: int = 0
    """Steps of a change that is announced here."""


@dataclass
class Play:
    """A run whose monitors are fed as the control plane does it."""

    rng: np.random.Generator
    ranks: int = 2
    noise: float = 0.05
    report_every: int = 1
    shard_bytes: int = 10**9
    look_seconds: float = 4.0
    """Between two looks of the control plane; a real one looks each second."""
    monitors: RunMonitors = field(default_factory=lambda: RunMonitors(MonitorSettings()))
    attempt: int = 0
    step: int = 0
    now: float = 1000.0
    found: list[Finding] = field(default_factory=list)

    def begin(self, *, start: float = 20.0, restore: float = 0.0, step: int = 0) -> None:
        """A new attempt: its ranks start, load, and are about to end their first step."""
        self.attempt += 1
        self.step = step if self.attempt > 1 else 0
        self._parts = np.zeros(7)
        self._reported = self._blocked = self._tokens = 0.0
        self._expected = 0
        self._ticked = self.now
        self._beat, self._shown = self.now, 0
        self._pass(start, Phase.STARTING)
        self._pass(restore, Phase.RESTORING)
        self._shown, self._reported = self.step, self.now

    def train(self, steps: int, change: Callable[[int, Step], None] | None = None) -> None:
        """Train. `change` alters each step; it is given its number within this call, from 0."""
        for number in range(steps):
            step = Step()
            if change is not None:
                change(number, step)
            self._train(step)

    def _train(self, step: Step) -> None:
        data_noise, compute_noise = np.exp(self.rng.normal(0.0, self.noise, 2)).tolist()
        data, compute = step.data * data_noise, step.compute * compute_noise
        if step.expected:
            self._expected = self.step + step.expected
        self._pass(data, Phase.LOADING)
        self._pass(compute, Phase.TRAINING)
        self.step += 1
        self._shown = self.step
        self._parts += [compute, data, 0, 0, 0, 0, 0]
        self._beat = self.now
        self._tokens += step.tokens
        if self.step % self.report_every == 0:
            self._report(step)
        if step.blocked:
            self._pass(step.blocked, Phase.CHECKPOINTING)
            self._parts[6] += step.blocked
            self._blocked += step.blocked
        if step.write:
            self._save(step.write + step.blocked)
        if step.evaluate:
            self._pass(step.evaluate, Phase.EVALUATING)
            self._parts[6] += step.evaluate

    def _report(self, step: Step) -> None:
        sample = Sample.model_construct(
            attempt=self.attempt,
            rank=0,
            step=self.step,
            batch=self.step,
            time=1e9 + self.now,
            loss=None,
            tokens=self._tokens,
            seconds=self.now - self._reported,
            blocked_seconds=self._blocked,
            expected_until=self._expected if self._expected >= self.step else 0,
            mfu=step.mfu,
        )
        self._reported, self._blocked, self._tokens = self.now, 0.0, 0.0
        self._take(self.monitors.observe([sample]))

    def _save(self, seconds: float) -> None:
        shards = [
            SavedShard(
                self.attempt, self.step, rank, self.ranks, 1e9 + self.now, seconds, self.shard_bytes
            )
            for rank in range(self.ranks)
        ]
        self._take(self.monitors.saved(shards))

    def _pass(self, seconds: float, phase: Phase) -> None:
        until = self.now + seconds
        while self._ticked + self.look_seconds <= until:
            self._ticked += self.look_seconds
            moved = phase is not Phase.STARTING
            beats = [
                Beat(
                    self.attempt,
                    rank,
                    self._shown,
                    phase,
                    1e9 + self._beat,
                    moved=moved,
                    parts=tuple(self._parts),
                )
                for rank in range(self.ranks)
            ]
            nodes = {rank: f"node-{rank}" for rank in range(self.ranks)}
            self._take(
                self.monitors.tick(self._ticked, beats, wall=1e9 + self._ticked, nodes=nodes)
            )
        self.now = until

    def _take(self, found: list[Finding]) -> None:
        self.found += [each for each in found if each.kind in SLOWDOWNS]
