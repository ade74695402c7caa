"""Records how the rank's process ends, because the exit code may be that of a wrapper.

`python train.py | tee log` exits with the code of `tee`. So the rank notes its own end: the code
passed to `sys.exit`, or the uncaught exception. A process that is killed, or that calls `os._exit`,
leaves no such note.
"""

from __future__ import annotations

import atexit
import sys
from typing import Any, NoReturn

from babysit.reporter import Reporter
from babysit.wire import Note


def tell_at_exit(reporter: Reporter) -> None:
    """Register a note about the end of this interpreter."""
    code: list[Any] = [None]
    leave = sys.exit

    def noted_exit(status: Any = None, /) -> NoReturn:
        code[0] = status
        leave(status)

    def end() -> None:
        # Set by the interpreter before exit handlers run, when an exception was not caught.
        uncaught = getattr(sys, "last_type", None)
        reporter.note(
            Note.EXITING, error=uncaught.__name__ if uncaught else "", code=_number(code[0])
        )

    # `raise SystemExit(1)` bypasses this; without a wrapper, the exit code shows it.
    sys.exit = noted_exit
    atexit.register(end)


def _number(status: Any) -> int:
    """The exit code of `sys.exit(status)`, as the interpreter computes it."""
    if status is None:
        return 0
    return status & 0xFF if isinstance(status, int) else 1
