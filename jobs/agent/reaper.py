"""The last resort against leaks: find and kill whatever bears a worker's mark.

Everything that a worker runs has `BABYSIT_WORKER=<id>` in its environment, also what moved to a
session of its own. As a program (`python -P -m jobs.agent.reaper WORKER FD`) it waits until its
agent is gone, which closes the pipe, and then clears up.
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
"""Processes may fork while we look; each round finds what the last one missed."""
_PATIENCE_MILLISECONDS = 5000
"""A killed process that is still there after this long is stuck in the kernel (state D)."""


def strays(worker: str, spare: Collection[int] = ()) -> list[int]:
    """Pids of live processes with the worker's mark, but for this one and those spared."""
    mark = f"{ENV_WORKER}={worker}".encode()
    spared = {os.getpid(), *spare}
    pids = (int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit())
    return [pid for pid in pids if pid not in spared and _bears(pid, mark)]


def _bears(pid: int, mark: bytes) -> bool:
    try:
        environment = Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:  # gone, a kernel thread, or another user's
        return False
    return mark in environment.split(b"\0")


def kill_strays(worker: str, spare: Collection[int] = ()) -> list[int]:
    """Kill them and wait until they are dead.

    Returns:
        Pids that would not die; empty when nothing of the worker is left.
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
            if _bears(pid, mark):  # still the same process: from here on the descriptor names it
                signal.pidfd_send_signal(descriptor, signal.SIGKILL)
            poll.register(descriptor, select.POLLIN)
    waiting = set(descriptors)
    while waiting and (dead := poll.poll(_PATIENCE_MILLISECONDS)):
        for descriptor, _ in dead:
            poll.unregister(descriptor)
            waiting.discard(descriptor)
    for descriptor in descriptors:
        os.close(descriptor)


class Warden:
    """An agent's warden: a process that outlives it by as long as clearing up takes."""

    def __init__(self, worker: str) -> None:
        read, self._pipe = os.pipe()  # not inherited by anything else, so it closes with the agent
        self._process = subprocess.Popen(  # noqa: S603 - this very file
            [sys.executable, "-I", "-S", __file__, worker, str(read)],
            pass_fds=[read],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        os.close(read)
        self.pid = self._process.pid

    def finish(self) -> None:
        """Let it clear up all but this process now, and wait until it has. Blocks."""
        os.write(self._pipe, b"\0")
        self._process.wait()
        os.close(self._pipe)


def main(worker: str, descriptor: int) -> int:
    """Wait for the end of the agent, or its word that it ends; then kill what it left."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    asked = os.read(descriptor, 1)
    return len(kill_strays(worker, {os.getppid()} if asked else ()))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], int(sys.argv[2])))
