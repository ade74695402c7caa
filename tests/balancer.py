"""A balancer of TCP connections, as a Service of Kubernetes is one: it knows nothing of HTTP."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Iterator, Sequence
from itertools import count


class Balancer:
    """Gives connections to servers of this machine in turn; one that takes none is passed over.

    Attributes:
        ports: Of the servers.
        host: Address of the servers.
        port: Where it listens.
        taken: Connections that each server took, in the order of the servers.
    """

    def __init__(self, ports: Sequence[int], host: str = "127.0.0.1") -> None:
        self.ports, self.host = ports, host
        self._turns = count()
        self._loop = asyncio.new_event_loop()
        self._stop = asyncio.Event()
        self._up = threading.Event()
        self._thread = threading.Thread(target=self._loop.run_until_complete, args=[self._serve()])
        self.taken = [0] * len(ports)
        self.port = 0
        self._thread.start()
        assert self._up.wait(30), "the balancer does not start"

    async def _serve(self) -> None:
        server = await asyncio.start_server(self._connect, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        self._up.set()
        await self._stop.wait()
        server.close()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for _ in self.ports:
            which = next(self._turns) % len(self.ports)
            with contextlib.suppress(OSError):
                there = await asyncio.open_connection(self.host, self.ports[which])
                self.taken[which] += 1
                await asyncio.gather(_pass(reader, there[1]), _pass(there[0], writer))
                return
        writer.close()

    def close(self) -> None:
        """End all connections."""
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()
        self._loop.close()


async def _pass(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError):
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()
    writer.close()


@contextlib.contextmanager
def balanced(ports: Sequence[int], host: str = "127.0.0.1") -> Iterator[Balancer]:
    """A balancer in front of servers."""
    balancer = Balancer(ports, host)
    try:
        yield balancer
    finally:
        balancer.close()
