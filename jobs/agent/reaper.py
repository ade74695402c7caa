"""The last resort against leaked processes: kills everything that belongs to a worker.

All processes of a worker have `BABYSIT_WORKER=<id>` in their environment, even in sessions of their
own. A process that sheds this mark is still in the worker's control group, where there is one
(:mod:`jobs.agent.cgroup`), and a descendant of the fork server, which adopts orphans, and so of the
agent. As a program (`python -I -S reaper.py WORKER FD AGENT CGROUP`) the reaper looks at the
agent's descendants every few seconds, waits until the agent ends, which closes the pipe, and then
kills the group, those it has seen and all with the mark.

Not guaranteed: without a control group, a process that has shed mark and session escapes if agent
and fork server are killed at once within seconds of its start.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING

if __name__ != "__main__" or TYPE_CHECKING:
    from jobs.agent import cgroup
else:
    import importlib.util

    _spec = importlib.util.spec_from_file_location("cgroup", Path(__file__).with_name("cgroup.py"))
    cgroup = importlib.util.module_from_spec(_spec)
    _spec.loader.exec_module(cgroup)

ENV_WORKER = "BABYSIT_WORKER"
_LOOK_SECONDS = 5.0
"""Least time between looks at the agent's descendants."""
_LOOK_SHARE = 0.005
"""Most of one core that the looks take, on hosts with thousands of processes."""
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


def end_worker(worker: str) -> list[int]:
    """Kill all processes of a worker whose agent has ended, beside its reaper, which then ends.

    Returns:
        Pids that did not die; empty: no process of the worker is left.
    """
    marked = strays(worker)
    reapers = {pid for pid in marked if _is_reaper(pid)}
    # Before the first of them is killed: what has shed the mark is found below those that have it.
    below = descendants(marked) if marked else {}
    shed = {pid: start for pid, start in below.items() if pid not in marked}
    group = cgroup.find(worker)
    left = cgroup.end(group)
    cgroup.remove(group)
    mark = f"{ENV_WORKER}={worker}".encode()
    others = [pid for pid in marked if pid not in reapers]
    _kill_and_wait(others, mark)
    left += [pid for pid in others if _has_mark(pid, mark)] + kill_family(shed, reapers)
    for pid in reapers:
        with contextlib.suppress(ProcessLookupError):
            descriptor = os.pidfd_open(pid)
            try:
                left += [] if _ended(descriptor) else [pid]
            finally:
                os.close(descriptor)
    return left


def _is_reaper(pid: int) -> bool:
    try:
        arguments = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
    return __file__.encode() in arguments  # empty for a process that is just ending


def _ended(descriptor: int) -> bool:
    """Wait for the end of a process, not for ever."""
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(_PATIENCE_MILLISECONDS))


def descendants(roots: Collection[int]) -> dict[int, str]:
    """Processes below some others at this moment: pid → start time, by which it is known again."""
    parents: dict[int, list[int]] = {}
    starts: dict[int, str] = {}
    for entry in os.scandir("/proc"):
        if entry.name.isdigit() and (fields := _stat(int(entry.name))):
            parents.setdefault(int(fields[1]), []).append(int(entry.name))
            starts[int(entry.name)] = fields[19]
    found: dict[int, str] = {}
    left = list(roots)
    while left:
        for pid in parents.get(left.pop(), []):
            if pid not in found:
                found[pid] = starts[pid]
                left.append(pid)
    return found


def _stat(pid: int) -> list[str]:
    """Fields of proc_pid_stat(5) from the state on; empty: no such process, or a zombie."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except OSError:
        return []
    fields = text.rpartition(")")[2].split()
    return [] if fields[0] in "ZX" else fields


def _alive(family: dict[int, str]) -> dict[int, str]:
    return {pid: start for pid, start in family.items() if _stat(pid)[19:20] == [start]}


def kill_family(family: dict[int, str], spare: Collection[int]) -> list[int]:
    """Kill processes that were seen below the agent, and those below them by now.

    Returns:
        Pids that did not die.
    """
    for _ in range(_ROUNDS):
        family = {pid: start for pid, start in _alive(family).items() if pid not in spare}
        if not family:
            break
        below = descendants(family)
        family |= {pid: start for pid, start in below.items() if pid not in spare}
        for pid, start in family.items():
            with contextlib.suppress(ProcessLookupError, PermissionError):
                descriptor = os.pidfd_open(pid)
                try:
                    if _stat(pid)[19:20] == [start]:  # so the descriptor is of that very process
                        signal.pidfd_send_signal(descriptor, signal.SIGKILL)
                        _ended(descriptor)
                finally:
                    os.close(descriptor)
    return list(family)


class Reaper:
    """The reaper process of an agent; it outlives the agent until all its processes are dead."""

    def __init__(self, worker: str) -> None:
        self._worker = worker
        self.group = cgroup.create(worker)
        """Directory of the control group for the ranks; empty: there is none."""
        self._start()

    def _start(self) -> None:
        read, self._pipe = os.pipe()  # inherited by no other process, so it closes with the agent
        command = [sys.executable, "-I", "-S", __file__]
        self._process = subprocess.Popen(  # noqa: S603 - runs this file
            [*command, self._worker, str(read), str(os.getpid()), self.group],
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

    def sweep(self, spare: Collection[int]) -> list[int]:
        """Kill the worker's processes: those in the group, those with the mark, adopted orphans.

        Args:
            spare: Processes that live on, besides this one and the reaper.

        Returns:
            Pids that did not die; empty: no other process of the worker is left.
        """
        from jobs.agent.orphans import end_children  # noqa: PLC0415 - not as a program

        spare = {*spare, self.pid}
        left = cgroup.end(self.group) or kill_strays(self._worker, spare)
        return left or end_children(spare, reap=False)

    def finish(self) -> None:
        """Kill all processes of the worker but this one now, and wait for that. Blocks."""
        try:
            os.write(self._pipe, b"\0")
        except BrokenPipeError:  # it is dead
            cgroup.end(self.group)
            kill_strays(self._worker)
            cgroup.remove(self.group)
        self._process.wait()
        os.close(self._pipe)


def main(worker: str, descriptor: int, agent: int, group: str) -> int:
    """Wait until the agent ends or requests a clean-up, then kill its processes.

    Args:
        worker: Id of the worker.
        descriptor: Read end of the pipe, which closes with the agent.
        agent: Pid of the agent. While it is this process's parent, no other process can have it.
        group: Directory of the control group; empty: there is none.
    """
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    me = os.getpid()
    family: dict[int, str] = {}
    pause = _LOOK_SECONDS
    while not select.select([descriptor], [], [], pause)[0]:
        began = time.process_time()
        if os.getppid() == agent:
            family = _alive(family) | descendants([agent])
        pause = max(_LOOK_SECONDS, (time.process_time() - began) / _LOOK_SHARE)
    # If the agent has died since its request, its pid may belong to a stranger by now.
    asked = os.read(descriptor, 1) and os.getppid() == agent
    spare = {me, agent} if asked else {me}
    # Before the first of them is killed: what has shed the mark is found below those that have it.
    family |= descendants([agent, *strays(worker)] if asked else strays(worker))
    left = [*cgroup.end(group), *kill_strays(worker, spare), *kill_family(family, spare)]
    cgroup.remove(group)
    return len(left)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]))
