"""Hugging Face's Trainer.

    watch = BabysitCallback()
    trainer = Trainer(..., callbacks=[watch])
    trainer.train(resume_from_checkpoint=watch.resume_from)

What the Trainer logs is reported, so set `logging_steps=1`; what it saves becomes a checkpoint of
the run (`save_steps` says when). The Trainer draws its own data: it resumes at the right batch, but
quarantined batches are not passed over.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import TrainerCallback

import babysit
from babysit import collective
from babysit.integrations.directories import WrittenDirectory
from babysit.run import Run


class BabysitCallback(TrainerCallback):  # type: ignore[misc,unused-ignore]  # untyped base
    """Reports steps, registers checkpoints, and stops when requested."""

    def __init__(self, run: Run | None = None) -> None:
        self.run = run or babysit.init()
        self._directory = WrittenDirectory()
        self._restored = False

    @property
    def resume_from(self) -> str | None:
        """Directory of the checkpoint to resume from; None: start from the beginning."""
        if not self._restored:
            self._restored = True
            self.run.restore(self._directory)
        return str(self._directory.found) if self._directory.found else None

    def on_log(self, _args: Any, state: Any, _control: Any, logs: Any = None, **_: Any) -> None:
        """Report a logged step."""
        if logs and "loss" in logs:
            self.run.report(
                step=state.global_step,
                loss=logs["loss"],
                grad_norm=logs.get("grad_norm", -1.0),
                learning_rate=logs.get("learning_rate", -1.0),
            )

    def on_step_end(self, _args: Any, _state: Any, control: Any, **_: Any) -> None:
        """Save and stop when requested; a collective on several ranks."""
        self.run.phase("train")
        if self.run.should_stop:
            control.should_save = True
            control.should_training_stop = True

    def on_prediction_step(self, _args: Any, _state: Any, _control: Any, **_: Any) -> None:
        """Enter the phase of evaluation."""
        self.run.phase("evaluate")

    def on_evaluate(self, _args: Any, _state: Any, _control: Any, **_: Any) -> None:
        """Return to the phase of training."""
        self.run.phase("train")

    def on_save(self, args: Any, state: Any, _control: Any, **_: Any) -> None:
        """Register the checkpoint that the Trainer has just written."""
        collective.minimum(0)  # wait for rank 0, which writes most of it
        self._directory.source = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        self.run.checkpoint(self._directory, step=state.global_step, now=True)

    def on_train_end(self, _args: Any, _state: Any, _control: Any, **_: Any) -> None:
        """Wait until the last save is written."""
        self.run.finish()
