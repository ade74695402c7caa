"""Threads and children of a rank as the kernel shows them: states, CPU time, where they wait.

Two snapshots a second apart tell a process that moves from one that stands still. They only read
/proc, so the rank is neither paused nor traced. Where /proc says less (another user's process, a
kernel without wait channels), less is known, and nothing is concluded from it.
"""

from __future__ import annotations

import dataclasses
import os
import platform
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from babysit import flight_record

_TICKS = os.sysconf("SC_CLK_TCK")
_MOVES_CPU_SECONDS = 0.02
"""CPU time in a second that is work: two ticks of the kernel's clock. Background threads that only
look at a clock (a watchdog, a logger) need less."""
_MOVES_SWITCHES = 25
"""Voluntary context switches in a second that are work, such as packets of an upload. A thread that
polls ten times a second stays below."""
_GPU_FILES = ("/dev/nvidia", "/dev/kfd", "/dev/dri", "/dev/accel")
_IDLE_CHANNELS = ("futex", "pipe_read", "anon_pipe_read", "wait_for_partner", "sigwait")
"""Beginnings of wait channels of threads that only another thread or child can wake.

An event loop is not among them, as a slow server's answer may wake it: fsspec uploads in one."""
_NATIVE_IDLE_CHANNELS = (
    *_IDLE_CHANNELS,
    "ep_poll",
    "do_epoll",
    "poll",
    "do_poll",
    "do_sys_poll",
    "hrtimer",
)
"""Idle channels of threads without Python code: loops of gloo, of NCCL, of watchdogs."""

_SERVICE = re.compile(
    rf"{flight_record.THREAD}|gloo_|pt_gloo|pt_nccl|pt_tcpstore|nccl|cuda|ucx|ofi_", re.IGNORECASE
)
"""Beginnings of the names of threads of collective libraries and drivers (gloo, torch, NCCL, CUDA,
UCX, libfabric), and of our own that waits for the agent. They poll or spin for as long as the
process lives: gloo's loop wakes a hundred times a second. Nothing that a main thread waits for
outside a collective comes from them."""
_FUTEX = {"x86_64": "202", "aarch64": "98"}
"""Number of the system call futex(2)."""


@dataclasses.dataclass(frozen=True, slots=True)
class Task:
    """One thread, at one moment."""

    process: int
    name: str
    state: str
    """Letter of proc(5)."""
    cpu_seconds: float
    switches: int
    """Voluntary context switches so far."""
    channel: str
    """Kernel function the thread waits in; empty when it runs, or the kernel does not say."""


@dataclasses.dataclass(frozen=True, slots=True)
class Facts:
    """A rank's process between two snapshots."""

    state: str
    """Of the main thread."""
    channel: str
    """Of the main thread."""
    traced: bool
    """A debugger is attached."""
    on_gpu: bool
    """A device of an accelerator is open."""
    cpu_seconds: float
    """CPU time of the main thread between the snapshots."""
    deadline: bool
    """The main thread may wait for a lock with a time-out, so its wait may end by itself."""
    helpers: tuple[str, ...]
    """Other threads and children that move, or wait for something outside that may come."""
    dead_children: tuple[str, ...]
    """Children that are stopped, or have ended and are not reaped."""


def children_of(*roots: int) -> list[int]:
    """Descendants of processes, at this moment."""
    parents: dict[int, list[int]] = {}
    for entry in os.scandir("/proc"):
        if entry.name.isdigit() and (fields := _stat(Path(entry.path))):
            parents.setdefault(int(fields[1]), []).append(int(entry.name))
    found, left = [], [*roots]
    while left:
        below = parents.get(left.pop(), [])
        found += below
        left += below
    return found


def snapshot(pid: int) -> dict[int, Task]:
    """The threads of a process and of all its descendants, by thread id."""
    tasks: dict[int, Task] = {}
    for process in (pid, *children_of(pid)):
        for thread in _threads(process):
            if (task := _task(process, thread)) is not None:
                tasks[thread] = task
    return tasks


