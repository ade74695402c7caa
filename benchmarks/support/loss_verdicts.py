"""Series of losses, what a rule should do on each, and whether it did."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from monitors.loss import LossMonitor, LossSettings
from monitors.types import FindingKind, Sample

Values = NDArray[np.float64]


@dataclass(frozen=True)
class Event:
    """A rise that a monitor should act on. Steps count from 1."""

    start: int
    within: int
    """Steps after the start in which the act should come."""
    early: int = 64
    """Steps by which the onset may be named too early."""


@dataclass(frozen=True)
class Made:
    """One series and what should happen on it."""

    losses: Values
    grad_norms: Values | None = None
    rates: Values | None = None
    tokens: Values | None = None
    expected: tuple[tuple[int, int], ...] = ()
    """Announced changes: the step of the announcement, and for how many steps."""
    direction: Literal["down", "up"] = "down"
    events: tuple[Event, ...] = ()
    spare_acts: int = 0
    """Acts outside the events that are forgiven (what repeats must be seen twice to be known)."""


@dataclass(frozen=True)
class Act:
    """The alarm of a rule: the onset that it named, and the step at which it spoke."""

    onset: int
    detected: int


def right(made: Made, acts: Sequence[Act]) -> bool:
    """True if each event was acted on in time, with its onset, and little else was."""
    used: set[int] = set()
    for event in made.events:
        found = [
            i
            for i, act in enumerate(acts)
            if event.start <= act.detected <= event.start + event.within
        ]
        if not found or acts[found[0]].onset < event.start - event.early:
            return False
        used.update(found)
        # A rise that goes on may be said again.
        used.update(i for i, act in enumerate(acts) if act.detected > event.start + event.within)
    return len(acts) - len(used) <= made.spare_acts


def judged(made: Made, acts: Sequence[Act]) -> str:
    """`right`, `harm` (an act on a healthy stretch) or `missed`."""
    if right(made, acts):
        return "right"
    healthy = [act for act in acts if not any(event.start <= act.detected for event in made.events)]
    return "harm" if len(healthy) > made.spare_acts else "missed"


def sample_of(step: int, loss: float, attempt: int = 1, **fields: float) -> Sample:
    """A sample of rank 0."""
    return Sample.model_construct(
        attempt=attempt,
        rank=0,
        step=step,
        batch=step,
        time=float(step),
        loss=loss,
        **fields,  # type: ignore[arg-type]  # each is a number
    )


def samples_of(made: Made) -> list[Sample]:
    """The series as one rank reports it."""
    until = {start: start + steps for start, steps in made.expected}
    columns = {
        "grad_norm": made.grad_norms,
        "learning_rate": made.rates,
        "tokens": made.tokens,
    }
    return [
        sample_of(
            i + 1,
            float(loss),
            expected_until=until.get(i, 0),
            **{name: float(column[i]) for name, column in columns.items() if column is not None},
        )
        for i, loss in enumerate(made.losses)
    ]


def acts_of(made: Made, settings: LossSettings | None = None) -> list[Act]:
    """Kinds of finding on which babysit acts."""
    monitor = LossMonitor(settings or LossSettings(direction=made.direction))
    return [
        Act(finding.onset_step, finding.detected_step)
        for sample in samples_of(made)
        for finding in monitor.observe(sample)
        if finding.kind in (FindingKind.LOSS_SPIKE, FindingKind.NON_FINITE)
    ]
