"""A proxy to PostgreSQL that keeps answers back, and cuts."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

from sqlalchemy.engine import make_url


class Proxy:
    """Passes bytes on, as its switches say.

    Attributes:
        silent: True: the answers of the server wait until the client has sent its COMMIT.
        cut_after: Bytes that pass from now on before all connections break; None: all do.
    """

    def __init__(self, host: str, port: int) -> None:
        self._server = (host, port)
        self._answers = asyncio.Event()
        self._answers.set()
        self._writers: set[asyncio.StreamWriter] = set()
        self.silent, self.cut_after = False, None
        self.port = 0

    silent: bool
    cut_after: int | None

    def keep_answers_back(self) -> None:
        """From now on answers wait for a COMMIT."""
        self.silent = True
        self._answers.clear()

    async def connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection."""
        there_reader, there_writer = await asyncio.open_connection(*self._server)
        self._writers |= {writer, there_writer}
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.gather(
                self._pass(reader, there_writer, asks=True),
                self._pass(there_reader, writer, asks=False),
            )
        self._writers -= {writer, there_writer}

    async def _pass(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, asks: bool
    ) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(1 << 16):
                if asks and b"COMMIT" in data:
                    self._answers.set()
                if not asks:
                    await self._answers.wait()
                if self.cut_after is not None:
                    data, self.cut_after = data[: self.cut_after], self.cut_after - len(data)
                writer.write(data)
                if self.cut_after is not None and self.cut_after <= 0:
                    self.cut_after = None
                    self.break_all()
        writer.close()

    def break_all(self) -> None:
        """Break all connections, after what was passed on."""
        for writer in self._writers:
            writer.close()


@contextlib.asynccontextmanager
async def proxied(url: str) -> AsyncIterator[tuple[str, Proxy]]:
    """The URL of a database through a proxy, and the proxy."""
    parsed = make_url(url)
    proxy = Proxy(parsed.host or "127.0.0.1", parsed.port or 5432)
    server = await asyncio.start_server(proxy.connect, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    try:
        yield parsed.set(host="127.0.0.1", port=port).render_as_string(hide_password=False), proxy
    finally:
        proxy.break_all()
        server.close()
