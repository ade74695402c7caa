"""The process that is connected to Ray: does what the control plane asks, tells what happens.

The control plane starts it (:mod:`.edge`) and talks to it through a pipe; when the pipe closes, it
ends. Each request runs in a thread of its own, since calls of Ray block. Nothing is kept here that
a next process could not find in Ray again.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Collection
from multiprocessing.connection import Connection
from typing import Any

from jobs.clock import SystemClock
from orchestrator.clusters.ray import connection
from orchestrator.clusters.ray.connection import Store
from orchestrator.clusters.ray.facts import Order, RayFailedError, Snapshot, Tell
from orchestrator.clusters.ray.former import Former
from orchestrator.clusters.ray.workers import Workers

POLL_SECONDS = 1.0
"""Time between looks at what Ray tells nobody by itself: drained nodes, and actors that wait."""

_ANEW = "the Ray cluster was started anew, and a raylet of the former one may still be alive"


class Driver:
    """The requests of the control plane, by name."""

    def __init__(self, namespace: str, tell: Tell) -> None:
        self._tell = tell
        store = Store(namespace)
        self._workers = Workers(store, namespace, tell)
        self._former = Former(store, tell, SystemClock())
        self._before: tuple[object, ...] | None = None

    def snapshot(self) -> Snapshot:
        """The nodes, without those that can run nothing."""
        return connection.snapshot(self._workers.held(), pending=True)

    def launch(self, order: Order) -> None:
        """Start a worker; see :meth:`Workers.launch`.

        Raises:
            RayFailedError: An agent of it may be alive in a former cluster.
        """
        if not self._former.may_start(order.worker, order.run):
            raise RayFailedError(f"worker {order.worker} does not start yet: {_ANEW}")
        self._workers.launch(order)

    def stop(self, worker: str, run: str, grace: float) -> None:
        """End a worker; see :meth:`Workers.stop`."""
        match self._former.may_live(worker, run):
            case None:
                self._workers.stop(worker, run, grace)
            case True:
                raise RayFailedError(f"worker {worker}: {_ANEW}")

    def alive(self, worker: str, run: str) -> bool | None:
        """True if a worker lives; see :meth:`Workers.alive`."""
        if self._former.may_live(worker, run) is not None:
            return None  # Former tells its end, now or later
        return self._workers.alive(worker, run)

    def adopt(self, former: float | None) -> None:
        """Take over the workers of earlier control planes.

        Args:
            former: Seconds for which workers of a former cluster may be alive; None: there is none.
        """
        self._former.begin(former)
        self._workers.adopt()

    def acknowledge(self, worker: str, run: str) -> None:
        """Take note that the control plane has stored a worker's end."""
        self._workers.acknowledge(worker, run)

    def keep_runs(self, runs: Collection[str]) -> None:
        """Remove what is kept of other runs."""
        self._workers.keep_runs(runs)

    def look(self) -> None:
        """Look for what Ray does not tell, and tell it."""
        seen = connection.snapshot(self._workers.held(), pending=False)
        now = tuple(sorted((node.id, node.deadline) for node in seen.nodes))
        if self._before is not None and now != self._before:
            self._tell("inventory")
        self._before = now
        self._workers.look(seen)


def main(pipe: Connection, address: str, namespace: str, log: str) -> None:
    """Serve requests until the pipe closes. What Ray writes for its own users goes to a file."""
    with open(log, "wb", opener=_private) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the server, which closes the pipe
    lock = threading.Lock()

    def send(*message: object) -> None:
        try:
            with lock:
                pipe.send(message)
        except OSError:
            os._exit(0)  # the control plane has ended

    try:
        connection.connect(address, namespace)
    except RayFailedError as error:
        send("failed", error)
        return
    driver = Driver(namespace, lambda *change: send("change", *change))
    send("connected", connection.cluster())
    threading.Thread(target=_watch, args=(driver,), daemon=True).start()
    while True:
        try:
            number, name, given = pipe.recv()
        except (EOFError, OSError):
            os._exit(0)  # at once: runs do not depend on this process, nor Ray on its farewell
        asked = (send, number, getattr(driver, name), given)
        # A thread each: launches that wait for a place do not keep a stop waiting.
        threading.Thread(target=_answer, args=asked, daemon=True).start()


def _answer(
    send: Callable[..., None], number: int, call: Callable[..., Any], given: tuple[Any, ...]
) -> None:
    try:
        send("answer", number, call(*given), None)
    except RayFailedError as error:
        send("answer", number, None, error)
    except Exception as error:  # noqa: BLE001 - of whichever class Ray has for it
        words = " ".join(str(error).split())
        send("answer", number, None, RayFailedError(f"Ray: {type(error).__name__}: {words:.600}"))


def _watch(driver: Driver) -> None:
    pause = threading.Event()
    while not pause.wait(POLL_SECONDS):
        try:
            driver.look()
        except Exception as error:  # noqa: BLE001 - Ray's control store is away; the next look asks
            sys.stderr.write(f"cannot look at the cluster: {error}\n")


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)
