"""Limits for the figures of checks, learned from the figures of like nodes. Pure.

The problem: a healthy rate differs from one kind of machine to the next, and a table of expected
rates is wrong on the day when it is written. The design follows SuperBench (Xiong and others,
USENIX ATC 2024): the fleet itself says what is normal. The limit is a robust bound below the median
of the other nodes of the same kind, so that a few slow nodes move it hardly.

Limits of the method: a fleet that is slow as a whole looks healthy; with few nodes there is no
limit at all.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Sequence

_NORMAL = 1.4826
"""The deviation of a normal distribution is 1.4826 times its median absolute deviation."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class FleetLimits:
    """How far a node may fall behind like nodes."""

    least_nodes: int = 8
    """Other nodes of the same kind, from which on there is a limit. An estimate of ours: the median
    of eight moves by less than a deviation when two of them are slow."""
    deviations: float = 5.0
    """Robust deviations below the median. An estimate of ours: of 10,000 normal figures none."""
    share: float = 0.2
    """The least distance, as a share of the median. Rates of healthy nodes spread by less than 5 %
    in SuperBench's data; shared disks spread more."""

    def lower(self, others: Sequence[float]) -> float | None:
        """The figure below which a node fails; None: too few others, or no figure to judge by.

        Args:
            others: One figure for each other node of the same kind.
        """
        if len(others) < self.least_nodes:
            return None
        middle = statistics.median(others)
        spread = _NORMAL * statistics.median(abs(each - middle) for each in others)
        limit = middle - max(self.deviations * spread, self.share * middle)
        return limit if limit > 0 else None

    def upper(self, others: Sequence[float], least_margin: float) -> float | None:
        """The figure above which a node fails, for figures that are best small; None as above.

        Args:
            others: One figure for each other node of the same kind.
            least_margin: The least distance from the median, in the unit of the figures.
        """
        if len(others) < self.least_nodes:
            return None
        middle = statistics.median(others)
        spread = _NORMAL * statistics.median(abs(each - middle) for each in others)
        return middle + max(self.deviations * spread, least_margin)
