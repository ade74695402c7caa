"""A rank writes down its collectives when its agent asks: torch's flight recorder.

The problem: a rank that hangs in a collective cannot be asked anything by its main thread, and
NCCL's own dump comes only after its time-out.

The design: a thread waits for a byte in a named pipe of the rank directory, which costs nothing.
Waits of gloo and NCCL release the GIL, so the thread can then dump the recorders of both backends
into the rank directory. A new file `flight.done` says that all dumps are whole. Stack traces are
left out: torch imports its compiler to make them, for seconds.

Limits: a main thread that holds the GIL keeps this one from answering. The dumps are pickles that
torch made; this module never reads them.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

ASK_FILE = "flight.ask"
"""In the rank directory: a named pipe; a byte asks for a dump."""
DONE_FILE = "flight.done"
"""In the rank directory: replaced when an answer is whole."""
RECORD_FILE = "flight.{}"
"""In the rank directory: the newest dump, by the name of its recorder."""
RECORDERS = {"nccl": "_dump_nccl_trace", "generic": "_dump_fr_trace"}
"""Recorders of torch, and the functions that dump them: the generic one is gloo's."""
THREAD = "babysit-flight"
"""Name of the thread for the kernel, too (15 bytes at most): it is not one that a run waits for."""
MOST_BYTES = 16 << 20
"""Of a dump; a larger one is left out. 2,000 entries, torch's default, take 0.23 MB."""


_served: set[Path] = set()


def listen(directory: Path) -> None:
    """Answer the agent from now on. Raises nothing; a second call of one process does nothing."""
    pipe = directory / ASK_FILE
    with contextlib.suppress(OSError, RuntimeError):
        if directory not in _served:
            pipe.unlink(missing_ok=True)  # of a process that was this rank before
            os.mkfifo(pipe, 0o600)
            arguments = (pipe, directory)
            threading.Thread(target=_serve, args=arguments, name=THREAD, daemon=True).start()
            _served.add(directory)


def _serve(pipe: Path, directory: Path) -> None:
    with contextlib.suppress(OSError):  # Python names its threads for the kernel from 3.14 on
        Path(f"/proc/self/task/{threading.get_native_id()}/comm").write_text(THREAD)
    with contextlib.suppress(OSError):  # the directory is gone: the attempt is over
        # Open for writing too: a pipe without a writer would end, again and again.
        descriptor = os.open(pipe, os.O_RDWR | os.O_CLOEXEC)
        while os.read(descriptor, 64):
            for name, dump in _recorders().items():
                _write(directory / RECORD_FILE.format(name), dump)
            _replace(directory / DONE_FILE, b"")


def _recorders() -> dict[str, Callable[..., bytes]]:
    """The dumps that this process's torch has; none if the process has not imported torch."""
    torch = sys.modules.get("torch")
    parent: Any = getattr(getattr(torch, "_C", None), "_distributed_c10d", None)
    found = {name: getattr(parent, function, None) for name, function in RECORDERS.items()}
    return {name: dump for name, dump in found.items() if dump is not None}


def _write(file: Path, dump: Callable[..., bytes]) -> None:
    # A recorder that was never used may fail; the next one is tried.
    with contextlib.suppress(OSError, RuntimeError, TypeError, ValueError):
        data = dump(includeCollectives=True, includeStackTraces=False, onlyActive=False)
        if len(data) <= MOST_BYTES:
            _replace(file, data)


def _replace(file: Path, data: bytes) -> None:
    fresh = file.with_name(f"{file.name}.new")
    fresh.write_bytes(data)
    fresh.replace(file)
