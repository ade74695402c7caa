"""Joins the reports of many processes about one step, for a rank that reports for all of them.

The loss of a step is the mean over the processes that gave one, so that one NaN among them shows.
A step is complete when every process has reported it, or a later one; a process that never reports
delays each step by `WAIT_SECONDS`. Steps at or below the last complete one are computed again: they
are counted, and reported no second time, since monitors expect growing steps.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping

WAIT_SECONDS = 1.0
"""Time for the other processes to report a step."""
_PENDING = 4096
"""Most steps that wait at a time; of more, the oldest are complete."""


@dataclasses.dataclass(frozen=True, slots=True)
class Part:
    """The report of one process about one step; None: not reported."""

    rank: int
    world_size: int
    step: int
    time: float
    """Unix seconds."""
    loss: float | None = None
    grad_norm: float | None = None
    tokens: float | None = None
    learning_rate: float | None = None
    metrics: Mapping[str, float] = dataclasses.field(default_factory=dict)


class RelayedSteps:
    """The steps of all processes; not thread-safe."""

    def __init__(self) -> None:
        self.last = 0
        """The last complete step; 0: none."""
        self._pending: dict[int, dict[int, Part]] = {}
        self._seen: dict[int, float] = {}
        """When a step was first heard of, by the caller's clock."""
        self._shift: int | None = None
        """Added to the steps of the script; 1 where it counts from 0."""

    def counted(self, step: int) -> int:
        """The step of the run that the script calls `step`: both count from 1."""
        if self._shift is None:
            self._shift = int(step == 0)
        return step + self._shift

    def add(self, part: Part, now: float) -> bool:
        """Take a report; returns False for a step that is computed again.

        Args:
            part: The report.
            now: Seconds of a clock that never goes back.
        """
        step = self.counted(part.step)
        if step <= self.last:
            return False
        self._pending.setdefault(step, {})[part.rank] = part
        self._seen.setdefault(step, now)
        return True

    def take(self, now: float, *, everything: bool = False) -> list[Part]:
        """The steps that became complete, in order; the rank of each is 0.

        Args:
            now: Seconds of the clock of :meth:`add`.
            everything: No more reports will come.
        """
        steps = sorted(self._pending)
        ready = [step for step in steps if everything or self._is_ready(step, now)]
        if len(steps) > _PENDING:
            ready.append(steps[len(steps) - _PENDING - 1])
        if not ready:
            return []
        found = [self._joined(step) for step in steps if step <= max(ready)]
        for part in found:
            del self._pending[part.step], self._seen[part.step]
        self.last = found[-1].step
        return found

    def _is_ready(self, step: int, now: float) -> bool:
        parts = self._pending[step]
        whole = max(part.world_size for part in parts.values())
        return len(parts) >= whole or now - self._seen[step] >= WAIT_SECONDS

    def _joined(self, step: int) -> Part:
        parts = [self._pending[step][rank] for rank in sorted(self._pending[step])]
        names = dict.fromkeys(name for part in parts for name in part.metrics)
        return Part(
            rank=0,
            world_size=len(parts),
            step=step,
            time=max(part.time for part in parts),
            loss=_mean(part.loss for part in parts),
            grad_norm=_largest(part.grad_norm for part in parts),
            tokens=_sum(part.tokens for part in parts),
            learning_rate=next(
                (p.learning_rate for p in parts if p.learning_rate is not None), None
            ),
            metrics={n: _mean(p.metrics.get(n) for p in parts) or 0.0 for n in names},
        )


def _known(values: Iterable[float | None]) -> list[float]:
    return [value for value in values if value is not None]


def _mean(values: Iterable[float | None]) -> float | None:
    known = _known(values)
    return sum(known) / len(known) if known else None


def _sum(values: Iterable[float | None]) -> float | None:
    known = _known(values)
    return sum(known) if known else None


def _largest(values: Iterable[float | None]) -> float | None:
    """The largest; NaN if any is NaN."""
    known = _known(values)
    if any(math.isnan(value) for value in known):
        return math.nan
    return max(known, default=None)
