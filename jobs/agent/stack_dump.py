"""Stacks that a rank writes by itself on a signal, where py-spy may not read it.

The signal ends a process that does not handle it, so it is sent only to the process that the marker
in the rank directory names (:mod:`babysit.stack_signal`), and only while the kernel shows that this
process handles it.
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

from babysit.stack_signal import READY_FILE, SIGNAL, STACKS_FILE, start_of
from jobs.clock import Clock

_PATIENCE_SECONDS = 3.0
"""For the dump. It takes about a millisecond; a machine may be busy."""
_POLL_SECONDS = 0.02
_STILL_POLLS = 3
"""The dump is whole once the file has not grown for this number of polls."""
_MOST_BYTES = 1 << 20
_UNKNOWN = "it does not write its stacks by itself: another program, or one before babysit.init()"
_THREAD = re.compile(r"(?:Current thread|Thread) 0x([0-9a-f]+)(?: \[(.*)\])? \(most recent call")
_FRAME = re.compile(r'  File "(.*)", line (\d+) in (.*)')


class Dump(NamedTuple):
    """The stacks of one process."""

    threads: list[dict[str, Any]]
    """In the form of py-spy, the main thread first."""
    error: str = ""
    """Why there are none."""


async def take(pid: int, directory: Path, clock: Clock) -> Dump:
    """Have a rank write its stacks, and read them. Never raises for the rank's sake."""
    file = directory / STACKS_FILE
    try:
        before = _rotated(file)
        if why := _send(pid, directory):
            return Dump([], why)
        text = await _grown(file, before, clock)
    except OSError as error:
        return Dump([], f"no stacks by signal: {error.strerror}")
    if not (threads := parse(text, pid)):
        return Dump([], "it does not write its stacks when it is signalled")
    return Dump(threads)


def _rotated(file: Path) -> int:
    """Size of the file, which is emptied if it is large: its writer appends."""
    size = file.stat().st_size if file.exists() else 0
    if size > _MOST_BYTES:
        os.truncate(file, 0)
        return 0
    return size


def _send(pid: int, directory: Path) -> str:
    """Send the signal if that is safe; the reason why it is not, or empty."""
    try:
        marker = json.loads((directory / READY_FILE).read_text())
        descriptor = os.pidfd_open(pid)
    except (OSError, ValueError):
        return _UNKNOWN
    try:
        # From here on the descriptor names the process; the number alone may be another's.
        if marker != {"pid": pid, "start": start_of(pid)}:
            return _UNKNOWN
        if why := _deaf(pid):
            return why
        signal.pidfd_send_signal(descriptor, SIGNAL)
    except (OSError, ValueError):
        return _UNKNOWN
    finally:
        os.close(descriptor)
    return ""


def _deaf(pid: int) -> str:
    """Why the process would not write its stacks on the signal; empty: it would."""
    status = Path(f"/proc/{pid}/status").read_text(errors="replace")
    sets = dict(re.findall(r"^(SigBlk|SigCgt):\s*([0-9a-f]+)", status, re.MULTILINE))
    bit = 1 << (SIGNAL - 1)
    if not int(sets.get("SigCgt", "0"), 16) & bit:
        return _UNKNOWN
    if re.search(r"^State:\s*[TtZX]", status, re.MULTILINE):
        return "it is stopped, and cannot write its stacks by itself"
    return "it blocks the signal" if int(sets.get("SigBlk", "0"), 16) & bit else ""


async def _grown(file: Path, before: int, clock: Clock) -> str:
    """The text that was appended, once it grows no more; empty if nothing was in good time."""
    ends, size, still = clock.monotonic() + _PATIENCE_SECONDS, before, 0
    while clock.monotonic() < ends and still < _STILL_POLLS:
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
    """Threads of a dump of `faulthandler`, in the form of py-spy, the main thread first.

    The dump has the newest thread first, and so the main thread last.
    """
    threads: list[dict[str, Any]] = []
    for line in text.splitlines():
        if found := _THREAD.match(line):
            ident = int(found[1], 16)
            threads.append({"thread_name": found[2] or "", "ident": ident, "frames": []})
        elif threads and (found := _FRAME.fullmatch(line)):
            frame = {
                "name": found[3],
                "filename": found[1],
                "short_filename": _short(found[1]),
                "line": int(found[2]),
            }
            threads[-1]["frames"].append(frame)
    threads.reverse()
    if threads:
        threads[0] |= {"thread_name": "MainThread", "os_thread_id": pid}
    return threads


def _short(filename: str) -> str:
    """The path from the root of its packages on, as py-spy shows it."""
    path = Path(filename)
    root = path.parent
    with contextlib.suppress(OSError):
        while (root / "__init__.py").exists() and root != root.parent:
            root = root.parent
    return str(path.relative_to(root)) if path.is_absolute() else filename


def native_threads(pid: int, threads: list[dict[str, Any]]) -> list[int]:
    """Thread ids, as the kernel has them, of those threads of a dump that are not the main one.

    A dump names a thread by the address of its descriptor, which lies at the upper end of its
    stack; the kernel tells where each stack pointer is. Where it does not (a thread that runs), any
    thread that was not found may be meant, and all of those are returned.
    """
    others = [thread["ident"] for thread in threads[1:]]
    if not others:
        return []
    pointers: dict[int, int | None] = {}
    with contextlib.suppress(OSError):
        for entry in os.scandir(f"/proc/{pid}/task"):
            if int(entry.name) != pid:
                pointers[int(entry.name)] = _stack_pointer(entry.path)
    known = {tid: pointer for tid, pointer in pointers.items() if pointer is not None}
    found = []
    for ident in others:
        below = [(pointer, tid) for tid, pointer in known.items() if pointer < ident]
        if below and ident - max(below)[0] < _STACK_BYTES:
            found.append(max(below)[1])
    if len(set(found)) < len(others):
        found += [tid for tid, pointer in pointers.items() if pointer is None or tid not in found]
    return sorted(set(found))


_STACK_BYTES = 1 << 30
"""More than a stack has."""


def _stack_pointer(task: str) -> int | None:
    try:
        fields = Path(task, "syscall").read_text().split()
        return int(fields[-2], 16) if len(fields) > 2 else None
    except (OSError, ValueError):
        return None
