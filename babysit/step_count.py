"""Steps as a script counts them, made the steps of the run.

Many scripts count within the epoch. Were such a counter followed back, every later step would be
hidden from the monitors, which go by steps that grow, and checkpoints would be overwritten.
"""

from __future__ import annotations


class StepCount:
    """Continues a counter that goes back.

    A counter that begins anew (at or below the first number given) goes on from the end of the
    epoch before; one that the script has put back goes on from the next step.
    """

    def __init__(self) -> None:
        self._first: int | None = None
        """The number given first."""
        self._last: int | None = None
        """The number given last."""
        self._added = 0
        """What is added to the script's numbers now."""

    def counted(self, number: int, ended: int) -> tuple[int, str]:
        """The step of the run that the script calls `number`.

        Args:
            number: The script's own count.
            ended: The last step of the run that has ended.

        Returns:
            The step, and a sentence to warn with when the counter went back (else empty).
        """
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
