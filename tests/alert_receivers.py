"""Stand-ins for what takes notices besides Slack: an HTTP service and a mail server."""

from __future__ import annotations

import asyncio
import json
from typing import Any, Self

from aiohttp import web


class Receiver:
    """An HTTP service that keeps what it gets, and answers as it is told."""

    def __init__(self) -> None:
        self.got: list[tuple[dict[str, str], bytes]] = []
        self.statuses: list[int] = []
        """Statuses of the next answers; then 202."""

    async def __aenter__(self) -> Self:
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", self._handle)
        self._runner = web.AppRunner(app)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}/hook"
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._runner.cleanup()

    async def _handle(self, request: web.Request) -> web.Response:
        status = self.statuses.pop(0) if self.statuses else 202
        if status < 300:
            headers = {name.lower(): value for name, value in request.headers.items()}
            self.got.append((headers, await request.read()))
        return web.Response(status=status, text="no such integration" if status >= 400 else "")

    @property
    def bodies(self) -> list[dict[str, Any]]:
        return [json.loads(body) for _, body in self.got]


class MailServer:
    """An SMTP server (RFC 5321, as far as a client needs it that sends one mail at a time)."""

    def __init__(self) -> None:
        self.mails: list[str] = []
        self.refuse_next: str = ""
        """Answer to the next MAIL FROM, such as `451 later`; empty: it is accepted."""
        self.unknown: set[str] = set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        port = self._server.sockets[0].getsockname()[1]
        self.url = f"smtp://127.0.0.1:{port}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        def say(line: str) -> None:
            writer.write(f"{line}\r\n".encode())

        say("220 stand-in")
        while line := (await reader.readline()).decode().strip():
            word = line.split(" ", 1)[0].upper()
            if word == "DATA":
                say("354 go on")
                data = await reader.readuntil(b"\r\n.\r\n")
                self.mails.append(data.decode())
                say("250 taken")
            elif word == "MAIL" and self.refuse_next:
                say(self.refuse_next)
                self.refuse_next = ""
            elif word == "RCPT" and any(name in line for name in self.unknown):
                say("550 no such user")
            elif word == "QUIT":
                say("221 bye")
                break
            else:
                say("250 ok")
        writer.close()
