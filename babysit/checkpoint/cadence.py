"""How often a large state is saved to memory: as often as asked for, if that costs little.

A save of a large state takes longer than a step, so one at every step would make each step wait
for the save before it. So the interval is doubled until saves do not overlap, and the copies that
block training take at most `MOST_BLOCKED` of the time. Ranks decide by themselves, since a
collective here could hang a script in which only some ranks save. Their intervals are powers of two
of the same number, so that ranks with the shortest interval have the steps of the longest one too.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

MOST_BLOCKED = 0.05
"""Share of the time that copies to memory may take."""
_IDLE = 1.25
"""Interval between saves, in durations of a save: the rest is for saves to the directory."""
_NEW = 0.2
"""Weight of a new measurement in the averages."""
_MOST_DOUBLINGS = 20
SHARED_FILE = "cadence"
"""In the memory directory: attempt, and doublings of the slowest rank of the node."""


class Cadence:
    """The interval of one rank's saves to memory."""

    def __init__(self, every: int) -> None:
        self._every = every
        self.doublings = 0
        self._pace: float | None = None
        self._last: tuple[int, float] | None = None
        self._blocked = 0.0
        self._copy = self._whole = 0.0

    @property
    def interval(self) -> int:
        """Steps between two saves."""
        return self._every << self.doublings

    def due(self, step: int) -> bool:
        """True if a step is to be saved."""
        return self._every > 0 and step % self.interval == 0

    def step(self, step: int, now: float) -> None:
        """A step has ended.

        Args:
            step: Its number.
            now: Monotonic seconds.
        """
        if self._last is not None and step == self._last[0] + 1:
            seconds = max(0.0, now - self._last[1] - self._blocked)
            self._pace = _mean(self._pace, seconds)
        self._last, self._blocked = (step, now), 0.0

    def saved(self, copy: float, whole: float) -> bool:
        """A save has ended. True if the interval is another one now.

        Args:
            copy: Seconds for which training waited.
            whole: Seconds from its beginning to its end.
        """
        self._copy = _mean(self._copy or None, copy)
        self._whole = _mean(self._whole or None, whole)
        before = self.doublings
        needed = self._needed()
        # One back only if two would do: else the interval would change with every hiccup.
        self.doublings = max(needed, min(before, needed + 1))
        return self.doublings != before

    def blocked(self, seconds: float) -> None:
        """Training waited for a save; that time does not count as its pace."""
        self._blocked += seconds

    def _needed(self) -> int:
        if not self._pace or not self._every:
            return self.doublings
        seconds = max(self._copy / MOST_BLOCKED, self._whole * _IDLE)
        doublings = 0
        while (self._every << doublings) * self._pace < seconds and doublings < _MOST_DOUBLINGS:
            doublings += 1
        return doublings

    def agree(self, root: Path, attempt: int) -> None:
        """Take the longest interval of the ranks that save to the same memory; errors are ignored.

        The ranks of other nodes are as fast in most cases; if they are not, the newest step that
        all ranks have is up to one of the longest intervals old.
        """
        file = root / SHARED_FILE
        with contextlib.suppress(OSError, ValueError):
            known, doublings = map(int, file.read_text().split())
            if known == attempt:
                self.doublings = max(self.doublings, min(doublings, _MOST_DOUBLINGS))
                if doublings >= self.doublings:
                    return
        with contextlib.suppress(OSError):
            fresh = file.with_name(f"{SHARED_FILE}.{id(self):x}")
            fresh.write_text(f"{attempt} {self.doublings}\n")
            fresh.replace(file)

    def kept(self, steps: list[int], keep: int) -> set[int]:
        """The saves to keep, of those that are whole: the newest, and those of slower ranks.

        While a rank with twice the interval writes its newest one, its newest whole one is the one
        before.
        """
        newest = sorted(steps, reverse=True)
        coarse = [step for step in newest if step % (2 * self.interval) == 0]
        return {*newest[:keep], *coarse[:2]}


def _mean(old: float | None, new: float) -> float:
    return new if old is None else old + _NEW * (new - old)
