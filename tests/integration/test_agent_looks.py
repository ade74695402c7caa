"""Two looks at real processes: what moves, what stands still, what may go on by itself."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from jobs.agent import stacks
from jobs.clock import SystemClock
from jobs.events import RankStack
from monitors.hang_verdict import Doing, _doing

READY = "import sys; sys.stdout.write('ready\\n'); sys.stdout.flush()\n"

SCRIPTS = {
    "sleeps": ("import time\n" + READY + "time.sleep(1000)", Doing.PAUSED),
    "computes": (READY + "while True: pass", Doing.MOVING),
    "waits for a lock": (
        "import threading\n" + READY + "lock = threading.Lock(); lock.acquire(); lock.acquire()",
        Doing.STUCK,
    ),
    "waits for a lock with a time-out": (
        "import threading\n" + READY + "threading.Event().wait(1000)",
        Doing.PAUSED,
    ),
    "waits for a pipe of its own": (
        "import os\n" + READY + "r, w = os.pipe(); os.read(r, 1)",
        Doing.STUCK,
    ),
    "waits for a thread that reads a socket": (
        "import socket, threading\n"
        "a, b = socket.socketpair()\n"
        "t = threading.Thread(target=a.recv, args=(1,)); t.start()\n" + READY + "t.join()",
        Doing.MOVING,
    ),
    "waits for a thread that waits for a lock": (
        "import threading\n"
        "lock = threading.Lock(); lock.acquire()\n"
        "t = threading.Thread(target=lock.acquire); t.start()\n" + READY + "t.join()",
        Doing.STUCK,
    ),
    "waits for a lock beside the threads of gloo": (
        "import threading, torch.distributed as dist\n"
        "store = f'file://{__file__}.store'\n"
        "dist.init_process_group('gloo', init_method=store, rank=0, world_size=1)\n"
        "dist.barrier()\n" + READY + "lock = threading.Lock(); lock.acquire(); lock.acquire()",
        Doing.STUCK,
    ),
    "waits for a child that computes": (
        "import subprocess, sys\n"
        "p = subprocess.Popen([sys.executable, '-c', 'while True: pass'])\n" + READY + "p.wait()",
        Doing.MOVING,
    ),
    "waits for a child that sleeps": (
        "import subprocess\np = subprocess.Popen(['sleep', '1000'])\n" + READY + "p.wait()",
        Doing.MOVING,
    ),
}


@contextlib.contextmanager
def process(code: str, tmp_path: Path) -> Iterator[int]:
    """A script that has said it is ready, with all of its children ended in the end."""
    script = tmp_path / "script.py"
    script.write_text(code)
    command = [sys.executable, "-u", str(script)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True) as started:
        try:
            assert started.stdout is not None
            assert started.stdout.readline() == b"ready\n"
            yield started.pid
        finally:
            os.killpg(started.pid, signal.SIGKILL)


async def look(pid: int) -> RankStack:
    (seen,) = await stacks.capture({0: pid}, SystemClock())
    return seen


@pytest.mark.parametrize(("code", "doing"), SCRIPTS.values(), ids=SCRIPTS.keys())
async def test_what_a_process_does(code: str, doing: Doing, tmp_path: Path) -> None:
    with process(code, tmp_path) as pid:
        for _ in range(5):  # on a busy machine it may not have come to where it waits
            seen = await look(pid)
            if _doing(seen, "training") is doing:
                break
    assert _doing(seen, "training") is doing, seen


async def test_the_line_at_which_a_process_stands(tmp_path: Path) -> None:
    """A library in C that waits shows no frame: the line is all there is to see of it."""
    code = "import threading\nlock = threading.Lock()\nlock.acquire()\n" + READY + "lock.acquire()"
    with process(code, tmp_path) as pid:
        seen = await look(pid)
        for _ in range(5):
            if "acquire" in seen.line:
                break
            seen = await look(pid)
    assert seen.line == "lock.acquire()"


WATCHED = """
import os, sys, time, torch, torch.distributed as dist
from babysit.step_times import StepTimes
other = sys.argv[1:] == ["other"]
if not other:
    os.system(f"{sys.executable} {__file__} other &")  # not a child: it would be a helper
store = f"file://{__file__}.store"
dist.init_process_group("gloo", init_method=store, rank=int(other), world_size=2)
if other:
    time.sleep(1000)
model = torch.nn.Linear(2, 2)
watch = StepTimes().watch(print)
watch.add(model, None)
print("ready", flush=True)
work = dist.all_reduce(torch.ones(4), async_op=True)
WAIT
"""


@pytest.mark.parametrize("wait", ["work.wait()", "dist.barrier()"])
async def test_a_watched_rank_that_waits_for_others_is_not_stuck(wait: str, tmp_path: Path) -> None:
    """`run.watch` times such waits in a frame of its own, which must not pass for the script's."""
    with process(WATCHED.replace("WAIT", wait), tmp_path) as pid:
        for _ in range(5):  # on a busy machine it may not have come to where it waits
            seen = await look(pid)
            if _doing(seen, "training") is Doing.WAITING:
                break
    assert _doing(seen, "training") is Doing.WAITING, seen


async def test_a_stopped_process_and_its_stopped_threads(tmp_path: Path) -> None:
    code = (
        "import threading, time\n"
        + READY
        + "threading.Thread(target=time.sleep, args=(99,)).start()"
    )
    with process(code, tmp_path) as pid:
        os.kill(pid, signal.SIGSTOP)
        seen = await look(pid)
    assert _doing(seen, "training") is Doing.STOPPED
    assert (seen.helpers, seen.traced) == ((), False)


async def test_a_stopped_child_is_dead_to_its_parent(tmp_path: Path) -> None:
    code = (
        "import os, signal, subprocess\n"
        "p = subprocess.Popen(['sleep', '1000']); os.kill(p.pid, signal.SIGSTOP)\n"
        + READY
        + "p.wait()"
    )
    with process(code, tmp_path) as pid:
        for _ in range(5):  # on a busy machine it may not have come to where it waits
            seen = await look(pid)
            if not seen.frames_later:
                break
    assert len(seen.dead_children) == 1
    assert _doing(seen, "loading") is Doing.STUCK
