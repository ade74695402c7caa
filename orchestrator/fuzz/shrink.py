"""Making a failure small: without the faults that it does not need.

The smallest plan found still breaks an invariant, though perhaps another one than at first: both
are worth mending.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

from orchestrator.fuzz.fault_rates import AMBIENT
from orchestrator.fuzz.plan import FAULT_KINDS, Choice, Plan
from orchestrator.fuzz.simulation import Outcome, run_plan


@dataclasses.dataclass(slots=True)
class Shrinker:
    """Leaves out one fault after the other, for as long as an invariant is still broken.

    Attributes:
        choice: The smallest that was found.
        outcome: How that run ends.
        go_on: Asked before each try; False ends the search.
    """

    plan: Plan
    choice: Choice
    outcome: Outcome
    go_on: Callable[[], bool]

    def shrink(self) -> None:
        """Halves of the faults first, then single ones, then whole kinds of fault."""
        faults = [fault.number for fault in self.outcome.faults]
        size = len(faults)
        while size:
            faults = self._without_chunks(faults, size)
            size //= 2
        for kind in AMBIENT:
            self._try(self.choice.kinds - {kind}, self.choice.only)
        self._name_kinds_needed()

    def _without_chunks(self, faults: Sequence[int], size: int) -> list[int]:
        """Leave out `size` faults at a time, wherever they are not needed."""
        left, at = list(faults), 0
        while at < len(left):
            fewer = left[:at] + left[at + size :]
            if self._try(self.choice.kinds, frozenset(fewer)):
                left = fewer
            else:
                at += size
        return left

    def _name_kinds_needed(self) -> None:
        """Leave kinds of fault out of the command that it does not need."""
        fallen = {fault.kind for fault in self.outcome.faults}
        kinds = frozenset(k for k in FAULT_KINDS if k in self.choice.kinds & {*AMBIENT, *fallen})
        self._try(kinds, self.choice.only)

    def _try(self, kinds: frozenset[str], only: frozenset[int] | None) -> bool:
        choice = Choice(kinds, only)
        if choice == self.choice or not self.go_on():
            return False
        outcome = run_plan(self.plan, choice)
        if outcome.broken:
            self.choice, self.outcome = choice, outcome
        return bool(outcome.broken)


def command(seed: int, choice: Choice) -> str:
    """The command that shows a run again."""
    words = [f"python -m orchestrator.fuzz {seed}"]
    if choice.kinds != frozenset(FAULT_KINDS):
        kinds = ",".join(kind for kind in FAULT_KINDS if kind in choice.kinds)
        words.append(f"--faults {kinds or 'none'}")
    if choice.only is not None:
        words.append(f"--only {','.join(map(str, sorted(choice.only))) or 'none'}")
    return " ".join(words)
