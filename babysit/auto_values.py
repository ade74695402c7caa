"""Numbers that a script gives to a logger, put together to the report of a step.

A logger gets them in one call or in many, each with the step it belongs to. A step is reported when
the next one begins, so a report is one step late; the last one goes out with the process. Numbers
of a validation are left out, since they belong to no step.
"""

from __future__ import annotations

import atexit
import re
from collections import Counter
from collections.abc import Collection
from typing import TYPE_CHECKING, Any

from babysit.numbers import whole

if TYPE_CHECKING:
    from babysit.run import Run

_OTHERS = {"val", "valid", "validation", "eval", "test", "dev"}
_LOSS = {"loss", "train", "training", "trainer", "step", "batch", "iter", "total", "lm", "ce"}
_RATE = {"lr", "learning", "rate", "train", "training", "optim", "optimizer"}
_STEPS = {
    "train/global_step",
    "trainer/global_step",
    "global_step",
    "step",
    "iteration",
    "iter",
    "num_updates",
}
_TRAINING = frozenset({"loss", "grad_norm", "learning_rate"})
_WORDS = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])")


def kind_of(name: str) -> str:
    """The number that a name stands for: `step`, `loss`, `grad_norm`, `learning_rate`, or none.

    Names are compared by their words: `train/loss`, `Loss/train` and `train_loss_step` are one.
    """
    if name.lower() in _STEPS:
        return "step"
    words = {word.lower() for word in _WORDS.findall(name)}
    if words & _OTHERS:
        return "other"
    if "loss" in words and words <= _LOSS:
        return "loss"
    if ("norm" in words and words & {"grad", "gradient", "g"}) or "gnorm" in words:
        return "grad_norm"
    if ("lr" in words or {"learning", "rate"} <= words) and words <= _RATE:
        return "learning_rate"
    return ""


class Counts:
    """Steps of numbers that come one by one, for a script that gives none."""

    def __init__(self) -> None:
        self._before: Counter[str] = Counter()
        """How often each name came since a step was given."""
        self._given = 0
        """The newest step that was given, and is not 0."""

    def step(self, name: str, given: Any) -> int:
        """The step that is given.

        If that is 0 or none: the newest one that was given with any name, since an evaluation may
        come without, and one more each time that the name comes again.
        """
        if given:
            self._given, self._before = int(given), Counter()
        self._before[name] += 1
        return self._given + self._before[name] - 1


class Values:
    """Reports what a script logs, one step at a time."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._step: int | None = None
        self._found: dict[str, Any] = {}
        self._metrics: dict[str, Any] = {}
        self._calls = 0
        self._is_given = False
        """True if the script gives steps; else its calls are counted."""
        self._name: int | None = None
        """The step by its name; of an evaluation, only where training names its steps too."""
        self._named = False
        """True once training has named a step that is not the one that the script gives."""
        self._newest: int | None = None
        """The step of the newest loss; other numbers may come by epoch, and set no count back."""
        atexit.register(self.flush)

    def take(self, values: dict[str, Any], step: Any = None, *, more: bool = False) -> None:
        """Take numbers of a step.

        Args:
            values: The numbers by name; a step among them counts before `step`.
            step: The step; None: that of the newest call with one. If no call has one, the script
                does not count, and each call is a step.
            more: True if the next call is of the same step, for a script that does not count.
        """
        kinds = [kind_of(str(name)) for name in values]
        number = self._next(values, kinds) if step is None else int(step)
        self._is_given |= step is not None
        self._calls += not more
        if self._step is not None and number != self._step:
            self.flush()
        self._step = number
        for (name, value), kind in zip(values.items(), kinds, strict=True):
            if kind in _TRAINING:
                self._found.setdefault(kind, value)
            elif kind == "step":
                self._take_name(value, kinds)
            elif not kind and isinstance(value, int | float):
                self._metrics[str(name)] = value

    def _next(self, values: Collection[str], kinds: Collection[str]) -> int:
        """The step of a call without one.

        Among calls that have it, that is the newest one, until the same number comes again.
        """
        if not self._is_given or self._step is None:
            return self._calls + 1
        again = self._found.keys() & set(kinds) or self._metrics.keys() & set(values)
        return self._step + bool(again)

    def _take_name(self, value: Any, kinds: Collection[str]) -> None:
        """Take a step by its name, unless an evaluation says it, which may count otherwise."""
        step = _whole(value)
        if step is None or ("other" in kinds and not _TRAINING.intersection(kinds)):
            step = step if self._named else None
        self._name = step if self._name is None else self._name

    def flush(self) -> None:
        """Report the step that is complete; one whose number is not known is a sign of life."""
        found, metrics, name = self._found, self._metrics, self._name
        self._found, self._metrics, self._name = {}, {}, None
        if self._step is None or not (found or metrics):
            return
        if name is not None:
            self._named |= not self._is_given or name != self._step
        if name is None and self._named:
            self._run._beat()  # noqa: SLF001  # whatever phase the script has declared
        else:
            step = self._step if name is None else name
            if "loss" in found:
                self._newest = step
            elif self._newest is not None:
                step = max(step, self._newest)
            self._run.report(step=step, **found, metrics=metrics or None)


def _whole(value: Any) -> int | None:
    """A number as a step; None: no step can be read from it."""
    try:
        return None if value is None else whole(value)
    except Exception:  # noqa: BLE001 (the value's own code ran; the script must go on)
        return None
