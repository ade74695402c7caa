"""The control plane's log during a run of the fuzzer."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, MutableMapping
from typing import Any

import structlog


@contextlib.contextmanager
def heard(listen: Callable[[str, str], None]) -> Iterator[None]:
    """Have warnings and worse go to `listen(level, text)`, and nowhere else."""
    before = structlog.get_config()

    def take(_logger: object, level: str, event: MutableMapping[str, Any]) -> str:
        error = event.pop("exc_info", None)
        error = sys.exc_info()[1] if error is True else error
        listen("error" if level == "exception" else level, _text(event, error))
        raise structlog.DropEvent

    structlog.configure(
        processors=[take],
        wrapper_class=structlog.make_filtering_bound_logger("warning"),
        cache_logger_on_first_use=False,
    )
    try:
        yield
    finally:
        structlog.configure(**before)


def _text(event: MutableMapping[str, Any], error: object) -> str:
    what = event.pop("event", "")
    facts = ", ".join(f"{name}={value}" for name, value in event.items())
    return f"{what} ({facts})" + (f": {error!r}" if error else "")
