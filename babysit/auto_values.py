"""Numbers that a script gives to a logger, put together to the report of a step.

A logger gets them in one call or in many, each with the step it belongs to. A step is reported when
the next one begins, so a report is one step late; the last one goes out with the process. Numbers
of a validation are left out, since they belong to no step.
"""

from __future__ import annotations

import atexit
import re
from collections import Counter
from typing import TYPE_CHECKING, Any

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

    def step(self, name: str, given: Any) -> int:
        """The step that is given; if that is 0 or none, how often the name came before."""
        before = self._before[name]
        self._before[name] += 1
        return int(given or before)


class Values:
    """Reports what a script logs, one step at a time."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._step: int | None = None
        self._found: dict[str, Any] = {}
        self._metrics: dict[str, Any] = {}
        self._calls = 0
        self._named = False
        """True once the script has logged the step itself, as a number with a name."""
        atexit.register(self.flush)

    def take(self, values: dict[str, Any], step: Any = None, *, more: bool = False) -> None:
        """Take numbers of a step.

        Args:
            values: The numbers by name; a step among them counts before `step`.
            step: The step; None: the script does not count, and each call is a step.
            more: True if the next call is of the same step, for a script that does not count.
        """
        number = self._calls + 1 if step is None else int(step)
        self._calls += not more
        if self._step is not None and number != self._step:
            self.flush()
        self._step = number
        for name, value in values.items():
            kind = kind_of(str(name))
            if kind in {"step", "loss", "grad_norm", "learning_rate"}:
                self._found.setdefault(kind, value)
            elif not kind and isinstance(value, int | float):
                self._metrics[str(name)] = value

    def flush(self) -> None:
        """Report the step that is complete."""
        found, metrics = self._found, self._metrics
        self._found, self._metrics = {}, {}
        step = found.pop("step", None)
        self._named |= step is not None
        if step is None:
            step = self._step
            if self._named:
                return  # its step is not known
        if step is not None and (found or metrics):
            self._run.report(step=int(step), **found, metrics=metrics or None)
