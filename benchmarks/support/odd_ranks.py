"""The activities of the odd rank of a hung gang, and the places where its peers wait for it.

The module runs in the ranks. Each function blocks for ever, in the way in which scripts do. Peers
wait in real collectives of gloo, each on a process group of its own, since collectives of different
kinds on one group would take each other's messages.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import fcntl
import multiprocessing
import os
import queue
import re
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from multiprocessing import connection
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

LONG = 3600.0


class Gang:
    """The process groups of one rank."""

    def __init__(self, rank: int, world: int, store: Path, places: Sequence[str]) -> None:
        dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world)
        self.rank = rank
        self.groups = {place: dist.new_group() for place in places}
        self.aside = dist.new_group()
        self.model: Any = None
        if "backward" in places:
            layers = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Linear(8, 1))
            self.model = torch.nn.parallel.DistributedDataParallel(layers)
        dist.all_reduce(torch.ones(1))


# --- where peers wait -----------------------------------------------------------------------


def _all_reduce(gang: Gang, _odd: int) -> None:
    dist.all_reduce(torch.ones(4), group=gang.groups["all_reduce"])


def _barrier(gang: Gang, _odd: int) -> None:
    dist.barrier(group=gang.groups["barrier"])


def _all_gather(gang: Gang, _odd: int) -> None:
    into = [torch.zeros(4) for _ in range(dist.get_world_size())]
    dist.all_gather(into, torch.ones(4), group=gang.groups["all_gather"])


def _objects(gang: Gang, _odd: int) -> None:
    into: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(into, {"loss": 1.0}, group=gang.groups["objects"])


def _broadcast(gang: Gang, odd: int) -> None:
    dist.broadcast(torch.ones(4), src=odd, group=gang.groups["broadcast"])


def _recv(gang: Gang, odd: int) -> None:
    dist.recv(torch.ones(4), src=odd, group=gang.groups["recv"])


def _handle(gang: Gang, _odd: int) -> None:
    work = dist.all_reduce(torch.ones(4), group=gang.groups["handle"], async_op=True)
    assert work is not None
    work.wait()


def _backward(gang: Gang, _odd: int) -> None:
    loss = gang.model(torch.ones(2, 8)).sum()
    loss.backward()


PLACES: dict[str, Callable[[Gang, int], None]] = {
    "all_reduce": _all_reduce,
    "barrier": _barrier,
    "all_gather": _all_gather,
    "objects": _objects,
    "broadcast": _broadcast,
    "recv": _recv,
    "handle": _handle,
    "backward": _backward,
}


# --- what the odd rank does -------------------------------------------------------------------


def _computes(_gang: Gang) -> None:
    while True:
        sum(range(10_000))


def _regex(_gang: Gang) -> None:
    re.fullmatch(r"(a+)+b", "a" * 64)


def _sleeps(_gang: Gang) -> None:
    time.sleep(LONG)


def _validates(_gang: Gang) -> None:
    while True:
        time.sleep(0.05)
        torch.ones(64, 64) @ torch.ones(64, 64)


def _lock(_gang: Gang) -> None:
    lock = threading.Lock()
    lock.acquire()
    lock.acquire()


def _crossed_locks(_gang: Gang) -> None:
    one, two = threading.Lock(), threading.Lock()

    def other() -> None:
        with two:
            time.sleep(0.1)
            one.acquire()

    with one:
        threading.Thread(target=other, daemon=True).start()
        time.sleep(0.2)
        two.acquire()


def _queue(_gang: Gang) -> None:
    queue.Queue[int]().get()


def _event(_gang: Gang) -> None:
    threading.Event().wait()


def _condition(_gang: Gang) -> None:
    condition = threading.Condition()
    with condition:
        condition.wait()


def _thread_barrier(_gang: Gang) -> None:
    threading.Barrier(2).wait()


def _semaphore(_gang: Gang) -> None:
    multiprocessing.Semaphore(0).acquire()


def _join(_gang: Gang) -> None:
    lock = threading.Lock()
    lock.acquire()
    thread = threading.Thread(target=lock.acquire, daemon=True)
    thread.start()
    thread.join()


def _future(_gang: Gang) -> None:
    lock = threading.Lock()
    lock.acquire()
    concurrent.futures.ThreadPoolExecutor(1).submit(lock.acquire).result()


def _pipe(_gang: Gang) -> None:
    os.read(os.pipe()[0], 1)


def _fifo(_gang: Gang) -> None:
    path = Path(tempfile.mkdtemp()) / "fifo"
    os.mkfifo(path)
    path.read_text()


def _full_pipe(_gang: Gang) -> None:
    _, end = os.pipe()
    while True:
        os.write(end, b"x" * 65536)


def _process_queue(_gang: Gang) -> None:
    waiting: Any = multiprocessing.Queue()
    waiting.get()


def _stopped_worker(_gang: Gang) -> None:
    """A loader whose worker process was stopped."""
    results: Any = multiprocessing.Queue()
    worker = multiprocessing.get_context("fork").Process(target=time.sleep, args=(LONG,))
    worker.start()
    os.kill(worker.pid or 0, signal.SIGSTOP)
    results.get()


def _dead_worker(_gang: Gang) -> None:
    """A loader whose worker process has died, and nobody has looked."""
    results: Any = multiprocessing.Queue()
    multiprocessing.get_context("fork").Process(target=os._exit, args=(1,)).start()
    results.get()


def _slow_worker(_gang: Gang) -> None:
    mine, its = multiprocessing.Pipe()
    multiprocessing.get_context("fork").Process(target=_works, args=(its,), daemon=True).start()
    mine.recv()


def _works(_end: connection.Connection) -> None:
    while True:
        sum(range(1000))
        time.sleep(0.01)


def _child(_gang: Gang) -> None:
    subprocess.run([sys.executable, "-c", f"import time; time.sleep({LONG})"], check=False)


def _socket(_gang: Gang) -> None:
    server = socket.create_server(("127.0.0.1", 0))
    client = socket.create_connection(server.getsockname())
    client.recv(1)


def _accept(_gang: Gang) -> None:
    socket.create_server(("127.0.0.1", 0)).accept()


def _event_loop(_gang: Gang) -> None:
    async def forever() -> None:
        await asyncio.Event().wait()

    asyncio.run(forever())


def _select(_gang: Gang) -> None:
    select.select([os.pipe()[0]], [], [])


def _signal(_gang: Gang) -> None:
    signal.pause()


def _file_lock(_gang: Gang) -> None:
    path = Path(tempfile.mkdtemp()) / "lock"
    held = path.open("w")
    fcntl.flock(held, fcntl.LOCK_EX)
    again = path.open("w")
    fcntl.flock(again, fcntl.LOCK_EX)


def _polls(_gang: Gang) -> None:
    event = threading.Event()
    while not event.wait(0.5):
        pass


def _left_thread(_gang: Gang) -> None:
    """The script is over on this rank, but a thread keeps its process."""
    thread = threading.Thread(target=threading.Event().wait)
    thread.start()
    thread.join()


def _exit_handler(_gang: Gang) -> None:
    with contextlib.suppress(SystemExit):
        sys.exit(0)
    threading.Event().wait()


def _upload_thread(_gang: Gang) -> None:
    server = socket.create_server(("127.0.0.1", 0))
    client = socket.create_connection(server.getsockname())
    thread = threading.Thread(target=client.recv, args=(1,))
    thread.start()
    thread.join()


def _skips(gang: Gang) -> None:
    """The rank left out a collective, and waits in the next one."""
    dist.all_reduce(torch.ones(2), group=gang.aside)


def _final_barrier(gang: Gang) -> None:
    """The data of the rank have ended early, and it waits in the last barrier."""
    dist.barrier(group=gang.aside)


ODD: dict[str, Callable[[Gang], None]] = {
    name.removeprefix("_").replace("_", " "): function
    for name, function in list(globals().items())
    if name.startswith("_")
    and function.__class__ is type(_lock)
    and name != "_works"
    and function not in PLACES.values()
}
"""By name."""