def compare(
    pid: int, before: Mapping[int, Task], after: Mapping[int, Task], python_threads: Iterable[int]
) -> Facts:
    """Compare two snapshots of a process and its descendants.

    Args:
        pid: The process.
        before: The first snapshot.
        after: The second one.
        python_threads: Threads of the process that run Python code: only these wait for the
            outside on the script's behalf.
    """
    main = after.get(pid)
    python = set(python_threads)
    helpers, dead = [], []
    for thread, task in after.items():
        if thread == pid or (task.process == pid and _SERVICE.match(task.name)):
            continue
        earlier = before.get(thread)
        if task.state in "TtZX":
            if task.process != pid:
                dead.append(f"child {task.process} ({task.name})")
        elif earlier is None or _moved(earlier, task):
            helpers.append(f"{_what(pid, thread, task)} moves")
        elif not _idle(task, python=task.process != pid or thread in python):
            helpers.append(f"{_what(pid, thread, task)} waits in {task.channel or task.state}")
    used = main.cpu_seconds - before[pid].cpu_seconds if main and pid in before else 0.0
    return Facts(
        state=main.state if main else "X",
        channel=main.channel if main else "",
        traced=_traced(pid),
        on_gpu=_on_gpu(pid),
        cpu_seconds=used,
        deadline=_has_deadline(pid),
        helpers=tuple(helpers),
        dead_children=tuple(sorted(set(dead))),
    )


def _what(pid: int, thread: int, task: Task) -> str:
    kind = "thread" if task.process == pid else "child"
    return f"{kind} {thread if task.process == pid else task.process} ({task.name})"


def _has_deadline(pid: int) -> bool:
    """False only where the kernel shows that the main thread waits for a lock without a limit.

    The fourth argument of futex(2) is the address of the time-out, or null
    (proc_pid_syscall(5)).
    """
    fields = _text(Path(f"/proc/{pid}/syscall")).split()
    if len(fields) < 5 or fields[0] != _FUTEX.get(platform.machine()):
        return True
    return int(fields[4], 16) != 0


def _moved(before: Task, after: Task) -> bool:
    return (
        after.cpu_seconds - before.cpu_seconds >= _MOVES_CPU_SECONDS
        or after.switches - before.switches >= _MOVES_SWITCHES
    )


def _idle(task: Task, *, python: bool) -> bool:
    """True if only another thread or child can wake a thread that did not move."""
    if task.state == "D":
        return False
    if not task.channel or task.channel == "0":
        return not python  # running, or not told: in doubt it may go on by itself
    return task.channel.startswith(_IDLE_CHANNELS if python else _NATIVE_IDLE_CHANNELS)


def _threads(process: int) -> list[int]:
    try:
        return [int(entry.name) for entry in Path(f"/proc/{process}/task").iterdir()]
    except OSError:
        return []


def _task(process: int, thread: int) -> Task | None:
    path = Path(f"/proc/{process}/task/{thread}")
    fields = _stat(path)
    if not fields:
        return None
    return Task(
        process=process,
        name=_text(path / "comm").strip(),
        state=fields[0],
        cpu_seconds=(int(fields[11]) + int(fields[12])) / _TICKS,
        switches=_number(_text(path / "status"), "voluntary_ctxt_switches"),
        channel=_text(path / "wchan"),
    )


def _stat(path: Path) -> list[str]:
    """Fields of proc_pid_stat(5) from the state on; the name before may hold anything."""
    return _text(path / "stat").rpartition(")")[2].split()


def _traced(pid: int) -> bool:
    return _number(_text(Path(f"/proc/{pid}/status")), "TracerPid") > 0


def _number(status: str, name: str) -> int:
    line = next((line for line in status.splitlines() if line.startswith(f"{name}:")), "")
    return int(line.partition(":")[2] or 0)


def _on_gpu(pid: int) -> bool:
    try:
        files = list(Path(f"/proc/{pid}/fd").iterdir())
    except OSError:
        return False
    for file in files:
        try:
            target = str(file.readlink())
        except OSError:
            continue
        if target.startswith(_GPU_FILES):
            return True
    return False


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""
