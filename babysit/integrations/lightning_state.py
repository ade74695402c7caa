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
from babysit.integrations.deepspeed import write_engine

FILE = "lightning.ckpt"
_ENGINE = "checkpoint"
"""Tag of a DeepSpeed checkpoint, by which Lightning knows one."""
_PIECES = "babysit_pieces"
_RANKS = "babysit_ranks"


class TrainerState:
    """A directory state: the content of a Trainer's checkpoint, written by every rank."""

    def __init__(self) -> None:
        self.trainer: Any = None
        self.found: Path | None = None
        """The path that `trainer.fit(ckpt_path=…)` takes; None: there is no checkpoint."""

    def attach(self, trainer: Any) -> None:
        """Take the Trainer, and have its strategy read what :meth:`save` wrote.

        Raises:
            StateMismatchError: The strategy is of another kind.
        """
        strategy = trainer.strategy
        known = DDPStrategy | SingleDeviceStrategy | DeepSpeedStrategy
        if not isinstance(strategy, known | FSDPStrategy | ModelParallelStrategy):
            raise StateMismatchError(
                f"the strategy {type(strategy).__name__} is not known here: use one device, DDP,"
                " FSDP, ModelParallel or DeepSpeed, or run.checkpoint() in a loop of your own"
            )
        self.trainer = trainer
        if not isinstance(strategy, known):
            read = strategy.load_checkpoint

            def load(path: Any, *args: Any, **options: Any) -> Any:
                ours = self.found is not None and Path(path) == self.found
                return _load_pieces(strategy, Path(path)) if ours else read(path, *args, **options)

            strategy.load_checkpoint = load

    def save(self, directory: Path) -> None:
        """Write this rank's part; a collective with DeepSpeed."""
        strategy = self.trainer.strategy
        if isinstance(strategy, DDPStrategy | SingleDeviceStrategy):
            # `Trainer.save_checkpoint` writes on rank 0 only; this writes the same on every rank.
            torch.save(self._dumped(), directory / FILE)
            return
        with _without_weights(strategy):
            rest = self._dumped() | {_RANKS: strategy.world_size}
        if isinstance(strategy, DeepSpeedStrategy):
            rest = {k: v for k, v in rest.items() if k not in {"state_dict", "optimizer_states"}}
            write_engine(strategy.deepspeed_engine, directory, _ENGINE, rest)
        else:
            torch.save(rest | {_PIECES: _pieces(strategy)}, directory / FILE)

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


def _pieces(strategy: Any) -> dict[str, Any]:
    model = strategy.model
    return {
        "parameters": {name: _copy(each) for name, each in model.named_parameters()},
        "buffers": {name: _copy(each) for name, each in model.named_buffers()},
        "optimizers": [_copied(optimizer.state_dict()) for optimizer in strategy.optimizers],
    }


def _load_pieces(strategy: Any, file: Path) -> dict[str, Any]:
    """Put the pieces where they belong; returns the rest of Lightning's checkpoint.

    Raises:
        StateMismatchError: They are those of another number of ranks, or of another model.
    """
    rest: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=False)
    if (saved := rest.pop(_RANKS, None)) != strategy.world_size:
        raise StateMismatchError(
            f"{file}: {saved} ranks saved their pieces with {type(strategy).__name__}, and this"
            f" attempt has {strategy.world_size}: give the run as many ranks as before"
        )
    pieces = rest.pop(_PIECES)
    model = strategy.model
    parts = dict(model.named_parameters()), dict(model.named_buffers())
    for kind, found in zip(("parameters", "buffers"), parts, strict=True):
        for name, tensor in pieces[kind].items():
            own = _local(found[name]) if name in found else None
            if own is None or own.shape != tensor.shape:
                raise StateMismatchError(f"{file}: the model has no {kind[:-1]} {name} of its size")
            own.copy_(tensor)
    for optimizer, state in zip(strategy.optimizers, pieces["optimizers"], strict=True):
        optimizer.load_state_dict(_placed(state, optimizer))
    return rest


def _placed(state: dict[str, Any], optimizer: Any) -> dict[str, Any]:
    """The state of an optimizer with pieces of DTensors where its parameters are DTensors."""
    parameters = [each for group in optimizer.param_groups for each in group["params"]]
    placed = {
        index: {key: _like(value, parameters[index]) for key, value in values.items()}
        for index, values in state["state"].items()
    }
    return state | {"state": placed}


def _like(value: Any, parameter: Any) -> Any:
    if not hasattr(parameter, "device_mesh") or not isinstance(value, torch.Tensor):
        return value
    if value.shape != parameter.to_local().shape:
        return value  # a count of steps
    from torch.distributed.tensor import DTensor  # noqa: PLC0415  # only ModelParallel has them

    return DTensor.from_local(
        value.to(parameter.device),
        parameter.device_mesh,
        parameter.placements,
        run_check=False,
        shape=parameter.shape,
        stride=parameter.stride(),
    )


def _local(tensor: Any) -> torch.Tensor:
    local: torch.Tensor = tensor.detach()
    if hasattr(local, "to_local"):
        local = local.to_local()
    return local


def _copy(tensor: Any) -> torch.Tensor:
    return _local(tensor).clone()  # a view would be saved with all of its storage


def _copied(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return _copy(value)
    if isinstance(value, dict):
        return {key: _copied(each) for key, each in value.items()}
    return [_copied(each) for each in value] if isinstance(value, list) else value
