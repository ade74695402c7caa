"""The part of a Lightning Trainer that each rank saves, by the kind of its strategy.

* one device, DDP: a whole checkpoint of Lightning, on every rank;
* FSDP, ModelParallel: the rank's own pieces of parameters and optimizers, as they lie in memory,
  beside the rest of Lightning's checkpoint. Nothing is gathered, and no rank reads the files of
  another, so node memory serves as well as the directory;
* DeepSpeed: its own files of this rank.

The latter two can only be loaded by as many ranks as saved them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.strategies import (
    DDPStrategy,
    DeepSpeedStrategy,
    FSDPStrategy,
    ModelParallelStrategy,
    SingleDeviceStrategy,
)

from babysit.errors import StateMismatchError
from babysit.integrations import pieces
from babysit.integrations.deepspeed import require_ranks, write_engine

FILE = "lightning.ckpt"
_ENGINE = "checkpoint"
"""Tag of a DeepSpeed checkpoint, by which Lightning knows one."""
_PIECES = "babysit_pieces"


class TrainerState:
    """A directory state: the content of a Trainer's checkpoint, written by every rank."""

    def __init__(self) -> None:
        self.trainer: Any = None
        self.found: Path | None = None
        """The path that `trainer.fit(ckpt_path=…)` takes; None: there is no checkpoint."""

    def attach(self, trainer: Any) -> None:
        """Take the Trainer, and have its strategy read what :meth:`save` wrote.

        Raises:
            StateMismatchError: The strategy is of another kind, or another number of ranks saved
                the checkpoint with DeepSpeed.
        """
        strategy = trainer.strategy
        known = DDPStrategy | SingleDeviceStrategy | DeepSpeedStrategy
        if not isinstance(strategy, known | FSDPStrategy | ModelParallelStrategy):
            raise StateMismatchError(
                f"the strategy {type(strategy).__name__} is not known here: use one device, DDP,"
                " FSDP, ModelParallel or DeepSpeed, or run.checkpoint() in a loop of your own"
            )
        self.trainer = trainer
        if self.found is not None and isinstance(strategy, DeepSpeedStrategy):
            require_ranks(trainer, self.found, _ENGINE, self.found.parent)
        if not isinstance(strategy, known):
            read = strategy.load_checkpoint

            def load(path: Any, *args: Any, **options: Any) -> Any:
                ours = self.found is not None and Path(path) == self.found
                return _load_pieces(strategy, Path(path)) if ours else read(path, *args, **options)

            strategy.load_checkpoint = load

    def save(self, directory: Path) -> None:
        """Write this rank's part; a collective with DeepSpeed."""
        strategy = self.trainer.strategy
        is_engine = isinstance(strategy, DeepSpeedStrategy)  # which derives from that of DDP
        if not is_engine and isinstance(strategy, DDPStrategy | SingleDeviceStrategy):
            # `Trainer.save_checkpoint` writes on rank 0 only; this writes the same on every rank.
            torch.save(self._dumped(), directory / FILE)
            return
        with _without_weights(strategy):
            rest = self._dumped()
        if is_engine:
            rest = {k: v for k, v in rest.items() if k not in {"state_dict", "optimizer_states"}}
            write_engine(strategy.deepspeed_engine, directory, _ENGINE, rest)
        else:
            own = pieces.take(strategy.model, strategy.optimizers, strategy.world_size)
            torch.save(rest | {_PIECES: own}, directory / FILE)

    def load(self, directory: Path) -> None:
        """Remember where it is; Lightning reads it later."""
        file = directory / FILE
        self.found = file if file.exists() else directory

    def _dumped(self) -> dict[str, Any]:
        connector = self.trainer._checkpoint_connector  # noqa: SLF001  # nothing public gives it
        dumped: dict[str, Any] = connector.dump_checkpoint(weights_only=False)
        return dumped


@contextlib.contextmanager
def _without_weights(strategy: Any) -> Iterator[None]:
    """Lightning's checkpoint has neither parameters nor optimizers, which would be gathered."""
    strategy.lightning_module_state_dict = dict
    strategy.optimizer_state = lambda _optimizer: {}
    try:
        yield
    finally:
        del strategy.lightning_module_state_dict, strategy.optimizer_state


def _load_pieces(strategy: Any, file: Path) -> dict[str, Any]:
    """Put the pieces where they belong; returns the rest of Lightning's checkpoint.

    Raises:
        StateMismatchError: They are those of another number of ranks, or of another model.
    """
    rest: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=False)
    saved = rest.pop(_PIECES)
    pieces.put(saved, strategy.model, strategy.optimizers, strategy.world_size, str(file))
    return rest
