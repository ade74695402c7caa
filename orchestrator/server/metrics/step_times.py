"""The lines of all step times: one text from scrape to scrape, in which digits are overwritten.

The problem: step times are ten lines for each of ten thousand nodes, most of a scrape. Nearly all
nodes report steps between two scrapes, so that lines cannot be taken from the last one as they are,
but most digits can: a count that rises from 1207 to 1222 has two new ones.

The design: each value has a field of fixed width, blanks before it (the format allows any number of
them). The text is kept; numpy compares all values with those of the last scrape, and writes the
digits that differ. When runs or nodes come and go, the text is laid out anew, from rows that are
kept by run and node; when a value outgrows its field, all fields become wider.

Limits: sums are written to the microsecond.
"""

from __future__ import annotations

import weakref

import numpy as np
from numpy.typing import NDArray

from orchestrator.controller.live_numbers import STEP_BOUNDS, LiveNumbers, StepTimes
from orchestrator.server.metrics.catalogue import METRICS
from orchestrator.server.metrics.exposition import labels_text

_NAME = "babysit_step_seconds"
_LONGEST_SUM = 9e12
"""Seconds that a sum may show: as microseconds they still fit in 64 bits."""
_DECIMALS = 6
_PIECE = 8192
Integers = NDArray[np.int64]
Bytes = NDArray[np.uint8]


class NumberFields:
    """Numbers at fixed places of a text, of which only the digits that change are written.

    Args:
        ends: Where each field ends in the text. There a zero stands, with its decimals.
        decimals: Digits after the point; values are given in units of the last of them.
    """

    def __init__(self, ends: Integers, decimals: int = 0) -> None:
        self._ends = ends
        self._decimals = decimals
        self._values = np.zeros(len(ends), np.int64)

    def write(self, text: Bytes, values: Integers) -> None:
        """Write all values, 0 or more. A value must fit in its field; nothing checks it."""
        changed = np.flatnonzero(values != self._values)
        # In pieces, so that the second digit of a field finds the line of the first in the cache.
        for begin in range(0, len(changed), _PIECE):
            places = changed[begin : begin + _PIECE]
            self._write(text, self._ends[places], values[places], self._values[places])
        self._values = values

    def _write(self, text: Bytes, ends: Integers, new: Integers, old: Integers) -> None:
        position = 0
        while new.size:
            rest, old = new // 10, old // 10
            digits = (new - rest * 10 + ord("0")).astype(np.uint8)
            if position > self._decimals:
                digits[new == 0] = ord(" ")
            point = 1 if 0 < self._decimals <= position else 0
            text[ends - (1 + position + point)] = digits
            differs = rest != old
            new, old, ends = rest[differs], old[differs], ends[differs]
            position += 1


class StepText:
    """The memory of the lines of step times."""

    def __init__(self) -> None:
        self._steps: list[StepTimes] = []
        """By row of the text."""
        self._rows: dict[tuple[str, str], tuple[bytes, int]] = {}
        """By run and node: the lines with zeros, and the length of the labels."""
        self._widths = (0, 0)
        """Of counts, and of sums without their decimals."""
        self._text: Bytes = np.zeros(0, np.uint8)
        self._shown: weakref.ref[Bytes] | None = None
        """The view that was handed out last; it is gone once it is sent."""
        self._counts = NumberFields(np.zeros(0, np.int64))
        self._sums = NumberFields(np.zeros(0, np.int64), _DECIMALS)

    def lines(self, numbers: LiveNumbers) -> memoryview:
        """The lines of every run and each of its nodes; they stay as they are while referenced."""
        steps = [steps for newest in numbers.runs.values() for steps in newest.nodes.values()]
        if not steps:
            return memoryview(b"")
        if self._shown is not None and self._shown() is not None:  # another scrape is being sent
            self._text = self._text.copy()
        raw = b"".join([each.counts for each in steps])
        counts = np.frombuffer(raw, np.int64).reshape(len(steps), -1).cumsum(axis=1)
        # The last bucket is of all steps, and so is the count.
        counts = np.concatenate((counts, counts[:, -1:]), axis=1)
        sums = np.minimum([each.sum for each in steps], _LONGEST_SUM)
        widths = (_width(int(counts[:, -1].max())), _width(int(sums.max())))
        if steps != self._steps or widths != self._widths:
            self._lay_out(numbers, widths)
            self._steps = steps
        self._counts.write(self._text, counts.ravel())
        self._sums.write(self._text, np.rint(sums * 10**_DECIMALS).astype(np.int64))
        shown = self._text.view()
        self._shown = weakref.ref(shown)
        return shown.data

    def _lay_out(self, numbers: LiveNumbers, widths: tuple[int, int]) -> None:
        known = self._rows if widths == self._widths else {}
        places = [(run, node) for run, newest in numbers.runs.items() for node in newest.nodes]
        self._rows = {place: known.get(place) or _row(place, widths) for place in places}
        self._widths = widths
        rows = [row for row, _ in self._rows.values()]
        labels = np.array([length for _, length in self._rows.values()], np.int64)
        self._text = np.frombuffer(bytearray(b"".join(rows)), np.uint8)
        # The lines of two rows differ by the length of the labels alone.
        fixed = np.cumsum([len(line) for line in _lines("", widths)])
        starts = np.cumsum([0, *map(len, rows[:-1])])
        ends = starts[:, None] + fixed + labels[:, None] * np.arange(1, len(fixed) + 1) - 1
        self._counts = NumberFields(ends[:, :-1].ravel())
        self._sums = NumberFields(ends[:, -1].copy(), _DECIMALS)


def _width(largest: int) -> int:
    """Digits of a field that holds it, with room to grow."""
    return (len(str(largest)) // 3 + 1) * 3


def _row(place: tuple[str, str], widths: tuple[int, int]) -> tuple[bytes, int]:
    labels = labels_text(METRICS[_NAME].labels, place)
    return "".join(_lines(labels, widths)).encode(), len(labels.encode())


def _lines(labels: str, widths: tuple[int, int]) -> list[str]:
    """The lines of one histogram, all of it 0. The labels are in each line once."""
    count = f"{0:>{widths[0]}}"
    bounds = [*(f"{bound:g}" for bound in STEP_BOUNDS), "+Inf"]
    return [
        *(f'{_NAME}_bucket{{{labels},le="{bound}"}} {count}\n' for bound in bounds),
        f"{_NAME}_count{{{labels}}} {count}\n",
        f"{_NAME}_sum{{{labels}}} {0:>{widths[1] + 1 + _DECIMALS}.{_DECIMALS}f}\n",
    ]
