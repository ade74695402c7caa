"""Calls `babysit.auto()` where `BABYSIT_AUTO=1`, and then runs the environment's own module.

Python imports one `sitecustomize`, the first on its path; the one that this hides must not be lost.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import sys
from importlib.machinery import PathFinder


def _start() -> None:
    with contextlib.suppress(Exception):  # an older Python, say: the script must start
        from babysit.auto_hooks import auto  # noqa: PLC0415  # may fail

        auto()
    here = os.path.dirname(os.path.realpath(__file__))  # noqa: PTH120  # no further import
    paths = [path for path in sys.path if os.path.realpath(path) != here]
    if (spec := PathFinder.find_spec("sitecustomize", paths)) is None or spec.loader is None:
        return
    spec.loader.exec_module(importlib.util.module_from_spec(spec))


_start()
