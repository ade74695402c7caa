"""Files that processes have open for writing, as the kernel shows them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

_FLAGS = "flags:"
_DELETED = " (deleted)"


def written_by(pid: int) -> Iterator[Path]:
    """Regular files that a process writes to, by the names that they have now.

    A process that is gone, or another user's, has none here.
    """
    try:
        entries = list(Path(f"/proc/{pid}/fd").iterdir())
    except OSError:
        return
    for entry in entries:
        try:
            target = str(entry.readlink())
        except OSError:
            continue
        is_file = target.startswith("/") and not target.startswith(("/dev/", "/proc/", "/sys/"))
        if is_file and not target.endswith(_DELETED) and _is_for_writing(pid, entry.name):
            yield Path(target)


def _is_for_writing(pid: int, descriptor: str) -> bool:
    try:
        lines = Path(f"/proc/{pid}/fdinfo/{descriptor}").read_text().splitlines()
    except OSError:
        return False
    flags = next((line for line in lines if line.startswith(_FLAGS)), f"{_FLAGS} 0")
    return int(flags.removeprefix(_FLAGS), 8) & os.O_ACCMODE != os.O_RDONLY
