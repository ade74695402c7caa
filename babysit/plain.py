"""Values as JSON, and back: what a checkpoint holds besides the bytes of its tensors.

A pickle can run any code at its load, so nothing here is pickled. A value is encoded if it can be
made again without running code of its class: numbers, texts, containers, arrays, random generators,
enumerations, and objects that are nothing but their attributes. Numbers, texts and None stand for
themselves; every other value is a JSON array that begins with a tag. A container that comes twice
is one container again, and may hold itself.

Standard library only; numpy and torch are used if the script has imported them.
"""

from __future__ import annotations

import collections
import json
import types
from collections.abc import Callable, Collection, Iterable
from typing import Any

from babysit import plain_values
from babysit.plain_classes import class_of, is_found, is_its_attributes, slots_of
from babysit.plain_values import NOT_MINE, NotPlainError

_ATOMS = frozenset({type(None), bool, int, float, str})
_SEQUENCES: dict[str, Any] = {"tuple": tuple, "frozenset": frozenset}
_COLLECTIONS: dict[str, Any] = {"list": list, "set": set}
_MAPPINGS: dict[str, Any] = {
    "dict": dict,
    "ordered": collections.OrderedDict,
    "counter": collections.Counter,
}
_BUILT_IN = frozenset(
    {*_MAPPINGS.values(), *_COLLECTIONS.values(), collections.deque, types.SimpleNamespace}
)
_FACTORIES = {kind.__name__: kind for kind in (int, float, str, list, dict, set, tuple)}

Extra = Callable[[Any], Any]
"""Encodes (or decodes) a value that this module does not know."""


def _refuse(value: Any) -> Any:
    raise NotPlainError(value)


def dumps(value: Any, extra: Extra = _refuse, first: Collection[type] = ()) -> bytes:
    """A value as JSON.

    Args:
        value: Any value.
        extra: Called for values that this module does not know; returns JSON, or raises.
        first: Types whose instances go to `extra` although this module knows them.

    Raises:
        NotPlainError: The value, or something in it, cannot be encoded.
    """
    return json.dumps(_Encoder(extra, first).encode(value), separators=(",", ":")).encode()


def loads(data: bytes, extra: Extra = _refuse) -> Any:
    """The inverse of :func:`dumps`.

    Raises:
        ValueError: The data is of a version that this one does not read, or damaged.
        LookupError: It has an object of a class that the script has not imported.
    """
    return _Decoder(extra).decode(json.loads(data))


# --- encoding -----------------------------------------------------------------------------------


class _Encoder:
    def __init__(self, extra: Extra, first: Collection[type]) -> None:
        self._extra, self._first = extra, first
        self._seen: dict[int, int] = {}
        self._kept: list[Any] = []
        """Keeps what has a number alive, so that no other value gets its id."""

    def encode(self, value: Any) -> Any:
        kind = type(value)
        if kind in _ATOMS:
            return value
        if kind is tuple or kind is frozenset:
            return ["tuple" if kind is tuple else "frozenset", self._items(value)]
        if kind in self._first:
            return ["extra", self._extra(value)]
        if id(value) in self._seen:
            return ["same", self._seen[id(value)]]
        if _is_mutable(value):
            self._seen[id(value)] = len(self._kept)
            self._kept.append(value)
            return self._mutable(value)
        if (found := plain_values.encode(value, self.encode)) is not NOT_MINE:
            return found
        if isinstance(value, tuple) and hasattr(kind, "_fields") and is_found(kind):
            return ["named", kind.__module__, kind.__qualname__, self._items(value)]
        return ["extra", self._extra(value)]

    def _mutable(self, value: Any) -> list[Any]:
        kind = type(value)
        for tag, mapping in _MAPPINGS.items():
            if kind is mapping:
                return [tag, *self._pairs(value)]
        for tag, collection in _COLLECTIONS.items():
            if kind is collection:
                return [tag, self._items(value)]
        if kind is collections.deque:
            return ["deque", value.maxlen, self._items(value)]
        if kind is collections.defaultdict:
            factory = value.default_factory
            name = None if factory is None else factory.__name__
            return ["default", name, *self._pairs(value)]
        if kind is types.SimpleNamespace:
            return ["namespace", *self._pairs(vars(value))]
        slots = {name: getattr(value, name) for name in slots_of(kind) if hasattr(value, name)}
        attributes = [self._pairs(getattr(value, "__dict__", {})), self._pairs(slots)]
        inside: Any = None
        if isinstance(value, dict):
            inside = self._pairs(dict(dict.items(value)))
        elif isinstance(value, list):
            inside = self._items(list(list.__iter__(value)))
        return ["object", kind.__module__, kind.__qualname__, *attributes, inside]

    def _items(self, values: Iterable[Any]) -> list[Any]:
        found = list(values)
        if _ATOMS.issuperset(map(type, found)):
            return found
        encoded = []
        for i, value in enumerate(found):
            encoded.append(self._inside(i, value))
        return encoded

    def _pairs(self, mapping: dict[Any, Any]) -> list[Any]:
        keys = self._items(mapping)
        return [keys, [self._inside(key, value) for key, value in mapping.items()]]

    def _inside(self, key: Any, value: Any) -> Any:
        if type(value) in _ATOMS:
            return value
        try:
            return self.encode(value)
        except NotPlainError as error:
            error.path = (key, *error.path)
            raise


