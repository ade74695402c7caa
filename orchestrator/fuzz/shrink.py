"""Making a failing story small: without the faults that it does not need."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

from orchestrator.fuzz.fault_rates import AMBIENT
from orchestrator.fuzz.plan import FAULTS, Choice, Plan, draw
from orchestrator.fuzz.world import Outcome, World


def tell(plan: Plan, choice: Choice) -> Outcome:
    """Tell one story."""
    return World(plan, choice).tell()


def tell_seed(choice: Choice, seed: int) -> Outcome:
    """Tell the story of a seed."""
    return tell(draw(seed), choice)


@dataclasses.dataclass(slots=True)
class Shrinker:
    """Leaves out one fault after the other, as long as a promise is still broken.

    Attributes:
        choice: The smallest that was found.
        outcome: How its story ends.
        go_on: Asked before each try; False ends the search.
    """

    plan: Plan
    choice: Choice
    outcome: Outcome
    go_on: Callable[[], bool]

    def shrink(self) -> None:
        """Halves of the blows first, then single ones, then whole kinds of fault."""
        blows = [blow.number for blow in self.outcome.blows]
        size = len(blows)
        while size:
            blows = self._without_chunks(blows, size)
            size //= 2
        for kind in AMBIENT:
            self._try(self.choice.faults - {kind}, self.choice.only)
        self._name_kinds_needed()

    def _without_chunks(self, blows: Sequence[int], size: int) -> list[int]:
        """Leave out so many at a time, wherever they are not needed."""
        left, at = list(blows), 0
        while at < len(left):
            fewer = left[:at] + left[at + size :]
            if self._try(self.choice.faults, frozenset(fewer)):
                left = fewer
            else:
                at += size
        return left

    def _name_kinds_needed(self) -> None:
        """Blows are named by number: their kinds need no naming, and those left out none either."""
        fallen = {blow.kind for blow in self.outcome.blows}
        kinds = frozenset(k for k in FAULTS if k in self.choice.faults & {*AMBIENT, *fallen})
        self._try(kinds, self.choice.only)

    def _try(self, faults: frozenset[str], only: frozenset[int] | None) -> bool:
        choice = Choice(faults, only)
        if choice == self.choice or not self.go_on():
            return False
        outcome = tell(self.plan, choice)
        if outcome.broken:
            self.choice, self.outcome = choice, outcome
        return bool(outcome.broken)


def command(seed: int, choice: Choice) -> str:
    """What to type to see a story again."""
    words = [f"python -m orchestrator.fuzz {seed}"]
    if choice.faults != frozenset(FAULTS):
        kinds = ",".join(kind for kind in FAULTS if kind in choice.faults)
        words.append(f"--faults {kinds or 'none'}")
    if choice.only is not None:
        words.append(f"--only {','.join(map(str, sorted(choice.only))) or 'none'}")
    return " ".join(words)
