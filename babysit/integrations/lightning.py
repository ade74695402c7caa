"""Lightning.

    watch = BabysitCallback()
    trainer = Trainer(..., callbacks=[watch])
    trainer.fit(model, loader, ckpt_path=watch.resume_from, weights_only=False)

Automatic and manual optimization, on one device or with DDP, FSDP, ModelParallel or DeepSpeed;
saves follow the run's own policy. A step is one in which an optimizer stepped; batches between are
signs of life. One training loader goes on at the exact batch, and quarantined batches are passed
over; several (a dict of loaders) begin their epoch again after a restart, as Lightning has it.
Random numbers that a validation draws are not drawn again, if the save was right before it.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from lightning.pytorch.callbacks import Callback

import babysit
from babysit import collective
from babysit.errors import StateMismatchError
from babysit.integrations.leaving import leave
from babysit.integrations.lightning_data import TrainingData
from babysit.integrations.lightning_state import TrainerState
from babysit.numbers import said
from babysit.run import Run
from babysit.step_times import Hooks

if TYPE_CHECKING:
    from babysit.watch import Watch

_LOSSES = ("loss", "train_loss", "train/loss", "loss_step", "train_loss_step", "train/loss_step")
"""Names under which modules log the loss that `training_step` does not return."""


class BabysitCallback(Callback):  # type: ignore[misc,unused-ignore]  # untyped base
    """Reports steps, saves when a save is due, and ends the process when requested."""

    def __init__(
        self, run: Run | None = None, *, loss: str | None = None, parts: bool = True
    ) -> None:
        """Join the run.

        Args:
            run: The run; None: that of `babysit.init()`.
            loss: Name under which the module logs its loss; None: what `training_step` returns,
                or else the logged "loss" or "train_loss", if there is one.
            parts: Measure the parts of each step, as `run.watch` does.
        """
        self.run = run or babysit.init()
        self._parts = parts
        self._watch: Watch | None = None
        """Measures the parts of each step while the Trainer trains."""
        self._hooks = Hooks()
        self._loss = loss
        self._state = TrainerState()
        self._data = TrainingData(self.run)
        self._restored = False
        self._steps = 0
        """Steps of optimizers, as Lightning counts them."""

    @property
    def resume_from(self) -> str | None:
        """The checkpoint to resume from; None: start from the beginning.

        Lightning starts its process group later, so each rank checks only its own shard here.
        """
        if not self._restored:
            self._restored = True
            self.run.restore(self._state)
        return str(self._state.found) if self._state.found else None

    def setup(self, trainer: Any, _module: Any, stage: str) -> None:
        """Check that Lightning and the run mean the same ranks.

        Raises:
            StateMismatchError: They do not, the ranks resume at different steps, or the strategy
                is not known.
        """
        if stage != "fit":
            return
        run = self.run
        if (run.plan.run or run.plan.save.directory) and trainer.world_size != run.world_size:
            local = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
            raise StateMismatchError(
                f"Lightning trains with {trainer.world_size} processes, and this run has"
                f" {run.world_size}: write Trainer(devices={local}, num_nodes="
                f"{run.world_size // local}, …), or change `processes_per_node` and `nodes` under"
                " `resources`"
            )
        low, high = collective.minimum(run.step, -run.step)
        if low != -high:
            raise StateMismatchError(
                f"ranks found checkpoints of steps {low} to {-high}: the newest one is damaged on"
                " some; a restart resumes from an older one"
            )
        self._state.attach(trainer)
        self._data.prepare()

    def on_train_start(self, trainer: Any, _module: Any) -> None:
        """Take over the training data."""
        self._steps = trainer.global_step
        try:
            self._data.begin(trainer)
        except Exception as error:  # noqa: BLE001  # parts of Lightning that may change
            self._warn(f"the place in the data is left to Lightning: {said(error)}")
        if self._parts:
            # Lightning calls methods of its module, so that hooks on a model see no forward pass.
            self._watch = self.run._times.watch(self._warn)  # noqa: SLF001  # a part of babysit
            self._hooks = self.run.watch(None, trainer.optimizers)

    def on_train_batch_start(self, _trainer: Any, module: Any, _batch: Any, _index: int) -> None:
        """Note which batch is trained on; its forward pass begins."""
        self._data.batch()
        if self._watch is not None:
            self._watch.forward_begins(module)

    def on_before_backward(self, _trainer: Any, _module: Any, loss: Any) -> None:
        """The forward pass has ended."""
        if self._watch is not None:
            self._watch.forward_ended(loss)

    def on_train_batch_end(
        self, trainer: Any, module: Any, outputs: Any, _batch: Any, _index: int
    ) -> None:
        """Report and save a step; leave when requested."""
        run = self.run
        if trainer.global_step == self._steps:  # gradients are accumulated, or a step left out
            run._beat()  # noqa: SLF001
            return
        self._steps = trainer.global_step
        # With manual optimization Lightning counts each optimizer of a step.
        step = trainer.global_step if module.automatic_optimization else run.step + 1
        run.report(step=step, loss=self._loss_of(trainer, outputs))
        run.checkpoint(self._state)
        if run.should_stop:
            self._leave()

    def on_validation_start(self, _trainer: Any, _module: Any) -> None:
        """Enter the phase of evaluation."""
        self.run.phase("evaluate")

    def on_validation_batch_end(self, *_: Any) -> None:
        """Give a sign of life."""
        self.run._beat()  # noqa: SLF001

    def on_validation_end(self, _trainer: Any, _module: Any) -> None:
        """Return to the phase of training."""
        self.run.phase("train")

    def on_train_end(self, _trainer: Any, _module: Any) -> None:
        """Save the last step and wait until it is written."""
        self._watch = None
        self._hooks.remove()
        self.run.checkpoint(self._state, now=True)
        self.run.finish()

    def _leave(self) -> None:
        """Save and end the process: what follows `trainer.fit()` must not see half a model."""
        self.run.checkpoint(self._state, now=True)
        leave(self.run)

    def _loss_of(self, trainer: Any, outputs: Any) -> Any:
        try:
            if self._loss is None:
                found = outputs.get("loss") if isinstance(outputs, dict) else outputs
                if found is not None:
                    # Lightning has divided it by the batches of a step.
                    return found * trainer.accumulate_grad_batches
            names = _LOSSES if self._loss is None else (self._loss, f"{self._loss}_step")
            for metrics in (trainer.callback_metrics, trainer.logged_metrics):
                for name in names:
                    if name in metrics:
                        return metrics[name]
        except Exception as error:  # noqa: BLE001  # a monitor never ends training
            self._warn(f"the loss is not known: {said(error)}")
        return None

    def _warn(self, text: str) -> None:
        self.run._reporter.warn(text)  # noqa: SLF001
