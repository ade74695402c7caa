"""Rates of the faults that strike at random, at every frame, transaction and call."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Iterable, Mapping

AMBIENT = ("lost", "late", "doubled", "reordered", "database", "cluster")
"""Faults that strike by chance, at each frame, step of a transaction, or call of the cluster."""
_WORST: Mapping[str, float] = {
    "lost": 0.02,
    "late": 0.02,
    "doubled": 0.03,
    "reordered": 0.03,
    "database": 0.01,
    "cluster": 0.2,
}
"""Highest chance of each, each time: with more, too little works to find defects in."""


@dataclasses.dataclass(slots=True)
class FaultRates:
    """The chances of one run of the fuzzer."""

    chances: dict[str, float]
    """By kind of fault, from 0 to 1; a kind that is missing never strikes."""

    @classmethod
    def drawn(cls, rng: random.Random, enabled: Iterable[str]) -> FaultRates:
        """Draw them: each kind of fault is absent from a third of all runs."""
        drawn = {kind: worst * max(0.0, rng.uniform(-0.5, 1.0)) for kind, worst in _WORST.items()}
        return cls({kind: drawn[kind] for kind in AMBIENT if kind in set(enabled)})

    def clear(self) -> None:
        """Nothing goes wrong by itself any more."""
        self.chances.clear()

    def strikes(self, kind: str, rng: random.Random) -> bool:
        """True if a fault happens here."""
        rate = self.chances.get(kind, 0.0)
        return rate > 0.0 and rng.random() < rate

    def network_seconds(self, rng: random.Random) -> float:
        """Seconds that one frame is under way."""
        if self.strikes("late", rng):
            return rng.uniform(1.0, 25.0)
        return rng.uniform(0.001, 0.05)

    def database_seconds(self, rng: random.Random) -> float:
        """Seconds that one step of a transaction takes."""
        if self.strikes("database", rng):
            return rng.uniform(0.5, 4.0)
        return rng.uniform(0.0005, 0.01)
