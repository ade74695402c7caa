"""The version of this package."""

from __future__ import annotations

import functools
from importlib.metadata import PackageNotFoundError, version


@functools.cache  # to look takes a millisecond
def package_version() -> str:
    """The installed version; `0+source` when run from a checkout."""
    try:
        return version("babysit")
    except PackageNotFoundError:
        return "0+source"
