"""When a rank takes fingerprints of its state, and how they reach the control plane.

The problem: ranks must take them at the same steps to be comparable, without a collective; and the
default must cost less than 1 % of a step, whatever the model, and not flood the control plane.

The design: each rank measures what a digest costs and how long its steps take, and takes one at the
steps divisible by a power of two, so that those of a rank with a longer interval are steps of all
others too. The first two steps of an attempt are always taken.

Limits: ranks whose intervals differ are compared at the longest of them.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Mapping
from typing import Any, TypedDict

from babysit.numbers import real, said
from babysit.reporter import Reporter
from babysit.wire import Plan

SHARE = 0.005
"""Most of the time of training that fingerprints take by default."""
FINGERPRINTS_PER_SECOND = 50.0
"""Fingerprints that all ranks of a run take together in a second by default."""
LONGEST = 1 << 16
"""Most steps between two fingerprints."""
_COSTS = 5


class Options(TypedDict, total=False):
    """Options of :meth:`babysit.run.Run.fingerprint`."""

    gradients: bool
    """Compare gradients too: take it before they are cleared."""
    buffers: bool
    """Compare buffers too; those of BatchNorm differ between data-parallel ranks."""
    reduced: Mapping[str, Any] | None
    """Numbers that all ranks share, such as an all-reduced loss or the norm of the gradients."""
    every: int | None
    """Steps between two; None: as many as keep the cost below 1 % of the time."""


class Interval:
    """Steps between two fingerprints: the power of two that keeps them cheap."""

    def __init__(self, world_size: int) -> None:
        self.steps = 1
        self._pause = world_size / FINGERPRINTS_PER_SECOND
        self._costs: deque[float] = deque(maxlen=_COSTS)
        self._before: tuple[int, float] | None = None
        """Step and end of the fingerprint before, seconds of any clock."""
        self._first: int | None = None

    def is_due(self, step: int) -> bool:
        """True at the steps that this rank takes."""
        if self._first is None:
            self._first = step
        return step <= self._first + 1 or step % self.steps == 0

    def taken(self, step: int, begun: float, ended: float) -> None:
        """Learn from a fingerprint that was taken."""
        self._costs.append(ended - begun)
        before, self._before = self._before, (step, ended)
        if before is None or step <= before[0]:
            return
        pace = max(1e-6, (begun - before[1]) / (step - before[0]))
        wanted = max(min(self._costs) / (SHARE * pace), self._pause / pace)
        self.steps = min(LONGEST, 1 << max(0, math.ceil(math.log2(max(1.0, wanted)))))


class Fingerprints:
    """Takes the fingerprints of one rank. Never raises."""

    def __init__(self, plan: Plan, reporter: Reporter) -> None:
        self._world_size = plan.world_size
        self._reporter = reporter
        self._interval = Interval(plan.world_size)

    def take(self, at: tuple[int, int], model: Any, optimizer: Any, options: Options) -> str | None:
        """Take a fingerprint of a step (and batch) if one is due."""
        step, every = at[0], options.get("every")
        try:
            due = step % max(1, every) == 0 if every else self._interval.is_due(step)
            return self._taken(at, model, optimizer, options) if due else None
        except Exception as error:  # noqa: BLE001 (the script's own tensors; training must go on)
            # Without the step, so that a cause that comes at each step is one warning.
            self._reporter.warn(f"run.fingerprint is left out: {said(error)}")
            return None

    def _taken(self, at: tuple[int, int], model: Any, optimizer: Any, options: Options) -> str:
        from babysit import fingerprint  # noqa: PLC0415  # imports torch

        several = optimizer if isinstance(optimizer, list | tuple) else (optimizer,)
        wanted = fingerprint.Wanted(
            model,
            tuple(each for each in several if each is not None),
            gradients=options.get("gradients", False),
            buffers=options.get("buffers", False),
        )
        fingerprint.settle(model)
        begun = time.perf_counter()
        parts = fingerprint.parts(wanted)
        self._interval.taken(at[0], begun, time.perf_counter())
        for name, value in (options.get("reduced") or {}).items():
            number = real(value)
            if number is not None:
                parts[f"{name}:reduced"] = fingerprint.bits_of(number)
        self._reporter.fingerprint(
            step=at[0], batch=at[1], world_size=self._world_size, parts=parts
        )
        return fingerprint.joined(parts)
