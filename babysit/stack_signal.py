"""A signal on which a rank writes the Python stacks of its threads, where nobody may trace it.

The problem: containers without SYS_PTRACE refuse py-spy, and a hang is convicted by stacks. The
design: `faulthandler` writes them from the handler of a real-time signal, in C, also while the main
thread is inside a call of C or holds the GIL. A marker in the rank directory says that this very
process has registered; without it the agent sends nothing, since the signal ends a process that
does not handle it. A script that sets a handler of its own for this signal removes the marker.

Not covered: interpreters that the fork server executes afresh, until `babysit.init()`. The handler
restarts system calls that can be restarted; the others end early with EINTR, which Python tries
again by itself, and so do gloo and NCCL.

Standard library only, and nothing of babysit: the fork server loads this file by its path.
"""

from __future__ import annotations

import contextlib
import faulthandler
import functools
import json
import os
import signal
from typing import Any

SIGNAL: int = getattr(signal, "SIGRTMIN", 0) + 12
"""No other program is known to use it. Systems without real-time signals have no agents either."""
STACKS_FILE = "stacks"
"""In the rank directory; the handler appends to it."""
READY_FILE = "stacks.json"
"""In the rank directory: pid and start time of the process that handles the signal."""


def register(directory: str) -> None:
    """Have this process write its stacks into a rank directory on :data:`SIGNAL`.

    Does nothing if the script uses the signal itself, or the directory cannot be written; raises
    nothing. A second call of one process does nothing.
    """
    if not hasattr(signal, "SIGRTMIN"):
        return
    marker = os.path.join(directory, READY_FILE)  # noqa: PTH118 (pathlib would cost an import)
    with contextlib.suppress(OSError, ValueError, RuntimeError, TypeError):
        identity = {"pid": os.getpid(), "start": start_of(os.getpid())}
        if _read(marker) == identity or signal.getsignal(SIGNAL) is not signal.SIG_DFL:
            return
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        file = os.open(os.path.join(directory, STACKS_FILE), flags, 0o600)  # noqa: PTH118
        faulthandler.register(SIGNAL, file=file, all_threads=True, chain=False)
        _watch_over(marker)
        with open(f"{marker}.new", "w", encoding="ascii") as new:  # noqa: PTH123
            json.dump(identity, new)
        os.replace(f"{marker}.new", marker)  # noqa: PTH105


def start_of(pid: int) -> int:
    """When a process started, in ticks since boot: with the pid, it names the process.

    Raises:
        OSError: There is no such process.
    """
    with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as file:  # noqa: PTH123
        return int(file.read().rpartition(")")[2].split()[19])


def _read(marker: str) -> object:
    try:
        with open(marker, encoding="ascii") as file:  # noqa: PTH123
            return json.load(file)
    except (OSError, ValueError):
        return None


def _watch_over(marker: str) -> None:
    """Remove the marker before anybody sets another handler for the signal."""
    original: Any = signal.signal

    @functools.wraps(original)
    def set_handler(signalnum: Any, handler: Any, /) -> Any:
        if signalnum == SIGNAL:
            with contextlib.suppress(OSError):
                os.unlink(marker)  # noqa: PTH108
        return original(signalnum, handler)

    signal.signal = set_handler  # type: ignore[assignment]
