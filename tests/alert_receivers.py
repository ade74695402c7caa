"""Stand-ins for what takes notices besides Slack: an HTTP service and a mail server."""

from __future__ import annotations

import asyncio
import base64
import json
import ssl
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
    """An SMTP server (RFC 5321, as far as a client needs it that sends one mail at a time).

    With a context it has TLS from the first byte (`smtps`), or after STARTTLS (RFC 3207). With a
    password it takes no mail without AUTH PLAIN (RFC 4954), which it offers over TLS alone.
    """

    def __init__(
        self, context: ssl.SSLContext | None = None, *, starttls: bool = False, password: str = ""
    ) -> None:
        self.mails: list[str] = []
        self.refuse_next: str = ""
        """Answer to the next MAIL FROM, such as `451 later`; empty: it is accepted."""
        self.unknown: set[str] = set()
        self.in_clear: list[str] = []
        """Lines that came unencrypted."""
        self._context, self._starttls, self._password = context, starttls, password

    async def __aenter__(self) -> Self:
        tls = None if self._starttls else self._context
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=tls)
        self.port = self._server.sockets[0].getsockname()[1]
        self.url = f"smtp://127.0.0.1:{self.port}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        secure, known = self._context is not None and not self._starttls, not self._password

        def say(line: str) -> None:
            writer.write(f"{line}\r\n".encode())

        say("220 stand-in")
        while line := (await reader.readline()).decode().strip():
            if not secure:
                self.in_clear.append(line)
            word = line.split(" ", 1)[0].upper()
            if word == "EHLO":
                say("250-stand-in")
                if self._starttls and not secure:
                    say("250-STARTTLS")
                say("250 AUTH PLAIN" if self._password and secure else "250 8BITMIME")
            elif word == "STARTTLS" and self._starttls and self._context is not None:
                say("220 go on")
                await writer.drain()
                await writer.start_tls(self._context)
                secure = True
            elif word == "AUTH":
                _, user, password = base64.b64decode(line.split()[2]).decode().split("\0")
                known = (user, password) == ("babysit@example.org", self._password)
                say("235 welcome" if known else "535 5.7.8 wrong password")
            elif word == "DATA":
                say("354 go on")
                data = await reader.readuntil(b"\r\n.\r\n")
                self.mails.append(data.decode())
                say("250 taken")
            else:
                say(self._answer(word, line, known=known))
                if word == "QUIT":
                    break
        writer.close()

    def _answer(self, word: str, line: str, *, known: bool) -> str:
        if word == "MAIL" and not known:
            return "530 5.7.0 authentication required"
        if word == "MAIL" and self.refuse_next:
            refusal, self.refuse_next = self.refuse_next, ""
            return refusal
        if word == "RCPT" and any(name in line for name in self.unknown):
            return "550 no such user"
        return "221 bye" if word == "QUIT" else "250 ok"
