"""Records how the rank's process ends, because the exit code may be that of a wrapper.

`python train.py | tee log` exits with the code of `tee`. So the rank records its own end: the
uncaught exception as a note, and its exit code in a file. The code is written by the C library
(`on_exit(3)`, in glibc), because nothing in Python sees the code of `raise SystemExit(1)` or
`exit(1)`. Elsewhere the code is the one passed to `sys.exit`. A process that is killed, or that
calls `os._exit`, records nothing.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import os
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn

from babysit.errors import PositionUnusedError
from babysit.hidden_error import hidden_error
from babysit.reporter import Reporter
from babysit.wire import EXIT_FILE, Note

ExceptHook = Callable[[type[BaseException], BaseException, TracebackType | None], Any]
_TRACE_CHARACTERS = 4000


class _Leave:
    """How this interpreter was last asked to exit."""

    code: Any = None
    hidden: tuple[str, str] = ("", "")
    """Name and trace of the exception that the exit hides; empty: none."""


def tell_at_exit(reporter: Reporter, directory: Path) -> None:
    """Register a note about the end of this interpreter, and a record of its exit code."""

    def end() -> None:
        # Set by the interpreter before exit handlers run, when an exception was not caught.
        uncaught = getattr(sys, "last_type", None)
        error, trace = _Leave.hidden
        reporter.note(
            Note.EXITING,
            error=uncaught.__name__ if uncaught else error,
            trace="" if uncaught else trace,
            code=_number(_Leave.code),
            handled=_handled_signals(),
        )

    _note_exits()
    sys.excepthook = _telling(sys.excepthook, reporter)
    atexit.register(end)
    with contextlib.suppress(AttributeError, OSError, ValueError):  # a C library without on_exit
        _record_code(directory / EXIT_FILE)


def _note_exits() -> None:
    """Have `sys.exit` remember its code; once, however many reporters there are."""
    if hasattr(sys.exit, "noted"):
        return
    leave = sys.exit

    def noted_exit(status: Any = None, /) -> NoReturn:
        _Leave.code = status
        found = ("", "") if _number(status) else hidden_error(sys._getframe(1))  # noqa: SLF001
        _Leave.hidden = found
        leave(status)

    noted_exit.noted = True  # type: ignore[attr-defined]
    sys.exit = noted_exit


def _telling(hook: ExceptHook, reporter: Reporter) -> ExceptHook:
    """The hook, with a note first: other threads may keep the process from exiting."""

    def tell(kind: type[BaseException], error: BaseException, frames: TracebackType | None) -> None:
        with contextlib.suppress(Exception):
            text = "".join(traceback.format_exception(kind, error, frames))
            reporter.note(Note.RAISED, error=kind.__name__, trace=text[-_TRACE_CHARACTERS:])
        hook(kind, error, frames)

    return tell


def _record_code(path: Path) -> None:
    """Have the C library write the exit code of this process to a file, as a C `int`.

    `on_exit` calls `putw(code, stream)` after the interpreter has ended, before streams are
    flushed.
    """
    libc = ctypes.CDLL(None)
    libc.fopen.restype = ctypes.c_void_p
    stream = libc.fopen(os.fsencode(path), b"we")
    if stream:
        libc.on_exit(libc.putw, ctypes.c_void_p(stream))
        # A forked child inherits the handler, but is not the rank.
        os.register_at_fork(
            after_in_child=lambda: libc.freopen(b"/dev/null", b"we", ctypes.c_void_p(stream))
        )


def fail_at_exit(reporter: Reporter, complaint: Callable[[], str]) -> None:
    """End this interpreter with code 1 if there is a complaint when it would end well.

    An error raised by an exit handler would not change the exit code.
    """

    def end() -> None:
        if getattr(sys, "last_type", None) is None and (message := complaint()):
            name = PositionUnusedError.__name__
            sys.stdout.flush()
            sys.stderr.write(f"{PositionUnusedError.__module__}.{name}: {message}\n")
            sys.stderr.flush()
            reporter.note(Note.EXITING, error=name, code=1)
            os._exit(1)

    atexit.register(end)


def _handled_signals() -> list[int]:
    """Signals that end a process by default, and for which the script has a handler of its own."""
    ours = (signal.SIGHUP, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM)
    own = [each for each in ours if callable(signal.getsignal(each))]
    return [int(each) for each in own if signal.getsignal(each) is not signal.default_int_handler]


def _number(status: Any) -> int:
    """The exit code of `sys.exit(status)`, as the interpreter computes it."""
    if status is None:
        return 0
    return status & 0xFF if isinstance(status, int) else 1
