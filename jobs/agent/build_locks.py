"""Locks of builds of torch's extensions that a killed rank has left behind.

`torch.utils.cpp_extension` marks a build by a file named `lock` (`file_baton.py`), which its writer
creates, holds open, and deletes at its end. Killed meanwhile, it leaves the file, and every later
build of the extension waits forever. DeepSpeed and others build at their first step.

A lock is deleted only if its writer is dead for certain: this agent saw the process that had the
file open, that process is gone, the file is the same, and no process here has it open. Of any other
lock only a sentence is said, since another node may be building.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import structlog

from jobs.agent.process_facts import children_of

NAME = "lock"
_DIRECTORY = "torch_extensions"
_ROOT = "TORCH_EXTENSIONS_DIR"
_WAITS_IN = "file_baton.py"
_MOST_NAMED = 2


class _Holder(NamedTuple):
    file: tuple[int, int, int]
    """Device, inode and time of the lock: the next file may get the inode of a deleted one."""
    pid: int
    started: str
    """As the kernel writes it: tells processes of one number apart."""


class BuildLocks:
    """The locks that the ranks of one attempt were seen to hold. All of it blocks."""

    def __init__(self) -> None:
        self._held: dict[Path, _Holder] = {}
        self._log = structlog.get_logger(part="build_locks")

    def note(self, *pids: int) -> None:
        """Remember the locks that processes and their descendants have open."""
        for process in (*pids, *children_of(*pids)):
            for entry, path in _open_locks(process):
                if _DIRECTORY in path.parts or _is_below(path, _variable(process, _ROOT)):
                    # By its descriptor: another node or container may have its own at this path.
                    file = _identity(entry)
                    if file is not None:
                        self._held[path] = _Holder(file, process, _started(process))

    def clear(self) -> list[Path]:
        """Delete the locks whose writers are dead for certain; returns them."""
        gone = []
        for path, holder in list(self._held.items()):
            if holder.started and _started(holder.pid) == holder.started:
                continue
            del self._held[path]
            if _identity(path) != holder.file or holder_of(path) is not None:
                continue
            try:
                path.unlink()
            except OSError as error:
                self._log.warning("lock not deleted", path=str(path), error=str(error))
                continue
            self._log.info("lock of a dead build deleted", path=str(path), pid=holder.pid)
            gone.append(path)
        return gone


def waited_for(pid: int, frames: Sequence[str]) -> str:
    """The build lock that a process waits for, and what ends the wait; empty: it waits for none.

    Args:
        pid: The process.
        frames: Of its main thread, innermost first.
    """
    if not any(_WAITS_IN in frame for frame in frames[:3]):
        return ""
    locks = list(_locks_of(pid))
    left = [path for path in locks if holder_of(path) is None]
    if left:
        command = f"rm {shlex.join(map(str, left[:_MOST_NAMED]))}"
        return (
            "a build lock of torch extensions that no process on this node holds: unless another"
            f" node builds, end the wait with `{command}`"
        )
    if locks:
        holder = holder_of(locks[0])
        return f"a build lock of torch extensions, {locks[0]}, held by process {holder}"
    return "a build lock of torch extensions"


def holder_of(path: Path) -> int | None:
    """A process that has a lock open; None: no process that can be seen has."""
    with os.scandir("/proc") as entries:
        processes = [int(entry.name) for entry in entries if entry.name.isdigit()]
    for process in processes:
        if any(found == path for _, found in _open_locks(process)):
            return process
    return None


def _locks_of(pid: int) -> Iterator[Path]:
    """Locks where a process builds by default."""
    given = _variable(pid, _ROOT)
    home = Path(_variable(pid, "HOME") or "~").expanduser()
    cache = Path(_variable(pid, "XDG_CACHE_HOME") or home / ".cache")
    root = Path(given) if given else cache / _DIRECTORY
    for depth in ("*", "*/*", "*/*/*"):
        yield from sorted(root.glob(f"{depth}/{NAME}"))


def _open_locks(pid: int) -> Iterator[tuple[Path, Path]]:
    """Files called `lock` that a process has open: their entries in /proc, and their paths.

    A process may have thousands of others, so a path is made of no other.
    """
    try:
        with os.scandir(f"/proc/{pid}/fd") as found:
            entries = [entry.path for entry in found]
    except OSError:
        return
    for entry in entries:
        try:
            target = os.readlink(entry)  # noqa: PTH115 (see above)
        except OSError:
            continue
        if target.endswith(f"/{NAME}"):
            yield Path(entry), Path(target)


def _variable(pid: int, name: str) -> str:
    """A variable that a process was started with; empty: it had none, or it cannot be read."""
    try:
        entries = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return ""
    begin = f"{name}=".encode()
    return next((os.fsdecode(e[len(begin) :]) for e in entries if e.startswith(begin)), "")


def _started(pid: int) -> str:
    """The start of a process in ticks of the kernel; empty: it is dead."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] in {"Z", "X"} else fields[19]


def _is_below(path: Path, root: str) -> bool:
    return bool(root) and Path(root) in path.parents


def _identity(path: Path) -> tuple[int, int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_mtime_ns