def _is_mutable(value: Any) -> bool:
    kind = type(value)
    if kind is collections.defaultdict:
        factory = value.default_factory
        return factory is None or _FACTORIES.get(getattr(factory, "__name__", "")) is factory
    return kind in _BUILT_IN or (is_its_attributes(kind) and _has_no_hidden_state(value))


def _has_no_hidden_state(value: Any) -> bool:
    """False for a subclass of one that is written in C and keeps more than its attributes."""
    try:
        object.__reduce_ex__(value, 2)
    except TypeError:
        return False
    return True


class _Decoder:
    def __init__(self, extra: Extra) -> None:
        self._extra = extra
        self._made: list[Any] = []

    def decode(self, data: Any) -> Any:
        if not isinstance(data, list):
            return data
        tag, *rest = data
        if tag in _SEQUENCES:
            return _SEQUENCES[tag](self._items(rest[0]))
        if tag in _MAPPINGS:
            return self._filled(_MAPPINGS[tag](), *rest)
        if (method := getattr(self, f"_of_{tag}", None)) is not None:
            return method(*rest)
        if (value := plain_values.decode(tag, rest, self.decode)) is NOT_MINE:
            raise ValueError(f"a value is encoded as {tag!r}, which this version does not read")
        return value

    def _items(self, data: list[Any]) -> list[Any]:
        return [self.decode(item) for item in data]

    def _registered(self, value: Any) -> Any:
        self._made.append(value)
        return value

    def _filled(self, made: Any, keys: list[Any], values: list[Any]) -> Any:
        """Fill a mapping, which may hold itself."""
        self._registered(made)
        plain = self._items(keys)
        for key, value in zip(plain, values, strict=True):
            made[key] = self.decode(value)
        return made

    def _of_same(self, number: int) -> Any:
        return self._made[number]

    def _of_extra(self, data: Any) -> Any:
        return self._extra(data)

    def _of_list(self, items: list[Any]) -> Any:
        made = self._registered([])
        made.extend(self._items(items))
        return made

    def _of_set(self, items: list[Any]) -> Any:
        made = self._registered(set())
        made.update(self._items(items))
        return made

    def _of_deque(self, limit: int | None, items: list[Any]) -> Any:
        made = self._registered(collections.deque(maxlen=limit))
        made.extend(self._items(items))
        return made

    def _of_default(self, factory: str | None, keys: list[Any], values: list[Any]) -> Any:
        made: Any = collections.defaultdict(None if factory is None else _FACTORIES[factory])
        return self._filled(made, keys, values)

    def _of_namespace(self, keys: list[Any], values: list[Any]) -> Any:
        made = self._registered(types.SimpleNamespace())
        vars(made).update(self._pairs(keys, values))
        return made

    def _pairs(self, keys: list[Any], values: list[Any]) -> dict[Any, Any]:
        return dict(zip(self._items(keys), self._items(values), strict=True))

    def _of_object(
        self, module: str, name: str, attributes: list[Any], slots: list[Any], inside: Any
    ) -> Any:
        kind = class_of(module, name)
        if not is_its_attributes(kind):
            raise ValueError(f"a {module}.{name} is made by code of its own now")
        base = next((b for b in (dict, list) if issubclass(kind, b)), object)
        made = self._registered(base.__new__(kind))
        own = self._pairs(*attributes)
        if own:
            vars(made).update(own)
        for key, value in self._pairs(*slots).items():
            object.__setattr__(made, key, value)
        if base is dict:
            dict.update(made, self._pairs(*inside))
        elif base is list:
            list.extend(made, self._items(inside))
        return made

    def _of_named(self, module: str, name: str, items: list[Any]) -> Any:
        kind = class_of(module, name)
        if not issubclass(kind, tuple):
            raise LookupError(f"{module}.{name} is not a named tuple any more")  # noqa: TRY004 - of the file
        return tuple.__new__(kind, self._items(items))
