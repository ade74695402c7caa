r"""The lines that well-known trainers print. Pure.

Sources: the trainers' own code (transformers 5.24 `trainer_callback.py`, Lightning 2.6
`tqdm_progress.py`, nanoGPT `train.py`, torchtitan `metrics.py`, Megatron-LM `training.py`, NeMo 2
`progress_printer.py`, DeepSpeed 0.19 `engine.py`, Composer `console_logger.py`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

NUMBER = r"([-+]?(?:\d+\.?\d*(?:[eE][-+]?\d+)?|nan|inf|NaN|Infinity))"


@dataclasses.dataclass(frozen=True, slots=True)
class Preset:
    """Patterns for one trainer; the first group of each that matched is the number."""

    step: str
    """With named groups `epoch` and `length`: the step counts within an epoch of that length. With
    `total`: lines with another total (an evaluation's bar) are left out."""
    loss: str | None = None
    grad_norm: str | None = None
    tokens: str | None = None
    learning_rate: str | None = None
    from_zero: bool = False
    """True if the first step has the number 0."""
    repeats: bool = False
    """True if a step has several lines, of which the last one has its own loss."""
    loss_first: bool = False
    """True if the line with the loss comes before that with its step."""


_BAR = r"^\s*\d+%\|[^|]*\|\s*(?P<step>\d+)/(?P<total>\d+)\s\["
_TRAINER = Preset(
    step=_BAR,
    loss=rf"'loss':\s'?{NUMBER}",
    grad_norm=rf"'grad_norm':\s'?{NUMBER}",
    learning_rate=rf"'learning_rate':\s'?{NUMBER}",
    loss_first=True,  # tqdm draws its bar anew, with the exact step, below what it has written
)
PRESETS: Mapping[str, Preset] = {
    "nanogpt": Preset(
        step=r"^iter (?P<step>\d+): loss ",
        loss=rf"^iter \d+: loss {NUMBER}",
        from_zero=True,
    ),
    "torchtitan": Preset(
        step=r"\bstep:\s*(?P<step>\d+)\s+loss:",
        loss=rf"\bloss:\s*{NUMBER}",
        grad_norm=rf"\bgrad_norm:\s*{NUMBER}",
    ),
    "megatron": Preset(
        step=r"\biteration\s+(?P<step>\d+)/\s*\d+ \| consumed",
        loss=rf"\blm loss: {NUMBER}",
        grad_norm=rf"\bgrad norm: {NUMBER}",
        learning_rate=rf"\blearning rate: {NUMBER}",
    ),
    "nemo": Preset(
        step=r"\bglobal_step[:=]\s*(?P<step>\d+)",
        loss=rf"\breduced_train_loss[:=]\s*{NUMBER}",
        from_zero=True,
    ),
    "llm-foundry": Preset(
        step=r"\[batch=(?P<step>\d+)/\d+\]",
        loss=rf"\bloss/train/total: {NUMBER}",
    ),
    "deepspeed": Preset(
        step=r"\[Rank 0\] step=(?P<step>\d+), skipped=",
    ),
    "lightning": Preset(
        step=r"^Epoch (?P<epoch>\d+):\s+\d+%\|[^|]*\|\s*(?P<step>\d+)/(?P<length>\d+)\s\[",
        loss=rf"[ ,](?:train_)?loss(?:_step)?={NUMBER}",
        repeats=True,  # the bar moves on before its numbers do
    ),
    "transformers": _TRAINER,
    "axolotl": _TRAINER,
}
"""In the order in which they are tried; a bar without a name is a Trainer's, so that is last."""
