"""Ends what a benchmark has started, however the benchmark ends.

The problem: agents and their ranks outlive the server, and the server outlives the command that
started it. A benchmark that is interrupted would leave a training run behind, which takes the cores
of whatever is measured next. The design: signals become an exception, so that every context is
left; the control plane cancels its runs if it can; then the server and all workers of this home
that are still there are killed, by their marks. Not covered: SIGKILL of the benchmark, and workers
of other clusters than the local one.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

from jobs.agent import reaper
from orchestrator.clusters.local.worker_records import Records

SIGNALS = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)
_OURS = (b"babysit.server", b"orchestrator.cli.main")
"""Programs that a benchmark starts with a home of its own."""
_PATIENCE_MILLISECONDS = 5000


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Let a signal that asks the benchmark to end raise SystemExit, so that `finally` runs."""
    with _handling(_leave):
        yield


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """Finish what a benchmark does last: a second signal only says that it is under way."""
    with _handling(_say):
        yield


@contextlib.contextmanager
def _handling(handler: Any) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    # A job of a shell's background ignores SIGINT: that stays so.
    heard = [number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, handler) for number in heard}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)


def _leave(number: int, _frame: FrameType | None) -> None:
    raise SystemExit(128 + number)


def _say(_number: int, _frame: FrameType | None) -> None:
    print("ending what the benchmark has started", file=sys.stderr, flush=True)


def processes_of(home: Path) -> list[int]:
    """Pids of servers and commands of a home; its workers have marks of their own."""
    mark = f"BABYSIT_HOME={home}".encode()
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        with contextlib.suppress(OSError):  # it has ended, or is another user's
            words = (entry / "cmdline").read_bytes().split(b"\0")
            variables = (entry / "environ").read_bytes().split(b"\0")
            if mark in variables and any(word in words for word in _OURS):
                found.append(int(entry.name))
    return found


def end_all(home: Path) -> None:
    """Kill the server of a home first, which would start workers again, then all its workers."""
    for pid in processes_of(home):
        _kill(pid)
    records = Records(home)
    for directory in home.glob("runs/*/workers/*"):
        run, worker = directory.parts[-3], directory.name
        reaper.end_worker(worker)
        records.free_memory(run, worker)


def _kill(pid: int) -> None:
    """Kill a process, and wait until it is dead."""
    with contextlib.suppress(ProcessLookupError):
        descriptor = os.pidfd_open(pid)
        try:
            signal.pidfd_send_signal(descriptor, signal.SIGKILL)
            poll = select.poll()
            poll.register(descriptor, select.POLLIN)
            poll.poll(_PATIENCE_MILLISECONDS)
        finally:
            os.close(descriptor)
