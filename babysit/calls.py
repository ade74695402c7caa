"""The calls of `steps()` in a script, and the one to which a restored position belongs.

A script that calls `steps()` once per epoch, or once per stage, starts over after a failure. Calls
have an order, by which they are identified: those that had ended before the checkpoint yield
nothing, the call in which it was saved resumes, later ones begin afresh. So a restored position is
used once.

Some scripts start in a later epoch by themselves. Their first call has another number then, which
their own counter shows: a variable of the calling function that grew by one with each call.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from babysit import ending
from babysit.data import Feed, Position
from babysit.reporter import Reporter

_KEPT = 64
"""Loaders whose generators are kept after their call has ended."""


@dataclasses.dataclass(slots=True)
class _Ended:
    """A call that has ended: the generators of its loader, for a later call with the same."""

    loader: Any
    """None after a restore."""
    sources: list[Any]


class Calls:
    """Numbers the calls of `steps()`, and hands a restored position to its own."""

    def __init__(self) -> None:
        self._begun = 0
        self._ended: dict[int, _Ended] = {}
        self._restored: Position | None = None
        self._states: dict[str, Any] | None = None
        self._seed: int | None = None
        self._epoch = 0
        self._reference: tuple[int, ...] = ()
        self._numbers: tuple[dict[str, int], dict[str, int]] = ({}, {})
        """The script's numbers at its first call of the run, and at the current one."""
        self._placed = False
        """True once the first call of this process has its number."""
        self.passed_over = 0
        """Calls of this process that had ended before the checkpoint."""

    @property
    def first(self) -> int:
        """The first call of the run that has not ended; the number of the next one otherwise."""
        if self._restored is None:
            return self._begun
        return self._restored.call + self._restored.ended

    def pass_over(self, reporter: Reporter) -> None:
        """Say that a call gives no batch, and see to it that another uses the position."""
        if self.passed_over == 1:
            ending.fail_at_exit(reporter, self.complaint)
        reporter.warn(
            f"call {self.passed_over} of steps() had ended before the checkpoint, so it gives no"
            " batch; what the script does between calls is done again. With `for epoch in"
            " run.epochs(N)`, it starts in the epoch of the checkpoint"
        )

    def complaint(self) -> str:
        """Says that the restored position was not used, at the end of the script; or nothing."""
        if self._restored is None or not self.passed_over:
            return ""
        return (
            f"the checkpoint was saved in call {self._restored.call + 1} of steps(), and the script"
            f" has made {self._begun}, all of which had ended before: its data is not complete. Let"
            " the script make all its calls again, or write `for epoch in run.epochs(N)`"
        )

    def restore(self, resumed: dict[str, Any]) -> None:
        """Remember a restored position and the generators as of its save."""
        self._restored, self._states = resumed["position"], resumed["rng"]
        self._carry(self._restored)
        calls = resumed["calls"]
        self._ended = {number: _Ended(None, s) for number, s in calls["sources"].items()}
        self._numbers = calls["numbers"]
        self._begun = self.passed_over = 0
        self._placed = False

    def take(self) -> Position | None:
        """The restored position, for a loop that is not one of these calls; None: there is none."""
        restored, self._restored = self._restored, None
        return restored

    def start_at(self, number: int) -> None:
        """Count the next call as this one: the script itself leaves out what had ended."""
        self._begun, self._placed = number, True
        if self._restored is not None and number > self._restored.call:
            self._restored = None

    def begin(
        self, loader: Any, batch: int, numbers: dict[str, int]
    ) -> tuple[Position | None, dict[str, Any] | None]:
        """The position of the next call, and generators to restore; None: it has ended before.

        Args:
            loader: That of the call.
            batch: Batches passed in the run.
            numbers: Local variables of the calling function; see :func:`numbers_of`.
        """
        if not self._placed and (own := self._own_number(numbers)):
            self.start_at(own)
        self._placed = True
        self._numbers = (self._numbers[0] if self._begun else numbers, numbers)
        number, restored = self._begun, self._restored
        self._begun += 1
        if restored is None:
            position = Position(
                epoch=self._epoch,
                first_epoch=self._epoch,
                batch=batch,
                seed=self._seed,
                reference=self._reference,
            )
            position.call = number
            return position, None
        if number < restored.call or (number == restored.call and restored.ended):
            self.passed_over += 1
            if (ended := self._ended.get(number)) is not None:
                Feed(loader).set_sources(ended.sources)
                ended.loader = loader
            if number == restored.call:
                self._restored = None
            return None, None
        self._restored, states = None, self._states
        return dataclasses.replace(restored), states

    def end(self, feed: Feed) -> None:
        """Note that the loop of a call is over."""
        position = feed.position
        position.ended = True
        self._carry(position)
        self._ended = {n: e for n, e in self._ended.items() if e.loader is not feed.loader}
        if sources := feed.sources():
            self._ended[position.call] = _Ended(feed.loader, sources)
        while len(self._ended) > _KEPT:
            del self._ended[min(self._ended)]

    def _own_number(self, numbers: dict[str, int]) -> int:
        """The number of the first call by the script's own counter; 0: it starts over."""
        first, last = self._numbers
        if self._restored is None or not (call := self._restored.call):
            return 0
        counters = [n for n in numbers if n in first and last.get(n, -1) - first[n] == call]
        found = {numbers[name] - first[name] for name in counters}
        number = found.pop() if len(found) == 1 else 0
        return number if 0 < number <= call + 1 else 0

    def _carry(self, position: Position) -> None:
        """Go on from a position with the next call."""
        left_within_a_pass = position.offset > 0
        self._seed, self._epoch = position.seed, position.epoch + left_within_a_pass
        self._reference = position.reference

    def saved(self) -> dict[str, Any]:
        """Plain values that :meth:`restore` needs besides the position."""
        sources = {number: ended.sources for number, ended in self._ended.items()}
        return {"sources": sources, "numbers": self._numbers}


def numbers_of(variables: dict[str, Any]) -> dict[str, int]:
    """The whole numbers among the local variables of a function."""
    return {name: value for name, value in variables.items() if type(value) is int}
