"""Stacks of ranks by py-spy, and process states from /proc."""

from __future__ import annotations

import asyncio
import json
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jobs.agent import fork_server
from jobs.events import RankStack

_PATIENCE_SECONDS = 10.0
"""Limit for one dump, which takes about 0.1 s; a rank that pages in may need longer."""
_TRIES = 3
"""Attempts: a stack that changes while it is read without a pause may be unreadable."""


async def capture(pids: Mapping[int, int]) -> tuple[RankStack, ...]:
    """Stacks of ranks, by rank. A failure for one rank does not raise; see its `error`.

    Args:
        pids: Pid of each rank.
    """
    stacks = await asyncio.gather(*(_capture(rank, pid) for rank, pid in sorted(pids.items())))
    return tuple(stacks)


async def _capture(rank: int, pid: int) -> RankStack:
    error = ""
    for _ in range(_TRIES):
        state = process_state(pid)
        if state in {"X", "Z"}:
            return RankStack(rank=rank, process_state=state, error=f"process {pid} has ended")
        output, error = await _dump(pid)
        if not error:
            try:
                return RankStack(rank=rank, process_state=state, frames=frames(json.loads(output)))
            except (ValueError, KeyError, TypeError) as reason:
                error = f"unexpected output of py-spy: {reason!r}"
    return RankStack(rank=rank, process_state=process_state(pid), error=error)


async def _dump(pid: int) -> tuple[bytes, str]:
    """Output and error of one py-spy call. It only reads, so the rank is not paused."""
    found = shutil.which("py-spy", path=str(Path(sys.executable).parent)) or shutil.which("py-spy")
    if found is None:
        return b"", "py-spy is not installed in the agent's environment"
    pipe = asyncio.subprocess.PIPE
    command = ("dump", "--nonblocking", "--json", "--pid", str(pid))
    process = await asyncio.create_subprocess_exec(found, *command, stdout=pipe, stderr=pipe)
    try:
        async with asyncio.timeout(_PATIENCE_SECONDS):
            output, complaint = await process.communicate()
    except TimeoutError:
        return b"", f"py-spy took longer than {_PATIENCE_SECONDS:.0f} s"
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode:
        return b"", f"py-spy: {complaint.decode(errors='replace').strip()[-500:]}"
    return output, ""


def frames(threads: list[dict[str, Any]]) -> tuple[str, ...]:
    """Frames of the main thread, innermost first, without those of the fork server."""
    if not threads:
        return ()
    main = next((t for t in threads if t.get("thread_name") == "MainThread"), threads[0])
    shown = [frame for frame in main["frames"] if frame["filename"] != fork_server.__file__]
    return tuple(
        f"{frame['name']} ({frame.get('short_filename') or frame['filename']}:{frame['line']})"
        for frame in shown
    )


def process_state(pid: int) -> str:
    """The state letter of /proc/<pid>/stat; X: the process is gone."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return "X"
    return text.rpartition(")")[2].split()[0]  # the name in parentheses may contain anything
