"""The parts of a training state: taken apart into tensors and other values, and put back.

A state is a dict. At any depth of its dicts, lists and tuples it may hold modules, optimizers,
objects with `state_dict` and `load_state_dict`, and values. Each part is restored into the object
that the script holds, or refused with its name; nothing is left as it was in silence. Modules go
through `torch.distributed.checkpoint.state_dict`, so that FSDP2 and DDP give the same names.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from enum import StrEnum
from typing import Any

import torch
from torch.distributed.checkpoint.state_dict import set_optimizer_state_dict
from torch.distributed.checkpoint.stateful import Stateful
from torch.distributed.tensor import DTensor

from babysit.checkpoint import flat_modules, modules, objects, optimizers, values
from babysit.checkpoint.values import Opaque, Path, Sizes, holds, refs_of, text_of
from babysit.errors import StateMismatchError

_CHANGED = "Has the model changed? Use another checkpoint directory for a changed model."


class Kind(StrEnum):
    """How a part is saved and restored."""

    MODULE = "module"
    OPTIMIZER = "optimizer"
    FLAT_OPTIMIZER = "optimizer of an FSDP1 module"
    STATEFUL = "object with state_dict"
    VALUE = "value"


@dataclasses.dataclass(frozen=True, slots=True)
class Part:
    """One part of a state."""

    path: Path
    kind: Kind
    value: Any

    @property
    def name(self) -> str:
        """The part as messages call it."""
        return text_of(self.path)


class Parts:
    """The parts of one state."""

    def __init__(self, state: Any) -> None:
        """Find the parts.

        Raises:
            StateMismatchError: The state is not a dict, or holds itself.
        """
        if not isinstance(state, dict):
            raise StateMismatchError(
                "a state is a dict, such as {'model': model, 'optimizer': optimizer}, or an object"
                f" with save(directory) and load(directory); this is a {type(state).__name__}"
            )
        self._state = state
        self.all = [part for key, item in state.items() for part in _parts(item, (key,))]
        self._modules = [part for part in self.all if part.kind is Kind.MODULE]
        self._names: optimizers.Names = {}
        for part in reversed(self.all):  # the first part that has a parameter names it
            if part.kind is Kind.MODULE:
                self._names.update(optimizers.module_names(part.value, part.path))
            elif part.kind is Kind.VALUE:
                self._names.update(optimizers.loose_names(part.value, part.path))

    def take_apart(self) -> tuple[dict[str, torch.Tensor], dict[Path, tuple[Kind, Any]]]:
        """Tensors by name (`model/layers.0.weight`), and the structure of each part by path."""
        tensors: dict[str, torch.Tensor] = {}
        structures = {part.path: (part.kind, self._split(part, tensors)) for part in self.all}
        return tensors, structures

    def _split(self, part: Part, tensors: dict[str, torch.Tensor]) -> Any:
        match part.kind:
            case Kind.OPTIMIZER:
                packed = optimizers.pack(part.value, self._names)
                return optimizers.split(packed, part.path, tensors)
            case Kind.MODULE:
                packed = modules.state_of(part.value)
            case Kind.FLAT_OPTIMIZER:
                packed = flat_modules.optimizer_state(self._flat_module(part), part.value)
            case Kind.STATEFUL:
                packed = part.value.state_dict()
                if not holds(packed, lambda leaf: isinstance(leaf, DTensor)):
                    return Opaque(packed)
            case Kind.VALUE:
                packed = part.value
        return values.split(packed, part.path, tensors)

    def _flat_module(self, part: Part) -> torch.nn.Module:
        first = part.value.param_groups[0]["params"][0]
        for module in self._modules:
            if any(first is parameter for parameter in module.value.parameters()):
                found: torch.nn.Module = module.value
                return found
        raise StateMismatchError(f"the state lacks the module of the optimizer {part.name!r}")

    # -- refusals -----------------------------------------------------------------------------

    def check(self) -> None:
        """Refuse what could not be saved, or could not be restored into the script's objects.

        Raises:
            StateMismatchError: Names the part, and says what to do.
        """
        known = [t for part in self.all for t in _tensors_of(part)]
        tensors: dict[str, torch.Tensor] = {}
        for part in self.all:
            if isinstance(part.value, torch.optim.Optimizer):
                optimizers.require_parameters(part.value, part.path, known)
            if part.kind is Kind.VALUE:
                _require_no_hidden_part(part.path, part.value)
            try:
                structure = self._split(part, tensors)
                objects.require_saves({part.path: (part.kind, structure)})
            except StateMismatchError:
                raise
            except Exception as error:
                raise StateMismatchError(
                    f"the part {part.name!r} of the state cannot be saved: {error}. Leave it out of"
                    " the dict, or give it a state_dict() and load_state_dict() of plain values"
                ) from error

    def require_same(self, saved: objects.Structures) -> None:
        """Refuse to load a checkpoint of other parts.

        Raises:
            StateMismatchError: Names a part that only one side has.
        """
        here = {part.path: part.kind for part in self.all}
        for path in [*saved, *here]:
            if path not in here:
                what = f"the checkpoint has {text_of(path)!r}, but the script's state does not"
            elif path not in saved:
                what = f"the script's state has {text_of(path)!r}, but the checkpoint does not"
            elif saved[path][0] != here[path]:
                what = f"{text_of(path)!r} was saved as {saved[path][0]}, and is {here[path]} now"
            else:
                continue
            raise StateMismatchError(
                f"{what}; has the state dict changed? Pass the parts that were saved, or use"
                " another checkpoint directory"
            )

    # -- restoring ----------------------------------------------------------------------------

    def targets(self, saved: objects.Structures, sizes: Sizes) -> dict[str, torch.Tensor]:
        """The tensors to load into, by name: those of the script wherever it has them.

        Raises:
            StateMismatchError: The script's tensors are others than those saved.
        """
        found: dict[str, torch.Tensor] = {}
        for part in self.all:
            structure = saved[part.path][1]
            if part.kind is Kind.OPTIMIZER:
                arguments = (part.value, part.path, self._names, structure)
                optimizers.require_same_groups(*arguments)
                found.update(optimizers.targets(*arguments, sizes))
                continue
            mine: dict[str, torch.Tensor] = {}
            self._split(part, mine)
            wanted = {ref.name for _, ref in refs_of(structure)}
            if part.kind in {Kind.MODULE, Kind.FLAT_OPTIMIZER}:
                _require_same_names(part, set(mine), wanted)
            for _, ref in refs_of(structure):
                found[ref.name] = _target(part, mine.get(ref.name), ref, sizes[ref.name])
        return found

    def give_back(self, saved: objects.Structures, tensors: dict[str, torch.Tensor]) -> None:
        """Hand the loaded state to its owners; immutable values are replaced in the state.

        Raises:
            StateMismatchError: An owner refuses its state.
        """
        loaded = {path: values.filled(structure, tensors) for path, (_, structure) in saved.items()}
        for part in self.all:
            try:
                self._give(part, loaded[part.path])
            except StateMismatchError:
                raise
            except Exception as error:
                raise StateMismatchError(
                    f"the part {part.name!r} does not take its saved state: {error}. {_CHANGED}"
                ) from error
        given = {part.path: loaded[part.path] for part in self.all if part.kind is Kind.VALUE}
        for key, item in list(self._state.items()):
            self._state[key] = _with_values(item, (key,), given)

    def _give(self, part: Part, loaded: Any) -> None:
        match part.kind:
            case Kind.MODULE:
                modules.load(part.value, loaded)
            case Kind.OPTIMIZER:
                optimizers.put_back(part.value, self._names, loaded)
            case Kind.FLAT_OPTIMIZER:
                set_optimizer_state_dict(self._flat_module(part), part.value, loaded)
            case Kind.STATEFUL:
                part.value.load_state_dict(loaded.value if isinstance(loaded, Opaque) else loaded)
            case Kind.VALUE:
                pass


def _parts(value: Any, path: Path) -> Iterator[Part]:
    if (kind := _kind(value)) is not None:
        yield Part(path, kind, value)
    elif holds(value, lambda leaf: _kind(leaf) is not None):
        for key, item in values.items_of(value):
            yield from _parts(item, (*path, key))
    else:
        yield Part(path, Kind.VALUE, value)


def _kind(value: Any) -> Kind | None:
    """The kind of a part that has a state of its own; None: a value, or a container."""
    if isinstance(value, torch.nn.Module):
        return Kind.MODULE
    if isinstance(value, torch.optim.Optimizer):
        if not optimizers.is_standard(value):
            return Kind.STATEFUL
        flat = flat_modules.updates_pieces(value)
        return Kind.FLAT_OPTIMIZER if flat else Kind.OPTIMIZER
    own = not isinstance(value, type | torch.Tensor) and isinstance(value, Stateful)
    return Kind.STATEFUL if own else None


def _tensors_of(part: Part) -> Iterator[torch.Tensor]:
    """The tensors that a part saves and that an optimizer may update."""
    if part.kind is Kind.MODULE:
        yield from part.value.parameters()
    elif part.kind in {Kind.VALUE, Kind.STATEFUL}:
        inside = part.value if part.kind is Kind.VALUE else part.value.state_dict()
        yield from (x for x in values.inside_objects(inside) if isinstance(x, torch.Tensor))


def _require_no_hidden_part(path: Path, value: Any) -> None:
    """Refuse an object whose restored copy would hold copies of the script's modules."""
    if values.is_container(value):
        for key, item in values.items_of(value):
            _require_no_hidden_part((*path, key), item)
        return
    if isinstance(value, torch.Tensor):
        return
    for inner in values.inside_objects(value):
        parameter = isinstance(inner, torch.Tensor) and inner.requires_grad
        if parameter or _kind(inner) is not None:
            raise StateMismatchError(
                f"the part {text_of(path)!r} of the state is a {type(value).__name__}, which holds"
                f" a {type(inner).__name__} but has no state_dict() and load_state_dict(): a"
                " restored copy would not be the one that the script uses. Give it both methods, or"
                f" put the {type(inner).__name__} itself into the dict"
            )


