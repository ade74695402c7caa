"""Stacks of ranks, and process states from /proc.

py-spy reads the stacks. Where it may not (a container without SYS_PTRACE), the rank writes them by
itself (:mod:`.stack_dump`).
"""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import json
import os
import re
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jobs.agent import fork_server, process_facts, stack_dump
from jobs.clock import Clock
from jobs.events import RankStack

_PATIENCE_SECONDS = 10.0
"""For one dump. It takes about 0.1 s; a rank on its way through a page-in storm may take longer."""
LOOK_SECONDS = 1.0
"""Between the two looks: what has not moved in a second, at a process that was silent for several,
stands still."""
_MOST_NAMED = 8
"""Helpers and dead children that are named; more would say nothing new."""
_LINE_CHARACTERS = 200
PY_SPY = "PY_SPY"
"""Variable of the agent's environment: the path of py-spy; empty: use none."""
_REFUSED = re.compile(r"[Pp]ermission|not permitted|not installed|EPERM")
"""Errors of py-spy that the next try would have, too."""
_TRIES = 3
"""Attempts: a stack that changes while it is read without a pause may be unreadable."""


async def capture(
    pids: Mapping[int, int], clock: Clock, directories: Mapping[int, Path] | None = None
) -> tuple[RankStack, ...]:
    """Look at ranks twice, `LOOK_SECONDS` apart, and say what each was doing.

    Never raises for one rank's sake: its `error` says what went wrong.

    Args:
        pids: The process of each rank: the one that runs its Python code, where that is known.
        clock: For the time between the looks.
        directories: The rank directory of each rank, where stacks are written on a signal.
    """
    ranks = sorted(pids)
    places = directories or {}

    async def look(rank: int) -> _Look:
        return await _look(pids[rank], places.get(rank), clock)

    first = await asyncio.gather(*map(look, ranks))
    if not first:
        return ()
    await clock.sleep(LOOK_SECONDS)
    second = await asyncio.gather(*map(look, ranks))
    return tuple(
        _stack(rank, pids[rank], *looks) for rank, *looks in zip(ranks, first, second, strict=True)
    )


@dataclasses.dataclass(frozen=True, slots=True)
class _Look:
    """One look at a rank."""

    tasks: dict[int, process_facts.Task]
    threads: list[dict[str, Any]]
    """As py-spy prints them; empty when it could not read the process."""
    error: str
    python: tuple[int, ...] = ()
    """Threads that run Python code, or may run some, by the kernel's ids."""


async def _look(pid: int, directory: Path | None, clock: Clock) -> _Look:
    tasks = await asyncio.to_thread(process_facts.snapshot, pid)
    error = ""
    for _ in range(_TRIES):
        if process_state(pid) in {"X", "Z"}:
            return _Look(tasks, [], f"process {pid} has ended")
        output, error = await _dump(pid)
        if not error:
            try:
                threads = list(json.loads(output))
                ids = [thread.get("os_thread_id") for thread in threads]
                return _Look(tasks, threads, "", tuple(each for each in ids if each is not None))
            except (ValueError, TypeError, AttributeError) as reason:
                error = f"unexpected output of py-spy: {reason!r}"
        elif _REFUSED.search(error):
            break
    if directory is None:
        return _Look(tasks, [], error)
    threads, why = await stack_dump.take(pid, directory, clock)
    if why:
        return _Look(tasks, [], f"{error}; {why}")
    # It has written one stack only, so any of its threads may run Python code.
    own = tuple(thread for thread, task in tasks.items() if task.process == pid)
    return _Look(tasks, threads, "", own)


def _stack(rank: int, pid: int, before: _Look, after: _Look) -> RankStack:
    facts = process_facts.compare(pid, before.tasks, after.tasks, (*before.python, *after.python))
    try:
        first, later = frames(before.threads), frames(after.threads)
        line = source_line(before.threads or after.threads)
        error = before.error or after.error
    except (KeyError, TypeError) as reason:
        first, later, line, error = (), (), "", f"unexpected output of py-spy: {reason!r}"
    return RankStack(
        rank=rank,
        process_state=process_state(pid),
        frames=first or later,
        frames_later=later if later != first else (),
        line=line,
        wait_channel=facts.channel,
        deadline=facts.deadline,
        traced=facts.traced,
        on_gpu=facts.on_gpu,
        cpu_seconds=round(facts.cpu_seconds, 3),
        helpers=facts.helpers[:_MOST_NAMED],
        dead_children=facts.dead_children[:_MOST_NAMED],
        error="" if first or later else error,
    )


async def _dump(pid: int) -> tuple[bytes, str]:
    """Output and error of one py-spy call. It only reads, so the rank is not paused."""
    found = os.environ.get(PY_SPY)
    if found is None:
        beside = str(Path(sys.executable).parent)
        found = shutil.which("py-spy", path=beside) or shutil.which("py-spy")
    if not found:
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
        # A backtrace of py-spy itself follows the first lines.
        told = complaint.decode(errors="replace").partition("Stack backtrace")[0]
        return b"", f"py-spy: {' '.join(told.split())[:500]}"
    return output, ""


_TIMER = "/babysit/watch.py"


def frames(threads: list[dict[str, Any]]) -> tuple[str, ...]:
    """Frames of the main thread, innermost first, without those of the fork server.

    Nor those in which `run.watch` times a wait: the verdict goes by the call that waits.
    """
    return tuple(
        f"{frame['name']} ({frame.get('short_filename') or frame['filename']}:{frame['line']})"
        for frame in _shown(threads)
    )


def _shown(threads: list[dict[str, Any]]) -> list[dict[str, Any]]:
    if not threads:
        return []
    main = next((t for t in threads if t.get("thread_name") == "MainThread"), threads[0])
    own = [frame for frame in main["frames"] if frame["filename"] != fork_server.__file__]
    return list(itertools.dropwhile(lambda frame: frame["filename"].endswith(_TIMER), own))


def source_line(threads: list[dict[str, Any]]) -> str:
    """The source of the main thread's innermost frame; empty where it cannot be read."""
    innermost = next(iter(_shown(threads)), None)
    if innermost is None:
        return ""
    try:
        with Path(innermost["filename"]).open(errors="replace") as file:
            lines = itertools.islice(file, innermost["line"] - 1, innermost["line"])
            return next(lines, "").strip()[:_LINE_CHARACTERS]
    except (OSError, ValueError, TypeError):  # code of a string, or of a file that is gone
        return ""


def process_state(pid: int) -> str:
    """The state letter of /proc/<pid>/stat; X: the process is gone."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return "X"
    return text.rpartition(")")[2].split()[0]  # the name in parentheses may contain anything
