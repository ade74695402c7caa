"""Unambiguous identities of processes. Linux.

A pid alone is ambiguous, since the kernel reuses it. An :class:`Identity` adds the start time
(`/proc/PID/stat`, field 22) and the boot id, and signals go through pidfds. So a recycled pid is
never mistaken for its former process. :mod:`jobs.agent.reaper` finds and kills the processes of a
worker.
"""

from __future__ import annotations

import functools
import os
import signal
from pathlib import Path

from pydantic import BaseModel, ConfigDict


class Identity(BaseModel):
    """One process, unique over time and reboots."""

    model_config = ConfigDict(frozen=True)

    pid: int
    start: int
    """Start time in clock ticks since boot."""
    boot: str
    """The kernel's boot id."""


@functools.cache
def _boot() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def identify(pid: int) -> Identity | None:
    """The process that has this pid now; None: no live process (a zombie has ended)."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The name in parentheses may contain blanks and parentheses: count from the last one.
    state, *fields = text.rpartition(")")[2].split()
    if state in "ZX":
        return None
    return Identity(pid=pid, start=int(fields[18]), boot=_boot())


def is_alive(identity: Identity) -> bool:
    """True if this very process is alive (not a later one with its pid, not a zombie)."""
    return identify(identity.pid) == identity


def open_pidfd(identity: Identity) -> int | None:
    """A pidfd of this very process, to be closed by the caller; None: it has ended.

    The pidfd becomes readable when the process ends.
    """
    try:
        descriptor = os.pidfd_open(identity.pid)
    except ProcessLookupError:
        return None
    if is_alive(identity):
        return descriptor
    os.close(descriptor)
    return None


def send_signal(descriptor: int, number: signal.Signals) -> None:
    """Signal the process of a pidfd; nothing happens if it has ended."""
    try:
        signal.pidfd_send_signal(descriptor, number)
    except ProcessLookupError:
        return  # it has ended, as the caller wants


def end_of(descriptor: int) -> str:
    """How the process of a pidfd ended, in words; reaps it if it is a child.

    Call it only once the pidfd is readable.
    """
    try:
        result = os.waitid(os.P_PIDFD, descriptor, os.WEXITED)
    except ChildProcessError:
        return "ended (exit code unknown: an earlier server started it)"
    if result is None or result.si_code == os.CLD_EXITED:
        return f"exited with code {result.si_status if result else 0}"
    return f"was killed by {signal.Signals(result.si_status).name}"
