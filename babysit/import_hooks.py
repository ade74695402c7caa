"""Code that runs right after a module has been imported; the import itself is never caused.

The import system asks the finders of `sys.meta_path` for a module. The one here lets the others
find it, and calls a function once its code has run. A function that raises is logged, and the
import goes on. Standard library only.
"""

from __future__ import annotations

import importlib.util
import logging
import sys
from collections.abc import Callable, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

Hook = Callable[[ModuleType], None]

log = logging.getLogger("babysit")


def after_import(name: str, hook: Hook) -> None:
    """Call `hook(module)` once the module has been imported: now, if it has been already."""
    module = sys.modules.get(name)
    if module is not None and not getattr(module.__spec__, "_initializing", False):
        _call(hook, module)
        return
    _finder.hooks.setdefault(name, []).append(hook)
    if _finder not in sys.meta_path:
        sys.meta_path.insert(0, _finder)


def _call(hook: Hook, module: ModuleType) -> None:
    try:
        hook(module)
    except Exception as error:  # noqa: BLE001 (a script's import must not fail for us)
        log.warning("babysit cannot watch %s: %r", module.__name__, error)


class _Finder(MetaPathFinder):
    def __init__(self) -> None:
        self.hooks: dict[str, list[Hook]] = {}
        self._looking: set[str] = set()

    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None,  # noqa: ARG002  # of the protocol
        target: ModuleType | None = None,  # noqa: ARG002
    ) -> ModuleSpec | None:
        if fullname not in self.hooks or fullname in self._looking:
            return None
        self._looking.add(fullname)
        try:
            spec = importlib.util.find_spec(fullname)
        finally:
            self._looking.discard(fullname)
        if spec is not None and spec.loader is not None:
            self._follow(spec)
        return spec

    def _follow(self, spec: ModuleSpec) -> None:
        loader, name = spec.loader, spec.name
        if loader is None:
            return
        execute = loader.exec_module

        def executed(module: ModuleType) -> None:
            execute(module)
            for hook in self.hooks.pop(name, []):
                _call(hook, module)

        loader.exec_module = executed  # type: ignore[method-assign]


_finder = _Finder()
