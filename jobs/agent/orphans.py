"""Processes whose parents have ended: adopted, found and killed by the next ancestor that asks.

A daemon has left its session, and may have an environment of its own. It still has a parent: once
its own one has ended, the nearest ancestor that is a subreaper (prctl(2)). The fork server and the
agent are. Standard library only: the fork server loads this file by its path.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import time
from collections.abc import Container

_PR_SET_CHILD_SUBREAPER = 36
_STUBBORN_SECONDS = 5.0
"""A process that survives SIGKILL for this long is stuck in the kernel (state D)."""


def adopt() -> None:
    """Become the parent of every descendant whose own parent ends (PR_SET_CHILD_SUBREAPER)."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def children() -> list[int]:
    """Pids of this process's children, with adopted ones and those that are not reaped yet."""
    me = str(os.getpid())
    names = os.listdir("/proc")  # noqa: PTH208 - pathlib would cost an import
    return [int(name) for name in names if name.isdigit() and _stat(name)[1:2] == [me]]


def _stat(pid: int | str) -> list[str]:
    """Fields of proc_pid_stat(5) from the state on; empty: there is no such process."""
    try:
        with open(f"/proc/{pid}/stat", errors="replace") as file:  # noqa: PTH123 - as above
            return file.read().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return []


def end_children(spare: Container[int], *, reap: bool = True) -> list[int]:
    """Kill this process's children, and theirs, which become its own as they are orphaned.

    Only children are killed, so that no pid can belong to a stranger by now.

    Args:
        spare: Children that live on.
        reap: Reap them, too; False where others wait for some of them.

    Returns:
        Pids that did not die; empty: there are no others left.
    """
    deadline = time.monotonic() + _STUBBORN_SECONDS
    zombies: set[int] = set()
    # Until one look finds nobody: a child that ends during the look leaves its own children to us,
    # which that look may have passed already.
    while found := [pid for pid in children() if pid not in spare and pid not in zombies]:
        over = [pid for pid in found if is_over(pid, reap=reap)]
        zombies.update([] if reap else over)
        left = [pid for pid in found if pid not in over]
        if left and time.monotonic() > deadline:
            return left
        for pid in left:
            _kill_child(pid)
        time.sleep(0.002)
    return []


def is_over(pid: int, *, reap: bool = True) -> bool:
    """True if a child has ended; reaps it."""
    if not reap:
        return _stat(pid)[:1] in ([], ["Z"], ["X"])
    try:
        return os.waitpid(pid, os.WNOHANG)[0] == pid
    except ChildProcessError:
        return True


def _kill_child(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        descriptor = os.pidfd_open(pid)
        try:
            if _stat(pid)[1:2] == [str(os.getpid())]:
                signal.pidfd_send_signal(descriptor, signal.SIGKILL)
        finally:
            os.close(descriptor)
