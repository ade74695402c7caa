"""The stack that a rank writes by itself on a signal, where py-spy may not read it.

A signal ends a process that does not handle it, so it is sent only to the process that the marker
in the rank directory names (:mod:`babysit.stack_signal`), and only while the kernel shows that this
process handles it and still has its file open. The second signal, which is answered in C, is sent
only to a main thread that runs no Python code: it has not answered the first one, and it waits, or
it has computed since.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
from pathlib import Path
from typing import Any, NamedTuple

from babysit.stack_signal import (
    HANDLER,
    READY_FILE,
    SIGNAL,
    SIGNAL_IN_C,
    STACKS_FILE,
    start_of,
)
from jobs.clock import Clock

_HANDLER_SECONDS = 0.5
"""For Python's own handler. A main thread that runs Python code calls it within milliseconds."""
_PATIENCE_SECONDS = 3.0
"""For the handler in C. It takes about a millisecond; a machine may be busy."""
_COMPUTES_TICKS = 5
"""Time on a CPU, in ticks of the kernel, in which any Python code had called its handler."""
_POLL_SECONDS = 0.02
_STILL_POLLS = 3
"""The stack is whole once the file has not grown for this number of polls."""
_MOST_BYTES = 1 << 20
_UNKNOWN = "it does not write its stacks by itself: another program, or one before babysit.init()"
_CLOSED = "it has closed the file for its stacks"
_STARVED = "it does not write its stacks: it gets no time on a CPU"
_STACK = "Stack (most recent call first):"
_FRAME = re.compile(r'  File "(.*)", line (\d+) in (.*)')


class Dump(NamedTuple):
    """The stack of the main thread of one process."""

    threads: list[dict[str, Any]]
    """In the form of py-spy, with only the main thread; empty: none."""
    error: str = ""
    """Why there is none."""


async def take(pid: int, directory: Path, clock: Clock) -> Dump:
    """Have a rank write its stack, and read it. Never raises for the rank's sake."""
    file = directory / STACKS_FILE
    try:
        _, used = _main_thread(pid)
        for number, seconds in ((SIGNAL, _HANDLER_SECONDS), (SIGNAL_IN_C, _PATIENCE_SECONDS)):
            if number == SIGNAL_IN_C and not _is_in_c(pid, used):
                return Dump([], _STARVED)
            before = _rotated(file)
            if why := _send(pid, directory, number):
                return Dump([], why)
            if threads := parse(await _grown(file, before, seconds, clock), pid):
                return Dump(threads)
    except OSError as error:
        return Dump([], f"no stacks by signal: {error.strerror}")
    return Dump([], "it does not write its stacks when it is signalled")


def _main_thread(pid: int) -> tuple[str, int]:
    """State letter of the main thread, and its time on a CPU in ticks (proc_pid_stat(5))."""
    text = Path(f"/proc/{pid}/task/{pid}/stat").read_text(errors="replace")
    fields = text.rpartition(")")[2].split()
    return fields[0], int(fields[11]) + int(fields[12])


def _is_in_c(pid: int, used: int) -> bool:
    """True if a main thread that has not called its handler runs no Python code.

    One that is about to run, and has not for all this time, may be anywhere.
    """
    state, now = _main_thread(pid)
    return state != "R" or now - used >= _COMPUTES_TICKS


def _rotated(file: Path) -> int:
    """Size of the file, which is emptied if it is large: its writer appends."""
    size = file.stat().st_size if file.exists() else 0
    if size > _MOST_BYTES:
        os.truncate(file, 0)
        return 0
    return size


def _send(pid: int, directory: Path, number: int) -> str:
    """Send a signal if that is safe; the reason why it is not, or empty."""
    try:
        marker = json.loads((directory / READY_FILE).read_text())
        descriptor = os.pidfd_open(pid)
    except (OSError, ValueError):
        return _UNKNOWN
    try:
        # From here on the descriptor names the process; the number alone may be another's.
        if (marker["pid"], marker["start"]) != (pid, start_of(pid)):
            return _UNKNOWN
        if why := _deaf(pid, number):
            return why
        if not _is_open(pid, marker["descriptor"], directory / STACKS_FILE):
            return _CLOSED
        signal.pidfd_send_signal(descriptor, number)
    except (OSError, ValueError, KeyError, TypeError):
        return _UNKNOWN
    finally:
        os.close(descriptor)
    return ""


def _deaf(pid: int, number: int) -> str:
    """Why the process would not write its stack on a signal; empty: it would."""
    status = Path(f"/proc/{pid}/status").read_text(errors="replace")
    sets = dict(re.findall(r"^(SigBlk|SigCgt):\s*([0-9a-f]+)", status, re.MULTILINE))
    bit = 1 << (number - 1)
    if not int(sets.get("SigCgt", "0"), 16) & bit:
        return _UNKNOWN
    if re.search(r"^State:\s*[TtZX]", status, re.MULTILINE):
        return "it is stopped, and cannot write its stacks by itself"
    return "it blocks the signal" if int(sets.get("SigBlk", "0"), 16) & bit else ""


def _is_open(pid: int, descriptor: int, file: Path) -> bool:
    """False if the descriptor is closed, or another file has its number: it would be written to."""
    try:
        return Path(f"/proc/{pid}/fd/{descriptor}").samefile(file)
    except PermissionError:  # the kernel does not show it
        return True
    except OSError:
        return False


async def _grown(file: Path, before: int, seconds: float, clock: Clock) -> str:
    """The text that was appended, once it grows no more; empty if nothing was in good time."""
    ends, size, still = clock.monotonic() + seconds, before, 0
    while still < _STILL_POLLS and (clock.monotonic() < ends or size > before):
        await clock.sleep(_POLL_SECONDS)
        now = _size(file)
        still = still + 1 if now == size and now > before else 0
        size = now
    return await asyncio.to_thread(_from, file, before)


def _size(file: Path) -> int:
    return file.stat().st_size


def _from(file: Path, place: int) -> str:
    with file.open("rb") as opened:
        opened.seek(place)
        return opened.read(_MOST_BYTES).decode(errors="replace")


def parse(text: str, pid: int) -> list[dict[str, Any]]:
    """The newest stack of a file that `faulthandler` writes, in the form of py-spy."""
    frames: list[dict[str, Any]] = []
    for line in text.splitlines():
        if line.startswith(_STACK):
            frames = []
        elif found := _FRAME.fullmatch(line):
            frames.append(
                {
                    "name": found[3],
                    "filename": found[1],
                    "short_filename": _short(found[1]),
                    "line": int(found[2]),
                }
            )
    if frames and frames[0]["name"].endswith(HANDLER):
        del frames[0]
    thread = {"thread_name": "MainThread", "os_thread_id": pid, "frames": frames}
    return [thread] if frames else []


def _short(filename: str) -> str:
    """The path from the root of its packages on, as py-spy shows it."""
    path = Path(filename)
    root = path.parent
    with contextlib.suppress(OSError):
        while (root / "__init__.py").exists() and root != root.parent:
            root = root.parent
    return str(path.relative_to(root)) if path.is_absolute() else filename
