"""Decides which process is the rank: the one that holds the lock in the rank directory.

Every child of a rank inherits `BABYSIT_RANK_DIR`: loader workers, an evaluation script, ranks of a
nested launcher. Two processes that share a ring and a shard would corrupt both. So the first
process takes a POSIX record lock (fcntl(2)), which children do not inherit and which the kernel
releases when the process ends. Other processes can ask for its holder.
"""

from __future__ import annotations

import fcntl
import os
import struct
from collections.abc import Mapping
from pathlib import Path

from babysit.errors import PlanError
from babysit.wire import OWNER_FILE, Plan

_FLOCK = struct.Struct("hhqqi4x")  # l_type, l_whence, l_start, l_len, l_pid on 64-bit Linux
_held: dict[Path, int] = {}
"""Rank directories that this process holds, with the open descriptor of each lock.

The kernel releases a POSIX lock when *any* descriptor of its file is closed in the process, so the
file is opened once and never closed.
"""

_LAUNCHERS = (
    ("TORCHELASTIC_RUN_ID", "torchrun"),
    ("ACCELERATE_MIXED_PRECISION", "accelerate launch"),
    ("OMPI_COMM_WORLD_RANK", "mpirun"),
    ("PMI_RANK", "mpiexec"),
)
"""A variable that only this launcher sets, and its name."""


def take(directory: Path) -> int | None:
    """Make this process the rank; returns None on success, otherwise the pid of the rank.

    Raises:
        OSError: The directory is gone or not writable.
    """
    if directory in _held:
        return None
    descriptor = os.open(directory / OWNER_FILE, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        owner = _owner(descriptor)
        os.close(descriptor)
        return owner
    _held[directory] = descriptor
    return None


def forget_in_child() -> None:
    """Drop the parent's locks in a forked child, which does not hold them."""
    for descriptor in _held.values():
        os.close(descriptor)
    _held.clear()


os.register_at_fork(after_in_child=forget_in_child)


def _owner(descriptor: int) -> int:
    asked = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
    answer = fcntl.fcntl(descriptor, fcntl.F_GETLK, asked)
    return int(_FLOCK.unpack(answer)[4])


def is_ancestor(pid: int) -> bool:
    """True if this process descends from `pid`."""
    current = os.getpid()
    while current > 1:
        try:
            stat = Path(f"/proc/{current}/stat").read_text()
        except OSError:
            return False
        current = int(stat.rpartition(")")[2].split()[1])
        if current == pid:
            return True
    return False


def nested_launcher(plan: Plan, environment: Mapping[str, str]) -> str | None:
    """The launcher that runs its own ranks inside this rank; None: there is none.

    A launcher sets `RANK` and `WORLD_SIZE`, which then differ from those of the plan.
    """
    given = (environment.get("RANK"), environment.get("WORLD_SIZE"))
    planned = (str(plan.rank), str(plan.world_size))
    if all(found in {None, due} for due, found in zip(planned, given, strict=True)):
        return None
    names = (
        name
        for variable, name in _LAUNCHERS
        if environment.get(variable) not in {None, plan.run}  # babysit's own word is the run's id
    )
    return next(names, "a launcher in the command")


def refused_as_nested(plan: Plan, launcher: str, environment: Mapping[str, str]) -> PlanError:
    """The error for a rank of a launcher that runs inside this rank."""
    world = environment.get("LOCAL_WORLD_SIZE") or environment.get("WORLD_SIZE", "N")
    return PlanError(
        f"{launcher} started rank {environment.get('RANK', '?')} of"
        f" {environment.get('WORLD_SIZE', '?')} inside rank {plan.rank} of {plan.world_size} of"
        " babysit: they would share one shard and one ring. Let babysit start the ranks: set"
        f" `processes_per_node: {world}` under `resources`, and make the command the script itself,"
        " such as `command: [python, train.py]`"
    )


def refused_as_second(plan: Plan, owner: int) -> PlanError:
    """The error for a second process that tries to be the rank."""
    return PlanError(
        f"process {owner} is rank {plan.rank} of this run already, so process {os.getpid()}"
        " cannot be it too. Call babysit.init() in one process for each rank; to start several on"
        " a node, set `processes_per_node` under `resources` instead of spawning them"
    )
