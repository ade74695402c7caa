"""One check in a process of its own: `python -m jobs.checks.program NAME TASK`.

TASK is the JSON of a :class:`jobs.checks.measurement.Task`. The last line of stdout is a JSON list
of measurements. Standard library only, so that it starts in a few hundredths of a second.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping

from jobs.checks import gpu, link, processor, storage
from jobs.checks.measurement import Measurement, Task, printed, task_of

PROGRAMS: Mapping[str, Callable[[Task], list[Measurement]]] = {
    "gpu-count": gpu.present,
    "matmul": processor.matmul,
    "memory": processor.memory,
    "disk": storage.disk,
    "tmpfs": storage.tmpfs,
    "gpu-matmul": gpu.matmul,
    "gpu-memory": gpu.memory,
    "pcie": gpu.pcie,
    "nvlink": gpu.nvlink,
    "link": link.link,
}
"""Programs by name, in the order in which they run; one may measure several things."""
_NICE = 10
"""Checks give way to whatever else runs on the node."""


def main(arguments: list[str]) -> int:
    """Run one program and print what it measured. Exit code: 0, or that of a crash."""
    name, task = arguments
    os.nice(_NICE)
    sys.stdout.write(f"{printed(PROGRAMS[name](task_of(task)))}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
