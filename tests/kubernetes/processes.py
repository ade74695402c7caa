"""Processes that cannot outlive the tests, however these end."""

from __future__ import annotations

import os
import shutil
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

# The kernel ties "the parent died" to the thread that started a child. A thread of a Pod ends long
# before its containers may, so one thread starts them all; it lives as long as this process.
_starter = ThreadPoolExecutor(max_workers=1, thread_name_prefix="starter")
_lock = threading.Lock()


def find_tool(name: str) -> str:
    """Absolute path of a program of the base system."""
    found = shutil.which(name, path="/usr/bin:/usr/sbin:/bin:/sbin:/usr/local/bin")
    if found is None:
        raise RuntimeError(f"{name} is not installed (Debian: util-linux, coreutils)")
    return found


def spawn(command: list[str], **options: Any) -> subprocess.Popen[bytes]:
    """Start a program in a session of its own; the kernel kills it when this process ends.

    Only the program itself is killed then, not what it started.
    """
    # We may die between the fork and the request for the signal: the child looks for its parent.
    look = [find_tool("sh"), "-c", 'test "$PPID" -eq "$0" && exec "$@"', str(os.getpid())]
    guarded = [find_tool("setpriv"), "--pdeathsig", "KILL", *look, *command]

    def start() -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            guarded, stdin=subprocess.DEVNULL, start_new_session=True, **options
        )

    with _lock:
        return _starter.submit(start).result()


def end(process: subprocess.Popen[bytes], seconds: float = 10.0) -> None:
    """SIGTERM, then SIGKILL after so many seconds; returns when the program has ended."""
    process.terminate()
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