def _require_same_names(part: Part, here: set[str], there: set[str]) -> None:
    for names, side in ((there - here, "the script"), (here - there, "the checkpoint")):
        if names:
            first = ", ".join(sorted(names)[:3])
            raise StateMismatchError(
                f"the {part.kind} {part.name!r} does not fit the checkpoint: {side} lacks {first}"
                f"{' …' if len(names) > 3 else ''}. {_CHANGED}"
            )


def _target(
    part: Part, mine: torch.Tensor | None, ref: values.Ref, saved: tuple[torch.Size, torch.dtype]
) -> torch.Tensor:
    size, dtype = saved
    fits = mine is not None and (mine.shape, mine.dtype) == (size, dtype)
    if mine is not None and not ref.sharded and not values.is_written_in_place(mine):
        return torch.empty(size, dtype=dtype, device=mine.device)
    if mine is not None and fits and isinstance(mine, DTensor) == ref.sharded:
        return mine if part.kind is not Kind.STATEFUL or ref.sharded else torch.empty_like(mine)
    kept = part.kind in {Kind.MODULE, Kind.FLAT_OPTIMIZER} or ref.sharded
    if kept and mine is not None and fits:
        return mine  # sharded otherwise than before; the planner finds what overlaps
    if kept or (mine is not None and mine.requires_grad):
        here = f"{tuple(mine.shape)} {mine.dtype}" if mine is not None else "absent"
        raise StateMismatchError(
            f"{ref.name!r} was saved as {tuple(size)} {dtype}, and is {here} in the script."
            f" {_CHANGED}"
        )
    accelerated = not ref.on_cpu and torch.cuda.is_available()
    return torch.empty(size, dtype=dtype, device="cuda" if accelerated else "cpu")


def _with_values(value: Any, path: Path, loaded: dict[Path, Any]) -> Any:
    """Put loaded values into a structure; returns what replaces it."""
    if path in loaded:
        return values.put_back(value, loaded[path])
    if _kind(value) is not None or not values.is_container(value):
        return value
    items = [(key, _with_values(v, (*path, key), loaded)) for key, v in values.items_of(value)]
    if not isinstance(value, tuple):
        for key, item in items:
            value[key] = item
        return value
    changed = any(new is not old for (_, new), old in zip(items, value, strict=True))
    return values.rebuilt(value, [item for _, item in items]) if changed else value
