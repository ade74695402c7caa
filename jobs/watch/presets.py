r"""The lines that well-known trainers print. Pure.

Sources. Run here: transformers 5.24, Lightning 2.6.6, nanoGPT. Compared with the statements that
print, and with logs that people publish: torchtitan `components/metrics.py`, Megatron-LM
`training/training.py`, NeMo 2 `progress_printer.py` and `progress_bar.py`, DeepSpeed
`runtime/engine.py` and `runtime/pipe/engine.py`, Composer `console_logger.py`. axolotl trains with
the Trainer of transformers; its own lines were not compared.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

_SIZE = r"\d+\.?\d*(?:[eE][-+]?\d+)?|nan|inf|NaN|Infinity|NAN|INF"
NUMBER = rf"([-+]?(?:{_SIZE}))"


@dataclasses.dataclass(frozen=True, slots=True)
class Preset:
    """Patterns for one trainer; the first group of each that matched is the number."""

    step: str
    """With named groups `epoch` and `length`: the step counts within an epoch of that length. With
    `total`: lines with another total (an evaluation's bar) are left out. With `done` in place of
    `step`: the number of steps that have ended, also where `from_zero` is true."""
    loss: str | None = None
    grad_norm: str | None = None
    tokens: str | None = None
    learning_rate: str | None = None
    from_zero: bool = False
    """True if the first step has the number 0."""
    first_epoch: int = 0
    """The number of the first epoch."""
    repeats: bool = False
    """True if a step has several lines, of which the last one has its own loss."""
    loss_first: bool = False
    """True if the line with the loss comes before that with its step. A bar is then the training's
    only if it comes right below a loss: the scripts draw others before it, with no name either."""


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
        step=r"(?:^|\W )step:\s*(?P<step>\d+)\s+loss:",  # not `validate step:`
        loss=rf"\bloss:\s*({_SIZE})",  # stages of a pipeline without a loss print -1
        grad_norm=rf"\bgrad_norm:\s*{NUMBER}",
    ),
    "megatron": Preset(
        step=r"\biteration\s+(?P<step>\d+)/\s*\d+ \| consumed",
        loss=rf"\blm loss: {NUMBER}",
        grad_norm=rf"\bgrad norm: {NUMBER}",
        learning_rate=rf"\blearning rate: {NUMBER}",
    ),
    "nemo": Preset(
        # A bar's own global_step has three digits: 1.23e+3.
        step=(
            r"\| global_step: (?P<step>\d+) \|"
            r"|^Epoch \d+: : +\d+%\|[^|]*\|\s*(?P<done>\d+)/\d+ \["
        ),
        loss=rf"\breduced_train_loss[:=]\s*{NUMBER}",
        from_zero=True,
    ),
    "llm-foundry": Preset(
        step=r"(?:\[epoch=(?P<epoch>\d+)\])?\[batch=(?P<step>\d+)/(?P<length>\d+)\]",
        loss=rf"\bloss/train/total: {NUMBER}",
        first_epoch=1,
    ),
    "deepspeed": Preset(
        step=r"\[Rank 0\] step=(\d+), skipped=|^steps: (\d+) loss: ",  # the latter: pipelines
        loss=rf"^steps: \d+ loss: {NUMBER}",
    ),
    "lightning": Preset(
        step=(
            r"^Epoch (?P<epoch>\d+): +(?:\d+%)?\|[^|]*\|"
            r"\s*(?P<step>\d+)/(?:(?P<length>\d+)|\?)\s\["
        ),
        loss=rf"[ ,](?:train_)?loss(?:_step)?={NUMBER}",
        repeats=True,  # the bar moves on before its numbers do
    ),
    "transformers": _TRAINER,
    "axolotl": _TRAINER,
}
"""In the order in which they are tried; a bar without a name is a Trainer's, so that is last."""
