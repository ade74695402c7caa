"""The files of a Trainer's checkpoint, written where babysit wants them.

The Trainer writes to its own `output_dir`, on rank 0 alone for the most part, and deletes old ones
there. For babysit each rank writes a whole checkpoint into its own shard, in memory or in the
directory, and the Trainer's `output_dir` stays the user's. With FSDP that checkpoint has the rank's
own pieces of the model and the optimizer, with DeepSpeed the engine's files of this rank; both load
with as many ranks as saved them. Other strategies that shard the state write together into one
directory; those checkpoints are taken over from `output_dir`.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import Trainer

from babysit.integrations import pieces
from babysit.integrations.deepspeed import require_ranks, write_engine
from babysit.integrations.directories import WrittenDirectory

PREFIX = "checkpoint-"
_PIECES = "pieces.pt"
_SCHEDULER = "scheduler.pt"
"""The Trainer's own name."""
_TAG = "global_step"
"""Begins the tag of an engine's checkpoint, by which the Trainer knows one."""
_WEIGHTS = {".safetensors", ".bin"}


class TrainerFiles:
    """A state: the Trainer's checkpoint, with its optimizer, schedule and generators."""

    def __init__(self) -> None:
        self.trainer: Any = None
        self.found: Path | None = None
        """The restored checkpoint; None: none was restored."""

    @property
    def kind(self) -> str:
        """The kind of accelerate's training, such as `MULTI_GPU` (DDP); empty: not known."""
        trainer = self.trainer
        if trainer is None or getattr(trainer, "is_distributed_loading_by_transformers", False):
            return ""
        return str(getattr(trainer.accelerator.distributed_type, "value", ""))

    @property
    def by_rank(self) -> bool:
        """True if each rank saves by itself; False: the Trainer saves to its `output_dir`."""
        kind = self.kind
        return kind in {"NO", "FSDP", "DEEPSPEED"} or kind.startswith("MULTI_")

    def attach(self, trainer: Any) -> None:
        """Take the Trainer, and have it read what :meth:`save` wrote."""
        self.trainer = trainer
        weights, optimizer = trainer._load_from_checkpoint, trainer._load_optimizer_and_scheduler  # noqa: SLF001

        @functools.wraps(weights)
        def load_weights(path: str, model: Any = None) -> None:
            if not self._has_pieces(path):
                weights(path, model)

        @functools.wraps(optimizer)
        def load_optimizer(path: str | None) -> None:
            if path is not None and self._has_pieces(path):
                self._load_pieces(Path(path))
            else:
                optimizer(path)

        trainer._load_from_checkpoint = load_weights  # noqa: SLF001
        trainer._load_optimizer_and_scheduler = load_optimizer  # noqa: SLF001

    def save(self, directory: Path) -> None:
        """Have the Trainer write its checkpoint into a directory; a collective with DeepSpeed only.

        Raises:
            OSError: It cannot be written, or lacks the weights.
        """
        sharded = self.kind in {"FSDP", "DEEPSPEED"}
        with (
            _redirected(self.trainer, directory),
            self._sharded() if sharded else contextlib.nullcontext(),
        ):
            # The method of the base: those of trl also write a model card for each checkpoint.
            Trainer._save_checkpoint(self.trainer, self.trainer.model, None)  # noqa: SLF001
        files = directory.glob(f"{PREFIX}*/*")
        if not sharded and not any(file.suffix in _WEIGHTS for file in files):
            raise OSError(f"the Trainer has written no weights to {directory}")

    def load(self, directory: Path) -> None:
        """Remember the directory; the Trainer reads it.

        Raises:
            StateMismatchError: Another number of ranks saved it with DeepSpeed.
        """
        self.found = next(directory.glob(f"{PREFIX}*"), directory)
        if self.trainer is not None:
            tag = next((each.name for each in self.found.glob(f"{_TAG}*")), _TAG)
            require_ranks(self.trainer.args, self.found, tag, directory.parent)

    def _sharded(self) -> contextlib.AbstractContextManager[None]:
        """Let the Trainer leave the model and the optimizer to this rank's own files."""
        trainer = self.trainer

        def model(output_dir: str, **_: Any) -> None:
            Path(output_dir).mkdir(parents=True, exist_ok=True)

        def optimizer(output_dir: str) -> None:
            place = Path(output_dir)
            torch.save(trainer.lr_scheduler.state_dict(), place / _SCHEDULER)
            if self.kind == "DEEPSPEED":
                tag = f"{_TAG}{trainer.state.global_step}"
                write_engine(trainer.model_wrapped, place, tag, {})
                return
            own = pieces.take(trainer.model, self._optimizers, trainer.args.world_size)
            torch.save(own, place / _PIECES)

        changes = {"save_model": model, "_save_optimizer_and_scheduler": optimizer}
        return _changed(vars(trainer), changes)

    @property
    def _optimizers(self) -> list[Any]:
        optimizer = self.trainer.optimizer
        return [getattr(optimizer, "optimizer", optimizer)]  # inside accelerate's

    def _has_pieces(self, path: str) -> bool:
        return (
            self.found is not None and Path(path) == self.found and (self.found / _PIECES).exists()
        )

    def _load_pieces(self, place: Path) -> None:
        trainer = self.trainer
        own = torch.load(place / _PIECES, map_location="cpu", weights_only=False)
        pieces.put(own, trainer.model, self._optimizers, trainer.args.world_size, str(place))
        trainer.lr_scheduler.load_state_dict(torch.load(place / _SCHEDULER, weights_only=False))

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
