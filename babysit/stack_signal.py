"""Signals on which a rank writes the Python stack of its main thread, where nobody may trace it.

The problem: containers without SYS_PTRACE refuse py-spy, and a hang is convicted by stacks. But
`faulthandler` in a handler of C crashes now and then if it reads the frames of a thread that runs
Python code: of other threads, or of its own in the middle of a call.

The design: two signals. On :data:`SIGNAL`, Python's own handler writes the stack, once the main
thread runs Python code or waits in a call that signals end. If nothing comes of it, the main thread
is inside a call of C, so its frames stand still: only then, and only of this thread, `faulthandler`
writes them on :data:`SIGNAL_IN_C`, also where the call holds the GIL. A marker in the rank
directory says that this very process has registered; without it the agent sends nothing, since the
signals end a process that does not handle them. A script that sets a handler of its own removes the
marker.

Not covered: interpreters that the fork server executes afresh, until `babysit.init()`, and that
only in the main thread. The handlers restart system calls that can be restarted; the others end
early with EINTR, which Python tries again by itself, and so do gloo and NCCL.

Standard library only, and nothing of babysit: the fork server loads this file by its path.
"""

from __future__ import annotations

import contextlib
import faulthandler
import functools
import json
import os
import re
import signal
from collections.abc import Callable
from typing import Any

SIGNAL: int = getattr(signal, "SIGRTMIN", 0) + 12
"""No other program is known to use it. Systems without real-time signals have no agents either."""
SIGNAL_IN_C: int = SIGNAL + 1
"""Safe only while the main thread runs no Python code."""
STACKS_FILE = "stacks"
"""In the rank directory; the handlers append to it."""
READY_FILE = "stacks.json"
"""In the rank directory: pid and start time of the process that handles the signals, and the
descriptor that it writes its stack to."""
HANDLER = "write_stack"
"""Name of the handler's frame, which is the innermost one of a stack that it writes."""
_OURS = "babysit_original"
"""Attribute of the `signal.signal` that watches over the marker: the one it stands for."""


def register(directory: str) -> None:
    """Have this process write its stack into a rank directory on either signal.

    Does nothing if the process uses one of the signals itself, if this is not its main thread, or
    if the directory cannot be written; raises nothing. A second call of one process does nothing.
    """
    if not hasattr(signal, "SIGRTMIN"):
        return
    marker = os.path.join(directory, READY_FILE)  # noqa: PTH118 (pathlib would cost an import)
    with contextlib.suppress(OSError, ValueError, RuntimeError, TypeError):
        identity = {"pid": os.getpid(), "start": start_of(os.getpid())}
        known = _read(marker)
        if isinstance(known, dict) and known.items() >= identity.items():
            return
        if not (_is_free(SIGNAL) and _is_free(SIGNAL_IN_C)):
            return
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        file = os.open(os.path.join(directory, STACKS_FILE), flags, 0o600)  # noqa: PTH118
        original = getattr(signal.signal, _OURS, signal.signal)
        original(SIGNAL, _writer(file))
        signal.siginterrupt(SIGNAL, False)
        faulthandler.register(SIGNAL_IN_C, file=file, all_threads=False, chain=False)
        _watch_over(marker, original)
        with open(f"{marker}.new", "w", encoding="ascii") as new:  # noqa: PTH123
            json.dump({**identity, "descriptor": file}, new)
        os.replace(f"{marker}.new", marker)  # noqa: PTH105


def start_of(pid: int) -> int:
    """When a process started, in ticks since boot: with the pid, it names the process.

    Raises:
        OSError: There is no such process.
    """
    with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as file:  # noqa: PTH123
        return int(file.read().rpartition(")")[2].split()[19])


def _writer(file: int) -> Callable[[int, Any], None]:
    def write_stack(_number: int, _frame: object) -> None:
        with contextlib.suppress(Exception):  # no script may get an exception out of nowhere
            faulthandler.dump_traceback(file, all_threads=False)

    return write_stack


def _is_free(number: int) -> bool:
    """True if no other code handles a signal, neither in Python nor in C."""
    handler = signal.getsignal(number)
    if hasattr(signal.signal, _OURS):  # registered before, perhaps by the parent of this fork
        return handler is signal.SIG_DFL or getattr(handler, "__name__", "") == HANDLER
    with open("/proc/self/status", encoding="ascii", errors="replace") as file:  # noqa: PTH123
        caught = re.search(r"^SigCgt:\s*([0-9a-f]+)", file.read(), re.MULTILINE)
    is_caught = caught is not None and bool(int(caught[1], 16) >> (number - 1) & 1)
    return handler is signal.SIG_DFL and not is_caught


def _read(marker: str) -> object:
    try:
        with open(marker, encoding="ascii") as file:  # noqa: PTH123
            return json.load(file)
    except (OSError, ValueError):
        return None


def _watch_over(marker: str, original: Any) -> None:
    """Remove the marker before anybody sets another handler for one of the signals."""

    @functools.wraps(original)
    def set_handler(signalnum: Any, handler: Any, /) -> Any:
        if signalnum in {SIGNAL, SIGNAL_IN_C}:
            with contextlib.suppress(OSError):
                os.unlink(marker)  # noqa: PTH108
        return original(signalnum, handler)

    setattr(set_handler, _OURS, original)
    signal.signal = set_handler  # type: ignore[assignment]
