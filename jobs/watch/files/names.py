"""Finds the step and the loss among the names that a script gives to its numbers. Pure.

The names of well-known trainers come first. Sources: `rewrite_logs` of transformers'
`integration_utils.py`, torchtitan `components/metrics.py`, Megatron-LM `training.py`, NeMo and
Lightning (what their examples log), Composer, mmengine and detectron2 (JSON), fairseq
(`progress_bar.py`).
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping

STEPS = (
    "train/global_step",
    "trainer/global_step",
    "global_step",
    "step",
    "iteration",
    "iter",
    "num_updates",
    "update",
    "_step",
)
"""Names of the step, the surest first. W&B's own `_step` counts calls, so it is the last."""
_LOSSES = (
    "train/loss",
    "loss/train",
    "train_loss",
    "training_loss",
    "train/loss_step",
    "train_loss_step",
    "loss/train/total",
    "loss_metrics/global_avg_loss",
    "reduced_train_loss",
    "lm loss",
    "loss",
    "total_loss",
)
_NORMS = (
    "train/grad_norm",
    "grad_norm",
    "grad norm",
    "gnorm",
    "gradient_norm",
    "train/gradient_norm",
    "train_grad_norm",
    "grad_norm/total",
)
_RATES = ("train/learning_rate", "learning_rate", "lr", "train/lr", "learning-rate")
_WORDS = re.compile(r"[^a-z0-9]+")
_OTHERS = frozenset(
    {"val", "valid", "validation", "eval", "evaluation", "test", "dev", "best", "min", "epoch"}
)
"""Words of names that are not those of a step's own loss."""


@dataclasses.dataclass(frozen=True, slots=True)
class Names:
    """The names that a spec gives; None: the usual ones are looked for."""

    step: str | None = None
    loss: str | None = None
    grad_norm: str | None = None
    tokens: str | None = None


def step_name(names: Iterable[str], own: str | None) -> str | None:
    """The name of the step; None: none of these is."""
    return _first(names, (own,) if own is not None else STEPS)


def loss_name(names: Iterable[str], own: str | None) -> str | None:
    """The name of the training's loss; None: none of these is."""
    known = list(names)
    if own is not None:
        return _first(known, (own,))
    return _first(known, _LOSSES) or next((name for name in known if _is_loss(name)), None)


def other_names(names: Iterable[str], given: Names) -> Mapping[str, str]:
    """The names of the other numbers of a step, by field of a record."""
    known = list(names)
    found = {
        "grad_norm": _first(known, _NORMS if given.grad_norm is None else (given.grad_norm,)),
        "learning_rate": _first(known, _RATES),
        "tokens": None if given.tokens is None else _first(known, (given.tokens,)),
    }
    return {field: name for field, name in found.items() if name is not None}


def is_of_validation(path: str) -> bool:
    """True if a directory of the path says that its numbers are those of a validation."""
    return not _OTHERS.isdisjoint(part.lower() for part in path.split("/")[:-1])


def _first(names: Iterable[str], wanted: Iterable[str]) -> str | None:
    by_form: dict[str, str] = {}
    for name in names:
        by_form.setdefault(_form(name), name)
    return next((by_form[_form(each)] for each in wanted if _form(each) in by_form), None)


def _form(name: str) -> str:
    return name.strip().lower().replace(".", "/")


def _is_loss(name: str) -> bool:
    words = _WORDS.split(name.strip().lower())
    return "loss" in words and _OTHERS.isdisjoint(words)
