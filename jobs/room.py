"""Room that a run needs for its checkpoints, held against what this machine has.

A run whose disk fits `keep` checkpoints and not one more stops saving: the next one is written
before the oldest is deleted. The size of a checkpoint is that of the newest one in the directory;
before the first save it is not known.

Limits: this is this machine's room at this moment. Other runs write too, and quotas are not asked.
"""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from babysit.wire import MANIFEST_FILE, SavePolicy
from jobs.spec import RunSpec

LOW_BYTES = 2**30
"""Free bytes below which a place is said to be short whatever the run needs."""
_TMPFS = Path("/dev/shm")  # noqa: S108 (the tmpfs itself, not a file in it)
_MEMORY = Path("/proc/meminfo")


@dataclass(frozen=True, slots=True)
class Need:
    """One place, what is free there, and what the run needs of it."""

    field: str
    """Dotted name of the field of the spec that asks for it."""
    place: str
    free: int
    """Bytes."""
    needed: int | None
    """Bytes; None: not known."""
    why: str
    """How `needed` comes about."""

    @property
    def ok(self) -> bool:
        """True if there is room, as far as that is known."""
        return self.free >= (LOW_BYTES if self.needed is None else self.needed)

    def __str__(self) -> str:
        free = f"{self.place} has {in_words(self.free)} free"
        if self.needed is None:
            return f"{free}; {self.why}"
        return f"{free}, and {self.why} need {in_words(self.needed)}"


def needs(spec: RunSpec) -> list[Need]:
    """The room that a run needs on this machine. Reads the checkpoint directory. Blocks."""
    policy = spec.checkpoint
    if policy.directory is None:
        return []
    directory = Path(spec.workdir, policy.directory)
    size = newest_bytes(directory)
    copies = policy.keep + 1
    found = [
        Need(
            "checkpoint.directory",
            str(directory),
            _free(directory),
            None if size is None else copies * size,
            "the size of a checkpoint is not known before the first one is saved"
            if size is None
            else f"keep + 1 = {copies} checkpoints of {in_words(size)}",
        )
    ]
    return found + ([] if size is None or not policy.memory_every_steps else _in_memory(size))


def _in_memory(size: int) -> list[Need]:
    """Room for the copies in memory of all ranks, as if they all ran on this machine."""
    field = "checkpoint.memory_every_steps"
    copies = SavePolicy().memory_keep + 1
    each = f"copies of {in_words(size)} in memory"
    found = [Need(field, str(_TMPFS), _free(_TMPFS), copies * size, f"{copies} {each}")]
    available = available_memory()
    if available is not None:
        why = f"{copies} {each} and one that is being copied"
        found.append(Need(field, "host memory", available, (copies + 1) * size, why))
    return found


def newest_bytes(directory: Path) -> int | None:
    """Bytes of the newest checkpoint with a whole shard in a directory; None: there is none."""
    whole = sorted(directory.glob(f"step-*/rank-*/{MANIFEST_FILE}"), reverse=True)
    if not whole:
        return None
    files = whole[0].parent.parent.rglob("*")
    return sum(file.stat().st_size for file in files if file.is_file())


def available_memory() -> int | None:
    """Bytes of memory that programs can still have (`MemAvailable`); None: not known."""
    try:
        found = re.search(r"^MemAvailable:\s+(\d+) kB", _MEMORY.read_text(), re.MULTILINE)
    except OSError:
        return None
    return int(found[1]) * 1024 if found else None


def _free(path: Path) -> int:
    """Free bytes where a directory is, or would be made."""
    there = next(each for each in (path, *path.parents) if each.exists())
    return shutil.disk_usage(there).free


def in_words(count: float) -> str:
    """`512 B`, `1.5 KiB`, `2.0 GiB`."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"
