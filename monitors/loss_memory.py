"""The part of a loss monitor's memory that is kept with the run, as text.

A monitor is rebuilt from the newest stored samples, but what it has learned may be older. The text
is written by :meth:`LossMemory.text` and read by :meth:`LossMemory.read`; to everybody else it is
opaque. Text of another version that cannot be read counts as nothing learned: never an error.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from monitors.answered import Acted, Height
from monitors.recurrence import Returned
from monitors.replica_memory import ReplicaMemory
from monitors.swings import Swing

RISES = 16
"""Rises of each sort that are kept at most."""
ACTS = 8
"""Acts of each sort that are kept at most."""
LEAST_VALUES = 2
"""Least values above the gate of a rise that is kept: lone bad batches come by the hundred."""
_R = TypeVar("_R", bound=tuple[Any, ...])


class LossMemory(BaseModel):
    """Rises of one series that came back, and those that were rolled back; the newest of each."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    step: int = 0
    """The newest step when it was taken."""
    place: int = 0
    """Values of the series up to that step."""
    stride: float = 1.0
    """Steps from report to report."""
    returned: tuple[Returned, ...] = ()
    swings: tuple[Swing, ...] = ()
    acted: tuple[tuple[int, Acted], ...] = ()
    """Acts of the newest attempt, with its number."""
    undone: tuple[tuple[int, Acted], ...] = ()
    """Acts that rollbacks undid, each with its attempt."""
    back: tuple[Height, ...] = ()
    """Heights of rises that came back within a respite."""
    replicas: ReplicaMemory = ReplicaMemory()
    """Knowledge of which ranks share their weights; no monitor of losses uses it."""

    @property
    def rises(self) -> tuple[object, ...]:
        """The knowledge without the place of the series: differs once something is new."""
        return self.returned, self.swings, self.acted, self.undone, self.back

    def text(self) -> str:
        """The memory as JSON of about 5 KB at most."""
        return self.model_dump_json()

    @staticmethod
    def read(text: str) -> LossMemory:
        """The memory from its text; an empty one if the text is empty or cannot be read."""
        with contextlib.suppress(ValidationError):
            return LossMemory.model_validate_json(text or "{}")
        return LossMemory()


def newest(rises: Iterable[_R], most: int = RISES) -> tuple[_R, ...]:
    """The newest of them in which all numbers are finite: JSON knows no infinity."""
    return tuple(rise for rise in rises if _finite(rise))[-most:]


def _finite(rise: tuple[Any, ...]) -> bool:
    return all(
        _finite(value) if isinstance(value, tuple) else math.isfinite(value) for value in rise
    )
