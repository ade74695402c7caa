"""Processes told apart for certain. Linux.

A pid alone names nobody: it is used again. An :class:`Identity` adds the start time
(`/proc/PID/stat`, field 22) and the boot, and signals go through pidfds, so that a recycled pid is
never mistaken for the process that had it. What belongs to a worker is found and killed by
:mod:`jobs.agent.reaper`.
"""

from __future__ import annotations

import functools
import os
import signal
from pathlib import Path

from pydantic import BaseModel, ConfigDict


class Identity(BaseModel):
    """One process, for ever."""

    model_config = ConfigDict(frozen=True)

    pid: int
    start: int
    """Clock ticks from boot to its start."""
    boot: str
    """The kernel's boot id."""


@functools.cache
def _boot() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def identify(pid: int) -> Identity | None:
    """Who has this pid now. None: nobody alive (a zombie has ended; it only waits to be reaped)."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The name, in parentheses, may itself hold blanks and parentheses: count from the last one.
    state, *fields = text.rpartition(")")[2].split()
    if state in "ZX":
        return None
    return Identity(pid=pid, start=int(fields[18]), boot=_boot())


def is_alive(identity: Identity) -> bool:
    """Whether this very process is alive (not a later one with its pid, not a zombie)."""
    return identify(identity.pid) == identity


def open_pidfd(identity: Identity) -> int | None:
    """A pidfd of this very process, for the caller to close; None when it is gone.

    It becomes readable when the process ends.
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
    """Signal the process of a pidfd. That it is gone already is no error."""
    try:
        signal.pidfd_send_signal(descriptor, number)
    except ProcessLookupError:
        return  # the caller waits for its end, which has come


def end_of(descriptor: int) -> str:
    """How the process of a pidfd ended, in words; reaps it when it is a child of ours.

    Call it only when the pidfd is readable.
    """
    try:
        result = os.waitid(os.P_PIDFD, descriptor, os.WEXITED)
    except ChildProcessError:
        return "ended (how is not known: it was started by an earlier server)"
    if result is None or result.si_code == os.CLD_EXITED:
        return f"exited with code {result.si_status if result else 0}"
    return f"was killed by {signal.Signals(result.si_status).name}"
