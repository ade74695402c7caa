"""Turns rows of named numbers into reports. Pure.

The names of the step and of the loss are found with the first row that has both, and kept: a script
that also writes an average beside its loss does not seem to jump.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from babysit.ring import Record
from jobs.watch.files.names import Names, loss_name, other_names, step_name
from jobs.watch.files.rows import Row
from jobs.watch.log_reader import MOST_STEPS, Seen


class RowReader:
    """Reads the rows of one rank in one attempt.

    Args:
        names: Those of the spec.
        began: Unix seconds of the start of the attempt. Times before it are not those of a row.
        from_zero: True if the first step has the number 0.
    """

    def __init__(self, names: Names, began: float, *, from_zero: bool = False) -> None:
        self._names, self._began, self._from_zero = names, began, from_zero
        self._step_name: str | None = None
        self._loss_name: str | None = None
        self._gathered: Row | None = None
        """Numbers of one step that came in several rows; more of them may follow."""
        self._last_time = 0.0
        self.seen = Seen()

    def feed(self, rows: Sequence[Row], now: float) -> list[Record]:
        """Take rows; returns the reports that they complete.

        Without rows, the last step is complete. Steps that are not new are only signs of life.

        Args:
            rows: In the order in which they were written.
            now: Unix seconds.
        """
        if not rows:
            return self._complete(now)
        if self.seen.step:
            self.seen = dataclasses.replace(self.seen, time=now)
        found: list[Record] = []
        for row in self._timed(rows, now):
            gathered = self._gathered
            if gathered is not None and row.step is not None and row.step == gathered.step:
                self._gathered = dataclasses.replace(
                    gathered,
                    values={**gathered.values, **row.values},
                    counts=gathered.counts or row.counts,
                )
                continue
            found += self._complete(now)
            self._gathered = row
            if row.step is None:  # such a row is whole
                found += self._complete(now)
        return found

    def _timed(self, rows: Sequence[Row], now: float) -> list[Row]:
        """The rows with times; those without get their even share of the time since the last."""
        since = self._last_time or now
        share = (now - since) / len(rows)
        return [
            row
            if row.time is not None and self._began <= row.time <= now
            else dataclasses.replace(row, time=since + share * (place + 1))
            for place, row in enumerate(rows)
        ]

    def _complete(self, now: float) -> list[Record]:
        row, self._gathered = self._gathered, None
        if row is None:
            return []
        step, loss = self._step_of(row), self._loss_of(row)
        if step is None or (loss is None and not row.counts and self._names.step is None):
            return []
        if not self.seen.step < step < MOST_STEPS:
            return []
        at = row.time if row.time is not None else now
        seconds = max(0.0, at - self._last_time) if self._last_time else 0.0
        self._last_time = max(at, self._last_time)
        self.seen = Seen(step, now, self.seen.first_step or step)
        others = other_names(row.values, self._names)
        values = {field: row.values[name] for field, name in others.items()}
        record = Record(step, 0, at, loss, -1.0, 0.0, seconds, 0.0, -1.0)
        return [record._replace(**values)]  # type: ignore[arg-type]  # fields that are floats

    def _step_of(self, row: Row) -> int | None:
        if row.step is not None:
            wanted = self._names.step
            if wanted is not None and step_name(row.values, wanted) is None and not row.counts:
                return None
            return row.step + self._from_zero
        name = self._step_name
        if name is None and (self._names.step or self._loss_of(row) is not None):
            name = self._step_name = step_name(row.values, self._names.step)
        value = row.values.get(name) if name is not None else None
        if value is None or not value.is_integer():
            return None
        return int(value) + self._from_zero

    def _loss_of(self, row: Row) -> float | None:
        if self._loss_name is None:
            self._loss_name = loss_name(row.values, self._names.loss)
        return row.values.get(self._loss_name) if self._loss_name is not None else None
