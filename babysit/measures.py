"""Numbers of a report: the known ones, named metrics beside them, and announced changes.

Names have places in the ring, so a report writes numbers only. There are `ring.METRICS` places;
names that come later are left out, and a warning names them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from babysit.numbers import real, said, shown, whole
from babysit.reporter import Reporter
from babysit.ring import METRICS, NAME_BYTES
from babysit.wire import Note


class Measures:
    """Converts the numbers of a report. Never raises."""

    def __init__(self, reporter: Reporter) -> None:
        self._reporter = reporter
        self._places: dict[str, int] | None = None

    def number(self, name: str, value: Any, absent: float | None) -> float | None:
        """A known number of the report; `absent` for None and for what is not a number."""
        try:
            number = real(value)
        except Exception as error:  # noqa: BLE001 (the value's own code ran; training must go on)
            kind = type(value).__name__
            self._reporter.warn(f"report({name}=…) of a {kind} is left out: {said(error)}")
            return absent
        return absent if number is None else number

    def named(self, *given: Any) -> tuple[float, ...]:
        """The values of all names so far, in order of their places; NaN: not given now.

        Args:
            given: Mappings of names to numbers, or None. A number may be anything `float()` takes.
        """
        places = self._known()
        found: dict[int, float] = {}
        for metrics in given:
            if not metrics:
                continue
            if not isinstance(metrics, Mapping):
                kind = type(metrics).__name__
                self._reporter.warn(f"report(metrics=…) takes a dict of numbers, not a {kind}")
                continue
            for name, value in metrics.items():
                number = self._metric(name, value)
                place = self._place(said(name)) if number is not None else None
                if number is not None and place is not None:
                    found[place] = number
        if not found:
            return ()
        return tuple(found.get(place, math.nan) for place in range(len(places)))

    def _known(self) -> dict[str, int]:
        if self._places is None:
            names = self._reporter.metric_names()
            self._places = {name: place for place, name in enumerate(names)}
        return self._places

    def _metric(self, name: Any, value: Any) -> float | None:
        try:
            return real(value)
        except Exception as error:  # noqa: BLE001 (the value's own code ran; training must go on)
            kind = type(value).__name__
            text = f"the metric {shown(name)} of a {kind} is left out: {said(error)}"
            self._reporter.warn(text)
            return None

    def _place(self, name: str) -> int | None:
        places = self._known()
        cut = name.encode(errors="replace")[: NAME_BYTES - 1].decode(errors="ignore")
        if not cut:
            return None
        if cut not in places:
            if len(places) >= METRICS:
                self._reporter.warn(
                    f"the metric {name!r} is left out: {METRICS} names are reported already"
                    f" ({', '.join(places)})"
                )
                return None
            self._reporter.name_metric(len(places), cut)
            places[cut] = len(places)
        return places[cut]


class Change:
    """A change of the loss that the script has announced. Never raises."""

    def __init__(self, reporter: Reporter) -> None:
        self._reporter = reporter
        self._until = 0

    def announce(self, change: str, steps: Any, step: int) -> None:
        """Expect a change for this many steps after `step`."""
        try:
            until = step + whole(steps)
        except Exception as error:  # noqa: BLE001 (the value's own code ran; training must go on)
            self._reporter.warn(f"expect(steps={shown(steps)}) is left out: {said(error)}")
            return
        self._until = max(self._until, until)
        self._reporter.note(Note.CHANGE, change=change, step=step, until_step=until)

    def until(self, step: int) -> int:
        """The last step of the change that `step` belongs to; 0: to none."""
        return self._until if step <= self._until else 0
