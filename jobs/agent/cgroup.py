"""A worker's control group: its ranks and all they start, whatever they shed.

A process can leave its session, and clean its environment, but not its control group (unless it is
root, and means to). The agent makes a group of its own below the one it is in, where cgroup v2 is
mounted and the directory is its own to write (root, or a delegated group); ranks enter it at their
fork. Where there is none, processes are found as descendants alone (:mod:`jobs.agent.orphans`).
No controller is enabled: the group limits and accounts nothing.

Standard library only: the fork server and the reaper load this file by its path.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import time

_STUBBORN_SECONDS = 5.0
"""A process that survives SIGKILL for this long is stuck in the kernel (state D)."""
_LOOK_MILLISECONDS = 100
"""Longest wait between looks; a change of `cgroup.events` ends it."""
_KILL_FILE = "cgroup.kill"
"""Since Linux 5.14."""


def create(worker: str) -> str:
    """Make the group of a worker; returns its directory, or an empty text where that cannot be."""
    with contextlib.suppress(OSError, ValueError):
        path = f"{_own()}/{_name(worker)}"
        with contextlib.suppress(FileExistsError):
            os.mkdir(path)  # noqa: PTH102 - pathlib would cost an import
        if os.access(f"{path}/cgroup.procs", os.W_OK):
            return path
        os.rmdir(path)  # noqa: PTH106 - as above
    return ""


def find(worker: str) -> str:
    """The directory of a worker's group, wherever it is; empty: there is none."""
    name = _name(worker)
    with contextlib.suppress(OSError, ValueError):
        if os.path.isdir(path := f"{_own()}/{name}"):  # noqa: PTH112 - as above
            return path
        for directory, names, _ in os.walk(_mount()[0]):
            if name in names:
                return f"{directory}/{name}"
    return ""


def _name(worker: str) -> str:
    return f"babysit-{worker}"


def _own() -> str:
    """The directory of this process's group.

    Raises:
        OSError: /proc cannot be read.
        ValueError: cgroup v2 is not mounted, or the group is outside what is mounted.
    """
    with open("/proc/self/cgroup") as file:  # noqa: PTH123 - as above
        (path,) = [line[3:].rstrip("\n") for line in file if line.startswith("0::")]
    mount, root = _mount()
    inside = os.path.relpath(path, root)
    if inside.startswith(".."):
        raise ValueError(f"{path} is not below {root}, which is mounted")
    return os.path.normpath(f"{mount}/{inside}")


def _mount() -> tuple[str, str]:
    """Where cgroup v2 is mounted, and which group that is."""
    with open("/proc/self/mountinfo") as file:  # noqa: PTH123 - as above
        for line in file:
            fields, _, kind = line.partition(" - ")
            if kind.startswith("cgroup2 "):
                root, place = fields.split()[3:5]
                return place, root
    raise ValueError("cgroup v2 is not mounted")


def enter(path: str) -> None:
    """Move this process into the group.

    Raises:
        OSError: It may not be moved, or the group is gone.
    """
    with open(f"{path}/cgroup.procs", "w") as file:  # noqa: PTH123 - as above
        file.write("0")


def end(path: str) -> list[int]:
    """Kill everything in the group and wait until it is empty.

    Returns:
        Pids that did not die; empty: no process of the group, or of groups below, is left.
    """
    deadline = time.monotonic() + _STUBBORN_SECONDS
    while path and _is_populated(path):
        _kill(path)
        if time.monotonic() > deadline:
            return members(path) or [-1]
        _wait_for_change(path)
    return []


def members(path: str) -> list[int]:
    """Pids in the group and the groups below."""
    found: list[int] = []
    for directory, _, _ in os.walk(path):
        with contextlib.suppress(OSError), open(f"{directory}/cgroup.procs") as file:  # noqa: PTH123
            found += [int(line) for line in file]
    return found


def _is_populated(path: str) -> bool:
    try:
        with open(f"{path}/cgroup.events") as file:  # noqa: PTH123 - as above
            return "populated 0" not in file.read()
    except OSError:  # the group was removed, so it was empty
        return os.path.isdir(path)  # noqa: PTH112 - as above


def _kill(path: str) -> None:
    try:
        with open(f"{path}/{_KILL_FILE}", "r+") as file:  # noqa: PTH123 - never made anew
            file.write("1")
    except OSError:
        for pid in members(path):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                descriptor = os.pidfd_open(pid)
                try:
                    if pid in members(path):  # so the pid was not reused before
                        signal.pidfd_send_signal(descriptor, signal.SIGKILL)
                finally:
                    os.close(descriptor)


def _wait_for_change(path: str) -> None:
    with contextlib.suppress(OSError), open(f"{path}/cgroup.events") as file:  # noqa: PTH123
        poll = select.poll()
        poll.register(file, select.POLLPRI)
        if "populated 0" not in file.read():
            poll.poll(_LOOK_MILLISECONDS)


def remove(path: str) -> None:
    """Remove the empty group, and what its processes have made below it."""
    if path:
        for directory, _, _ in os.walk(path, topdown=False):
            with contextlib.suppress(OSError):  # not empty: the next one who looks removes it
                os.rmdir(directory)  # noqa: PTH106 - as above
