"""Plain values and containers of a state: taken apart at a save, put back in place at a load.

A script keeps its own references to what it puts into the state (`losses`, in
`{"losses": losses}`). So a restored value goes into the existing object wherever its type allows
that: containers, tensors, arrays, generators, and objects with a `__dict__`. Immutable values are
replaced in the container that holds them.
"""

from __future__ import annotations

import collections
import dataclasses
import enum
import itertools
import random
import sys
import types
from collections.abc import Callable, Iterator, Mapping
from typing import Any, cast

import torch
from torch.distributed.tensor import DTensor

from babysit.errors import StateMismatchError

Path = tuple[Any, ...]
"""Keys from the outermost to the innermost container."""
Sizes = Mapping[str, tuple[torch.Size, torch.dtype]]
"""Global shape and dtype of each saved tensor, by name."""
_PLAIN_DICTS = (dict, collections.OrderedDict)
_BY_REFERENCE = (type, types.FunctionType, types.BuiltinFunctionType, types.ModuleType)
_ABSENT: Any = object()
_HEAP_TYPE = 1 << 9
"""`Py_TPFLAGS_HEAPTYPE`: the class was made by a `class` statement."""


@dataclasses.dataclass(frozen=True, slots=True)
class Ref:
    """Stands for a tensor in a saved structure; the bytes are under `name` in the tensor file."""

    name: str
    on_cpu: bool
    sharded: bool


@dataclasses.dataclass(slots=True)
class Opaque:
    """The state of an unsharded object, saved as a whole, so its structure may change."""

    value: Any


def text_of(path: Path) -> str:
    """A path as tensors are named by it: `model/layers.0.weight`.

    Different paths have different texts: a `/` in a key is escaped, and a key that is not a text
    (or an index of a list) is marked, so that 1 and "1" differ.
    """
    return "/".join(
        _escaped(key) if isinstance(key, str) else f"%{_escaped(repr(key))}" for key in path
    )


def _escaped(key: str) -> str:
    return key.replace("%", "%25").replace("/", "%2F")


def is_container(value: Any) -> bool:
    """True for dicts, lists and tuples that can be rebuilt from their items."""
    return type(value) in _PLAIN_DICTS or type(value) is list or isinstance(value, tuple)


def items_of(value: Any) -> Iterator[tuple[Any, Any]]:
    """The items of a container by key or index."""
    return iter(value.items()) if isinstance(value, dict) else iter(enumerate(value))


def rebuilt(container: Any, values: list[Any]) -> Any:
    """A container of the same type with other values."""
    if isinstance(container, dict):
        return type(container)(zip(container, values, strict=True))
    if isinstance(container, list):
        return values
    named = hasattr(container, "_fields")
    return type(container)(*values) if named else type(container)(values)


def has_bytes(tensor: torch.Tensor) -> bool:
    """True if the tensor is a block of numbers; sparse, quantised and other ones are pickled."""
    plain = isinstance(tensor, DTensor) or type(tensor) in {torch.Tensor, torch.nn.Parameter}
    if not plain or tensor.layout != torch.strided:
        return False
    number = tensor.dtype.is_floating_point or tensor.dtype.is_complex
    number = number or tensor.dtype in _WHOLE_NUMBERS
    return number and "float4" not in str(tensor.dtype) and not tensor.is_nested


_WHOLE_NUMBERS = {
    *(torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64),
    *(torch.uint16, torch.uint32, torch.uint64),
}


def is_written_in_place(tensor: torch.Tensor) -> bool:
    """True if other content can be copied into the tensor.

    Elements of an expanded tensor share their memory, and torch protects tensors that were made in
    `torch.inference_mode()`.
    """
    local = tensor.to_local() if isinstance(tensor, DTensor) else tensor
    if local.layout != torch.strided or local.is_nested:
        return True
    shared = any(n > 1 and step == 0 for n, step in zip(local.shape, local.stride(), strict=True))
    return not shared and not local.is_inference()


def split(value: Any, path: Path, tensors: dict[str, torch.Tensor]) -> Any:
    """Replace the tensors of a structure by :class:`Ref`, and add them to `tensors` by name.

    Raises:
        StateMismatchError: A tensor has no content, or two paths have the same name.
    """
    if isinstance(value, torch.Tensor):
        _require_content(value, path)
        if not has_bytes(value):
            return value
        name = text_of(path)
        if name in tensors:
            raise StateMismatchError(f"two tensors of the state are named {name!r}: rename a key")
        tensors[name] = value
        return Ref(name, value.device.type == "cpu", isinstance(value, DTensor))
    if not is_container(value) or not holds(value, lambda leaf: isinstance(leaf, torch.Tensor)):
        return value
    return rebuilt(value, [split(v, (*path, k), tensors) for k, v in items_of(value)])


def _require_content(tensor: torch.Tensor, path: Path) -> None:
    lazy = torch.nn.parameter.is_lazy(tensor)
    if lazy or tensor.device.type == "meta":
        raise StateMismatchError(
            f"{text_of(path)!r} has no content yet ({'lazy' if lazy else 'on the meta device'}): "
            "materialize the model, such as by a forward pass, before run.restore(state)"
        )


def filled(value: Any, tensors: dict[str, torch.Tensor]) -> Any:
    """Replace each :class:`Ref` by its tensor: the inverse of :func:`split`."""
    if isinstance(value, Ref):
        return tensors[value.name]
    if not is_container(value) or not holds(value, lambda leaf: isinstance(leaf, Ref)):
        return value
    return rebuilt(value, [filled(item, tensors) for _, item in items_of(value)])


