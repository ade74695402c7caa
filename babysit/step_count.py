"""Converts the step numbers of a script to steps of the run.

Many scripts count within the epoch. If the run followed such a counter back, the monitors, which
expect growing steps, would miss all later ones, and checkpoints would be overwritten.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from babysit.numbers import said, shown, whole


class StepCount:
    """Continues a counter that goes back.

    A counter that restarts (at or below its first number) continues from the end of the previous
    epoch; a counter that the script has set back continues from the next step.
    """

    def __init__(self) -> None:
        self._first: int | None = None
        """The first given number."""
        self._last: int | None = None
        """The last given number."""
        self._added = 0
        """Current offset from the script's numbers to the steps of the run."""
        self._saved: tuple[int | None, int | None, int] | None = None
        """The state of the checkpoint that was loaded, until the first number is given."""

    @property
    def state(self) -> tuple[int | None, int | None, int]:
        """The part of a checkpoint that :meth:`resume` takes."""
        return self._first, self._last, self._added

    def resume(self, state: tuple[int | None, int | None, int] | None) -> None:
        """Continue the count of a checkpoint, in which an epoch may be half done.

        A script that goes on from the step of the run itself is followed.
        """
        self._saved = state

    def converted(self, given: Any, ended: int, otherwise: int, warn: Callable[[str], None]) -> int:
        """Convert whatever a script gives as its step. Never raises.

        Args:
            given: The script's count; anything that `int()` takes.
            ended: The last completed step of the run.
            otherwise: The step if `given` is None.
            warn: Takes complaints.
        """
        try:
            step, complaint = self.counted(whole(given), ended)
        except Exception as error:  # noqa: BLE001 (the value's own code ran; training must go on)
            warn(f"step={shown(given)} is not a step, so it is left out: {said(error)}")
            return otherwise
        if complaint:
            warn(complaint)
        return step

    def counted(self, number: int, ended: int) -> tuple[int, str]:
        """Convert a number of the script to the step of the run.

        Args:
            number: The script's count.
            ended: The last completed step of the run.

        Returns:
            The step, and a warning if the counter went back (otherwise empty).
        """
        if self._saved is not None and self._last is None and number <= ended:
            self._first, self._last, self._added = self._saved
        self._saved = None
        before = ended if self._last is None else self._last
        complaint = ""
        if number < before:
            anew = self._first is None or number <= self._first
            self._added = ended + (number == 0 if anew else 1 - number)
            complaint = (
                f"the step went back from {before} to {number}: it is counted on, as step"
                f" {number + self._added} of the run"
            )
        self._first = number if self._first is None else self._first
        self._last = number
        return number + self._added, complaint
