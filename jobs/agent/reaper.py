"""The last resort against leaked processes: kills everything that has a worker's mark.

All processes of a worker have `BABYSIT_WORKER=<id>` in their environment, even in sessions of their
own. As a program (`python -P -m jobs.agent.reaper WORKER FD`) it waits until its agent ends, which
closes the pipe, and then kills them.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
from collections.abc import Collection
from pathlib import Path

ENV_WORKER = "BABYSIT_WORKER"
_ROUNDS = 20
"""Processes may fork during a scan, so each round finds what the last one missed."""
_PATIENCE_MILLISECONDS = 5000
"""A process that survives SIGKILL for this long is stuck in the kernel (state D)."""


def strays(worker: str, spare: Collection[int] = ()) -> list[int]:
    """Pids of live processes with the worker's mark, except this one and `spare`."""
    mark = f"{ENV_WORKER}={worker}".encode()
    excluded = {os.getpid(), *spare}
    pids = (int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit())
    return [pid for pid in pids if pid not in excluded and _has_mark(pid, mark)]


def _has_mark(pid: int, mark: bytes) -> bool:
    try:
        environment = Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:  # ended, a kernel thread, or owned by another user
        return False
    return mark in environment.split(b"\0")


def kill_strays(worker: str, spare: Collection[int] = ()) -> list[int]:
    """Kill these processes and wait until they are dead.

    Returns:
        Pids that did not die; empty: no process of the worker is left.
    """
    left: list[int] = []
    for _ in range(_ROUNDS):
        left = strays(worker, spare)
        if not left:
            break
        _kill_and_wait(left, f"{ENV_WORKER}={worker}".encode())
    return left


def _kill_and_wait(pids: list[int], mark: bytes) -> None:
    poll = select.poll()
    descriptors = set()
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            descriptor = os.pidfd_open(pid)
            descriptors.add(descriptor)
            if _has_mark(
                pid, mark
            ):  # the pid was not reused before pidfd_open, so the descriptor is right
                signal.pidfd_send_signal(descriptor, signal.SIGKILL)
            poll.register(descriptor, select.POLLIN)
    waiting = set(descriptors)
    while waiting and (dead := poll.poll(_PATIENCE_MILLISECONDS)):
        for descriptor, _ in dead:
            poll.unregister(descriptor)
            waiting.discard(descriptor)
    for descriptor in descriptors:
        os.close(descriptor)


class Reaper:
    """The reaper process of an agent; it outlives the agent until all its processes are dead."""

    def __init__(self, worker: str) -> None:
        self._worker = worker
        self._start()

    def _start(self) -> None:
        read, self._pipe = os.pipe()  # inherited by no other process, so it closes with the agent
        self._process = subprocess.Popen(  # noqa: S603 - runs this file
            [sys.executable, "-I", "-S", __file__, self._worker, str(read)],
            pass_fds=[read],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        os.close(read)
        self.pid = self._process.pid

    def ensure(self) -> None:
        """Start another one if it has died: somebody may have killed it."""
        if self._process.poll() is not None:
            os.close(self._pipe)
            self._start()

    def finish(self) -> None:
        """Kill all processes of the worker but this one now, and wait for that. Blocks."""
        try:
            os.write(self._pipe, b"\0")
        except BrokenPipeError:  # it is dead
            kill_strays(self._worker)
        self._process.wait()
        os.close(self._pipe)


def main(worker: str, descriptor: int) -> int:
    """Wait until the agent ends or requests a clean-up, then kill its processes."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    asked = os.read(descriptor, 1)
    return len(kill_strays(worker, {os.getppid()} if asked else ()))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], int(sys.argv[2])))
