"""Lightning.

    watch = BabysitCallback()
    trainer = Trainer(..., callbacks=[watch])
    trainer.fit(model, loader, ckpt_path=watch.resume_from, weights_only=False)

Saves follow the run's own policy, on one device or with DDP (each rank writes a whole checkpoint).
Lightning draws its own data: quarantined batches are not passed over, and only a loader that has
`state_dict` and `load_state_dict` is resumed inside an epoch; others start their epoch again.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy

import babysit
from babysit.errors import StateMismatchError
from babysit.run import Run

_FILE = "lightning.ckpt"


class BabysitCallback(Callback):  # type: ignore[misc,unused-ignore]  # untyped base
    """Reports steps, saves when a save is due, and stops when requested."""

    def __init__(self, run: Run | None = None) -> None:
        self.run = run or babysit.init()
        self._state = _TrainerState()
        self._restored = False

    @property
    def resume_from(self) -> str | None:
        """File of the checkpoint to resume from; None: start from the beginning.

        Lightning starts its process group later, so each rank checks only its own shard here.
        """
        if not self._restored:
            self._restored = True
            self.run.restore(self._state)
        return str(self._state.found) if self._state.found else None

    def on_train_start(self, trainer: Any, _module: Any) -> None:
        """Refuse strategies that shard the state.

        Raises:
            StateMismatchError: The strategy shards the state.
        """
        if not isinstance(trainer.strategy, DDPStrategy | SingleDeviceStrategy):
            raise StateMismatchError(
                f"the strategy {type(trainer.strategy).__name__} shards its state; use DDP or one"
                " device, or babysit's own run.checkpoint() in a plain training loop"
            )
        self._state.trainer = trainer

    def on_train_batch_end(
        self, trainer: Any, _module: Any, outputs: Any, _batch: Any, _index: int
    ) -> None:
        """Report and save an optimizer step; stop when requested."""
        if trainer.global_step == self.run.step:
            return  # gradients are still being accumulated
        self.run.report(step=trainer.global_step, loss=outputs["loss"])
        self.run.checkpoint(self._state)
        if self.run.should_stop:
            self.run.checkpoint(self._state, now=True)
            trainer.should_stop = True

    def on_validation_start(self, _trainer: Any, _module: Any) -> None:
        """Enter the phase of evaluation."""
        self.run.phase("evaluate")

    def on_validation_end(self, _trainer: Any, _module: Any) -> None:
        """Return to the phase of training."""
        self.run.phase("train")

    def on_train_end(self, _trainer: Any, _module: Any) -> None:
        """Save the last step and wait until it is written."""
        self.run.checkpoint(self._state, now=True)
        self.run.finish()


class _TrainerState:
    """The content of a Trainer's checkpoint, written by every rank."""

    def __init__(self) -> None:
        self.trainer: Any = None
        self.found: Path | None = None

    def save(self, directory: Path) -> None:
        # `Trainer.save_checkpoint` writes on rank 0 only; this writes the same on every rank.
        dumped = self.trainer._checkpoint_connector.dump_checkpoint(weights_only=False)  # noqa: SLF001
        torch.save(dumped, directory / _FILE)

    def load(self, directory: Path) -> None:
        self.found = directory / _FILE
