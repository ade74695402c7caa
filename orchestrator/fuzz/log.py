"""The control plane's log during a run of the fuzzer."""

from __future__ import annotations

import contextlib
import errno
import io
import sys
from collections.abc import Callable, Iterator, MutableMapping
from typing import Any

import structlog

from jobs.log_output import TolerantFile, render

_HEARD = frozenset({"warning", "error", "exception", "critical"})


class LogFile(io.StringIO):
    """The file that servers log to, whose disk may be full.

    Attributes:
        fails: True while nothing can be written.
    """

    fails = False

    def write(self, text: str) -> int:
        """Keep nothing, or fail as a full disk does."""
        if self.fails:
            raise OSError(errno.ENOSPC, "No space left on device")
        return len(text)


@contextlib.contextmanager
def heard(listen: Callable[[str, str], None], file: LogFile) -> Iterator[None]:
    """Have warnings and worse go to `listen(level, text)`, and all lines to a file.

    They are written as those of a server are. While the file does not fail, that is left out.
    """
    before = structlog.get_config()
    sink = TolerantFile(file)

    def take(logger: object, level: str, event: MutableMapping[str, Any]) -> str:
        if file.fails:
            sink.write(render(logger, level, dict(event)))
        if level not in _HEARD:
            raise structlog.DropEvent
        error = event.pop("exc_info", None)
        error = sys.exc_info()[1] if error is True else error
        listen("error" if level == "exception" else level, _text(event, error))
        raise structlog.DropEvent

    structlog.configure(
        processors=[take],
        wrapper_class=structlog.make_filtering_bound_logger("info"),
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