def refs_of(value: Any, path: Path = ()) -> Iterator[tuple[Path, Ref]]:
    """All :class:`Ref` of a structure by path."""
    if isinstance(value, Ref):
        yield path, value
    elif is_container(value):
        for key, item in items_of(value):
            yield from refs_of(item, (*path, key))


def holds(value: Any, wanted: Callable[[Any], bool], above: tuple[int, ...] = ()) -> bool:
    """True if a container holds such a leaf, at any depth.

    Raises:
        StateMismatchError: The container holds itself.
    """
    if wanted(value):
        return True
    if not is_container(value):
        return False
    if id(value) in above:
        raise StateMismatchError("a container of the state holds itself: break the circle")
    inner = (*above, id(value))
    return any(holds(item, wanted, inner) for _, item in items_of(value))


def leaves(value: Any) -> Iterator[Any]:
    """Everything that the containers of a structure hold, at any depth."""
    if is_container(value) or isinstance(value, dict):
        for _, item in items_of(value):
            yield from leaves(item)
    else:
        yield value


def inside_objects(value: Any) -> Iterator[Any]:
    """Everything reachable from a value through containers and attributes, each once."""
    seen: set[int] = set()
    waiting = [value]
    while waiting:
        current = waiting.pop()
        if id(current) in seen or isinstance(current, (str, bytes, int, float, *_BY_REFERENCE)):
            continue
        seen.add(id(current))
        yield current
        if isinstance(current, dict):
            waiting.extend(current.values())
        elif isinstance(current, list | tuple | set | frozenset | collections.deque):
            waiting.extend(current)
        elif not isinstance(current, torch.Tensor | torch.nn.Module | torch.optim.Optimizer):
            waiting.extend(vars(current).values() if hasattr(current, "__dict__") else ())


def put_back(current: Any, loaded: Any) -> Any:
    """Make `current` equal to `loaded`, in place if possible; returns the object to keep."""
    if current is loaded or type(current) is not type(loaded):
        return loaded
    if isinstance(current, torch.Tensor):
        return _put_tensor(current, loaded)
    if isinstance(current, dict):
        items = {key: put_back(current.get(key, _ABSENT), loaded[key]) for key in loaded}
        current.clear()
        current.update(items)
        return current
    if isinstance(current, list):
        pairs = itertools.zip_longest(current[: len(loaded)], loaded, fillvalue=_ABSENT)
        current[:] = [put_back(before, after) for before, after in pairs]
        return current
    if isinstance(current, tuple) and len(current) == len(loaded):
        return rebuilt(loaded, [put_back(*pair) for pair in zip(current, loaded, strict=True)])
    return _put_object(current, loaded)


def _put_tensor(current: torch.Tensor, loaded: torch.Tensor) -> torch.Tensor:
    loaded = loaded.to(current.device)
    if current.is_nested or loaded.is_nested:  # such a tensor may have no shape
        return loaded
    same = current.shape == loaded.shape and current.dtype == loaded.dtype
    if not same or current.layout != loaded.layout or current.is_inference():
        return loaded
    try:
        current.data = loaded.data  # also for sparse and quantised ones
    except RuntimeError:
        return loaded
    return current


def _put_object(current: Any, loaded: Any) -> Any:
    if isinstance(current, set):
        current.clear()
        current.update(loaded)
    elif isinstance(current, collections.deque | bytearray):
        current.clear()
        current.extend(loaded)
    elif isinstance(current, random.Random):
        current.setstate(loaded.getstate())
    elif isinstance(current, torch.Generator):
        current.set_state(loaded.get_state())
    elif (numpy := sys.modules.get("numpy")) is not None and _put_numpy(numpy, current, loaded):
        pass
    elif _is_its_attributes(current):
        mine = vars(current)
        items = {key: put_back(mine.get(key, _ABSENT), v) for key, v in vars(loaded).items()}
        mine.clear()
        mine.update(items)
    else:
        return loaded
    return current


def _put_numpy(numpy: Any, current: Any, loaded: Any) -> bool:
    if isinstance(current, numpy.random.Generator):
        same = type(current.bit_generator) is type(loaded.bit_generator)
        if same:
            current.bit_generator.state = loaded.bit_generator.state
        return same
    if isinstance(current, numpy.random.RandomState):
        current.set_state(loaded.get_state())
        return True
    if isinstance(current, numpy.ndarray) and current.flags.writeable:
        same = current.shape == loaded.shape and current.dtype == loaded.dtype
        if same:
            current[...] = loaded
        return cast("bool", same)
    return False


def _is_its_attributes(value: Any) -> bool:
    """True if an object is nothing but its `__dict__`, so that it can be changed in place."""
    kind = type(value)
    if isinstance(value, (*_BY_REFERENCE, enum.Enum)) or not hasattr(value, "__dict__"):
        return False
    usual = all(
        getattr(kind, name, None) is getattr(object, name, None)
        for name in ("__reduce__", "__reduce_ex__", "__setstate__", "__getnewargs__")
    )
    python = all(k is object or k.__flags__ & _HEAP_TYPE for k in kind.__mro__)
    slots = any(vars(k).get("__slots__") for k in kind.__mro__)
    return usual and python and not slots
