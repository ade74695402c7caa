"""The files of a Trainer's checkpoint, written where babysit wants them.

The Trainer writes to its own `output_dir`, on rank 0 alone for the most part, and deletes old ones
there. For babysit each rank writes a whole checkpoint into its own shard, in memory or in the
directory, and the Trainer's `output_dir` stays the user's. Strategies that shard the state write
together into one directory; those checkpoints are taken over from `output_dir`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from transformers import Trainer

from babysit.integrations.directories import WrittenDirectory

PREFIX = "checkpoint-"
_WEIGHTS = {".safetensors", ".bin"}


class TrainerFiles:
    """A state: the Trainer's checkpoint, with its optimizer, schedule and generators."""

    def __init__(self) -> None:
        self.trainer: Any = None
        self.found: Path | None = None
        """The restored checkpoint; None: none was restored."""

    @property
    def is_whole(self) -> bool:
        """True if each rank has the whole state: one process, or DDP."""
        trainer = self.trainer
        if trainer is None or getattr(trainer, "is_distributed_loading_by_transformers", False):
            return False
        kind = str(getattr(trainer.accelerator.distributed_type, "value", ""))
        return kind == "NO" or kind.startswith("MULTI_")

    def save(self, directory: Path) -> None:
        """Have the Trainer write its checkpoint into a directory; not a collective.

        Raises:
            OSError: It cannot be written, or lacks the weights.
        """
        with _redirected(self.trainer, directory):
            # The method of the base: those of trl also write a model card for each checkpoint.
            Trainer._save_checkpoint(self.trainer, self.trainer.model, None)  # noqa: SLF001
        if not any(file.suffix in _WEIGHTS for file in directory.glob(f"{PREFIX}*/*")):
            raise OSError(f"the Trainer has written no weights to {directory}")

    def load(self, directory: Path) -> None:
        """Remember the directory; the Trainer reads it."""
        self.found = next(directory.glob(f"{PREFIX}*"), directory)

    def written(self, step: int) -> WrittenDirectory:
        """The checkpoint that the Trainer has written to its own `output_dir`."""
        taken = WrittenDirectory()
        taken.source = Path(self.trainer_args.output_dir) / f"{PREFIX}{step}"
        return taken

    trainer_args: Any = None
    """The `TrainingArguments`, also where the Trainer itself is not known."""


@contextlib.contextmanager
def _redirected(trainer: Any, directory: Path) -> Iterator[None]:
    """Let a save write all of the state here, on every rank, without a collective."""
    args = trainer.args
    none = {"push_to_hub": False, "save_only_model": False, "save_total_limit": None}
    none["save_strategy"] = type(args.save_strategy)("no")  # others wait for rank 0's best model
    model: Any = trainer.accelerator.unwrap_model(trainer.model)
    ranks = {"should_save_on_this_rank": lambda *_, **__: True}  # transformers 5: rank 0 alone
    methods = {"_get_output_dir": lambda *_, **__: str(directory), "store_flos": lambda: None}
    with (
        _changed(vars(args), none),
        _changed(vars(trainer), methods),
        _changed(vars(model), ranks),
        _with_attribute(type(args), "should_save", property(lambda _: True)),
    ):
        yield


@contextlib.contextmanager
def _changed(attributes: dict[str, Any], changes: dict[str, Any]) -> Iterator[None]:
    before = {name: attributes[name] for name in changes if name in attributes}
    attributes.update(changes)
    try:
        yield
    finally:
        for name in changes:
            del attributes[name]
        attributes.update(before)


@contextlib.contextmanager
def _with_attribute(owner: type, name: str, value: Any) -> Iterator[None]:
    before = vars(owner).get(name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        if before is None:
            delattr(owner, name)
        else:
            setattr(owner, name, before)
