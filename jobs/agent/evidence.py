"""Evidence about a dead rank from its host: the end of its log, and OOM kills of the kernel."""

from __future__ import annotations

import re
from pathlib import Path

_TAIL_LINES = 1000
"""Eight ranks below one launcher print some 60 lines of traceback each."""
_CGROUPS = Path("/sys/fs/cgroup")


def log_tail(data: bytes) -> str:
    """The last 1000 lines of the end of a log.

    Lines end at newlines: the states of a progress bar, which carriage returns part, are one line.
    """
    lines = data.decode(errors="replace").removesuffix("\n").split("\n")
    return "\n".join(lines[-_TAIL_LINES:])


def oom_kills() -> int:
    """Number of OOM kills in this control group so far; 0 if it cannot be read.

    If the count grew while a rank died of SIGKILL, the kernel sent the signal (cgroup v2
    `memory.events`, v1 `memory.oom_control`).
    """
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return 0
    return max((_count(file) for line in lines for file in _counters(line)), default=0)


def _counters(line: str) -> list[Path]:
    """Files that may hold the count for a line of /proc/self/cgroup.

    In a container, the own group appears as the root, hence the second path.
    """
    _, controllers, group = line.split(":", 2)
    if controllers == "":
        root, name = _CGROUPS, "memory.events"
    elif "memory" in controllers.split(","):
        root, name = _CGROUPS / "memory", "memory.oom_control"
    else:
        return []
    return [root / group.lstrip("/") / name, root / name]


def _count(file: Path) -> int:
    try:
        found = re.search(r"^oom_kill (\d+)", file.read_text(), re.MULTILINE)
    except OSError:
        return 0
    return int(found[1]) if found else 0
