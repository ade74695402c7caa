"""What may go wrong by itself, at every message, transaction and call: how often, and how badly."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Iterable, Mapping

AMBIENT = ("lost", "late", "doubled", "reordered", "database", "cluster")
"""Faults that strike by chance, each time something is said or done."""
_WORST: Mapping[str, float] = {
    "lost": 0.02,
    "late": 0.02,
    "doubled": 0.03,
    "reordered": 0.03,
    "database": 0.01,
    "cluster": 0.2,
}
"""Highest chance of each."""


@dataclasses.dataclass(slots=True)
class Weather:
    """The chances of a story."""

    rates: dict[str, float]

    @classmethod
    def drawn(cls, chance: random.Random, enabled: Iterable[str]) -> Weather:
        """Each kind of fault is absent from a third of all stories."""
        drawn = {
            kind: worst * max(0.0, chance.uniform(-0.5, 1.0)) for kind, worst in _WORST.items()
        }
        return cls({kind: drawn[kind] for kind in AMBIENT if kind in set(enabled)})

    def clear(self) -> None:
        """Nothing goes wrong by itself any more."""
        self.rates.clear()

    def strikes(self, kind: str, chance: random.Random) -> bool:
        """Whether a fault happens here."""
        rate = self.rates.get(kind, 0.0)
        return rate > 0.0 and chance.random() < rate

    def network_seconds(self, chance: random.Random) -> float:
        """How long one message is under way."""
        if self.strikes("late", chance):
            return chance.uniform(1.0, 25.0)
        return chance.uniform(0.001, 0.05)

    def disk_seconds(self, chance: random.Random) -> float:
        """How long one step of a transaction takes."""
        if self.strikes("database", chance):
            return chance.uniform(0.5, 4.0)
        return chance.uniform(0.0005, 0.01)
