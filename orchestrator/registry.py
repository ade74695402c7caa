"""Implementations by name: what a setting may be, and the function that makes it.

A registry maps the words that a setting accepts to `module:function`. The module is imported when
its word is chosen, not before.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Callable, Mapping
from typing import Any

from orchestrator.errors import InvalidError


def make(setting: str, name: str, registry: Mapping[str, str]) -> Callable[..., Any]:
    """The function that makes what a setting names.

    Args:
        setting: Variable that bears the name, such as `BABYSIT_CLUSTER`, for the message.
        name: Its value.
        registry: Every value that exists -> `module:function`.

    Raises:
        InvalidError: The registry has no such name, or the module needs a package that is not
            installed here.
    """
    if name not in registry:
        near = difflib.get_close_matches(name, registry, n=1)
        guess = f"; did you mean {near[0]}?" if near else ""
        raise InvalidError(
            f"{setting}={name}: no such choice; it may be {' or '.join(sorted(registry))}{guess}"
        )
    module, _, function = registry[name].partition(":")
    try:
        made: Callable[..., Any] = getattr(importlib.import_module(module), function)
    except ModuleNotFoundError as error:
        raise InvalidError(
            f"{setting}={name}: needs the Python package {error.name}, which is not installed: "
            f"pip install 'babysit[{name}]'"
        ) from error
    return made
