"""Classes whose instances are nothing but their attributes and items, found by name.

Classes are looked for among the modules that the script has imported; none is imported here.
Classes of the standard library are not found, except for enumerations and a few others: instances
of some act when they are deleted or used. Standard library only.
"""

from __future__ import annotations

import argparse
import collections
import enum
import sys
from typing import Any

_LIBRARY = (argparse.Namespace, collections.UserDict, collections.UserList)
_OWN_WAYS = (
    *("__reduce__", "__reduce_ex__", "__getstate__", "__setstate__"),
    *("__getnewargs__", "__getnewargs_ex__"),
)
_HEAP_TYPE = 1 << 9
"""`Py_TPFLAGS_HEAPTYPE`: the class was made by a `class` statement."""


def is_its_attributes(kind: type) -> bool:
    """True if an instance can be made from its attributes, and its items, without its own code."""
    bases = [k for k in kind.__mro__ if k not in {object, dict, list}]
    if not all(k.__flags__ & _HEAP_TYPE for k in bases) or issubclass(kind, enum.Enum | type):
        return False
    usual = all(_is_usual(kind, name) for name in _OWN_WAYS)
    return usual and not hasattr(kind, "__del__") and is_found(kind)


def _is_usual(kind: type, name: str) -> bool:
    own = getattr(kind, name, None)
    usual = own is getattr(object, name, None)
    return usual or getattr(own, "__module__", "") == "dataclasses"  # of frozen ones with slots


def is_found(kind: type) -> bool:
    """True if the class is found under its own name."""
    try:
        return class_of(kind.__module__, kind.__qualname__) is kind
    except LookupError:
        return False


def class_of(module: str, name: str) -> type:
    """The class of this name.

    Raises:
        LookupError: The script has not imported it, or it is not loaded from checkpoints.
    """
    found: Any = sys.modules.get(module)
    for part in name.split("."):
        found = getattr(found, part, None)
    own = isinstance(found, type) and (found.__module__, found.__qualname__) == (module, name)
    if not own:
        why = f"there is no class {name} in {module}, or {module} is not imported"
        raise LookupError(why)
    kind: type = found
    library = module.partition(".")[0] in sys.stdlib_module_names
    if library and kind not in _LIBRARY and not issubclass(kind, enum.Enum):
        raise LookupError(f"{module}.{name} is not loaded from checkpoints")
    return kind


def slots_of(kind: type) -> list[str]:
    """Names of the attributes that instances keep outside their `__dict__`."""
    names = []
    for base in kind.__mro__:
        own = vars(base).get("__slots__", ())
        for name in (own,) if isinstance(own, str) else own:
            private = name.startswith("__") and not name.endswith("__")
            names.append(f"_{base.__name__.lstrip('_')}{name}" if private else name)
    return [name for name in names if name not in {"__dict__", "__weakref__"}]
