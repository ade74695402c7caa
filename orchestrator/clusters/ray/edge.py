"""The control plane's end of the pipe to the process that is connected to Ray.

The process is started with the first request, and again after its end: it ends with the connection
to the cluster, which Ray's library gives up for good after a minute.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import multiprocessing
import threading
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import structlog

from jobs.clock import Clock
from orchestrator.clusters.errors import ClusterError
from orchestrator.clusters.ray import program
from orchestrator.clusters.ray.facts import RayFailedError
from orchestrator.clusters.ray.identity import KnownCluster

_log = structlog.get_logger(__name__)
RETRY_SECONDS = 5.0
"""Time between two tries to connect."""
CONNECT_SECONDS = 60.0
"""How long a request waits for the connection; with a head node that answers it takes 2 s."""


class Edge:
    """Asks the process, and hears from it.

    Attributes:
        heard: Called with each change that the process tells.
    """

    def __init__(self, address: str, namespace: str, log: Path, clock: Clock) -> None:
        self._given = (address, namespace, str(log))
        self._log, self._clock = log, clock
        self._known = KnownCluster(log.with_suffix(".json"))
        self.heard: Callable[[tuple[Any, ...]], None] = lambda _: None
        self._process: BaseProcess | None = None
        self._pipe: Connection | None = None
        self._numbers = itertools.count(1)
        self._asked: dict[int, asyncio.Future[Any]] = {}
        self._connecting: asyncio.Future[None] | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._lost = asyncio.Event()
        self._failure: RayFailedError | None = None
        self._closed = False

    def start(self) -> None:
        """Connect, and again whenever the connection is lost; has no effect the second time."""
        if self._keeper is None and not self._closed:
            self._connecting = asyncio.get_running_loop().create_future()
            self._keeper = asyncio.get_running_loop().create_task(self._keep())

    async def ask(self, what: str, *given: Any) -> Any:
        """Have the process do something; its answer.

        Raises:
            ClusterError: The cluster cannot be reached, or refuses for now.
            ValueError: It refuses for good.
        """
        self.start()
        await self._connected()
        return await self._ask(what, *given)

    async def close(self) -> None:
        """End the process. Workers continue."""
        self._closed = True
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.gather(self._keeper, return_exceptions=True)
        self._drop("the control plane stops")
        if self._process is not None:
            await asyncio.to_thread(self._process.join)

    async def _connected(self) -> None:
        if self._closed:
            raise ClusterError("the connection to Ray is closed")
        if self._failure is not None:
            raise ClusterError(self._failure.message)
        connecting = self._connecting
        if connecting is None:
            return
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                await asyncio.shield(connecting)
        except TimeoutError as error:
            raise ClusterError(
                f"the Ray cluster has not answered for {CONNECT_SECONDS:.0f} s: check that its head"
                f" runs, and BABYSIT_RAY_ADDRESS; Ray's own words are in {self._log}"
            ) from error

    async def _ask(self, what: str, *given: Any) -> Any:
        number = next(self._numbers)
        answer = asyncio.get_running_loop().create_future()
        self._asked[number] = answer
        try:
            if self._pipe is None:
                raise ClusterError("the connection to Ray was lost: the next try makes a new one")
            try:
                self._pipe.send((number, what, given))
            except OSError as error:
                raise ClusterError(f"the connection to Ray was lost: {error}") from error
            return await answer
        except RayFailedError as error:
            raise _error(error) from error
        finally:
            self._asked.pop(number, None)

    # --- the process ------------------------------------------------------------------------

    async def _keep(self) -> None:
        while True:
            try:
                cluster = await self._connect()
                await self._ask("adopt", self._known.meet(cluster, self._clock.now()))
            except (RayFailedError, ClusterError, OSError, ValueError) as error:
                failure = error if isinstance(error, RayFailedError) else RayFailedError(str(error))
                if self._failure is None or self._failure.message != failure.message:
                    _log.warning("no connection to Ray, will retry", error=failure.message)
                self._failure = failure
                self._settle(failure)
                self._drop(failure.message)
            else:
                self._failure = None
                self._settle(None)
                await self._lost.wait()
                _log.warning("connection to Ray was lost", log=str(self._log))
                self._connecting = asyncio.get_running_loop().create_future()
            if self._process is not None:
                await asyncio.to_thread(self._process.join)
            await self._clock.sleep(RETRY_SECONDS if self._failure else 0)

    def _settle(self, failure: RayFailedError | None) -> None:
        """Let those go on who wait for the connection."""
        connecting, self._connecting = self._connecting, None
        if connecting is None or connecting.done():
            return
        if failure is None:
            connecting.set_result(None)
        else:
            connecting.set_exception(ClusterError(failure.message))
            connecting.exception()  # nobody may be waiting

    async def _connect(self) -> str:
        """Start the process; the id of the cluster that it is connected to."""
        loop = asyncio.get_running_loop()
        self._lost.clear()
        connected: asyncio.Future[str] = loop.create_future()
        self._process, self._pipe = await asyncio.to_thread(_spawn, self._given)

        def take(message: tuple[Any, ...] | None) -> None:
            self._take(message, connected)

        reading = threading.Thread(
            target=_read, args=(self._pipe, loop, take), name="ray", daemon=True
        )
        reading.start()
        return await connected

    def _take(self, message: tuple[Any, ...] | None, connected: asyncio.Future[str]) -> None:
        if message is None:
            self._drop("the connection to Ray was lost")
            self._lost.set()
            if not connected.done():
                connected.set_exception(
                    RayFailedError(f"Ray's library ended the process; see {self._log}")
                )
        elif message[0] == "connected":
            connected.set_result(message[1])
        elif message[0] == "failed":
            connected.set_exception(message[1])
        elif message[0] == "change":
            self.heard(message[1:])
        else:
            _, number, value, failure = message
            answer = self._asked.pop(number, None)
            if answer is None or answer.done():
                return
            if failure is None:
                answer.set_result(value)
            else:
                answer.set_exception(failure)

    def _drop(self, why: str) -> None:
        """End the process, which has nothing that is not in Ray, and fail what was asked."""
        self._pipe = None
        if self._process is not None:
            self._process.kill()
        for answer in self._asked.values():
            if not answer.done():
                answer.set_exception(RayFailedError(why))
        self._asked.clear()


def _spawn(given: tuple[str, str, str]) -> tuple[BaseProcess, Connection]:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=program.main, args=(theirs, *given), name="ray", daemon=True)
    process.start()
    theirs.close()
    return process, ours


def _read(
    pipe: Connection,
    loop: asyncio.AbstractEventLoop,
    take: Callable[[tuple[Any, ...] | None], None],
) -> None:
    """Hand over what the process sends, from a thread; None at its end."""
    message: tuple[Any, ...] | None = ()
    while message is not None:
        try:
            message = pipe.recv()
        except (EOFError, OSError):
            message = None
            pipe.close()
        with contextlib.suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(take, message)


def _error(failure: RayFailedError) -> Exception:
    return ValueError(failure.message) if failure.final else ClusterError(failure.message)
