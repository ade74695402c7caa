"""Sends the reports of a node to the server, and keeps them while no server takes them.

The problem: a control plane may be away for hours, and lines that the kernel has logged meanwhile
must not be lost; but nothing on a training node may grow without bounds. The design: reports go
through a spool on disk. Beyond its limit, readings are left out, which the next report has anew;
beyond twice the limit, reports are dropped, counted and logged. A report may arrive twice, and
never out of order.

Limits: one report at a time over one connection, which is plenty for a node.
"""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import random
import ssl
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

import structlog

from jobs.agent.spool import Spool
from jobs.clock import Clock, wait_at_most
from jobs.hardware.collector import in_thread
from monitors.hardware.types import NodeReport, Reading

_SOCKET_SECONDS = 30.0
_BACKOFF_SECONDS = (1.0, 30.0)
_MOST_ANSWER = 2**16
_MOST_HELD = 1000
"""Reports in memory, while the disk of the spool is full."""


class Server(NamedTuple):
    """The server of a node monitor."""

    url: str
    """`wss://host/agent`, as agents have it, or `https://host/agent`."""
    node: str
    secret: str
    """The secret of all node monitors, or the token of this node."""
    ca: Path | None = None
    """PEM file of the authorities that sign its certificate; None: the system's."""


class _Answer(NamedTuple):
    """The answer to a request; status 0: there was none."""

    status: int
    body: dict[str, object]
    seconds: float = 0.0
    """Time from the request to the answer."""

    @property
    def words(self) -> str:
        """The error, for the log."""
        error = self.body.get("error")
        message = error.get("message") if isinstance(error, dict) else error
        return f"{self.status}: {message}" if self.status else str(message)


def base_url(url: str) -> str:
    """The URL of the endpoint of agents, by HTTP.

    Raises:
        ValueError: It is not a URL of `ws:`, `wss:`, `http:` or `https:`.
    """
    parts = urlsplit(url)
    scheme = {"ws": "http", "wss": "https"}.get(parts.scheme, parts.scheme)
    if scheme not in {"http", "https"} or not parts.hostname:
        raise ValueError(f"expected a URL such as wss://babysit.example.org/agent, got {url}")
    return parts._replace(scheme=scheme, path=parts.path.rstrip("/")).geturl()


class _Wire:
    """One connection to the server, opened anew after an error. Blocks: used in a thread."""

    def __init__(self, server: Server, clock: Clock) -> None:
        self._base = urlsplit(base_url(server.url))
        self._ca, self._clock = server.ca, clock
        self._connection: http.client.HTTPConnection | None = None

    def post(self, path: str, token: str, body: bytes) -> _Answer:
        """Send a request; raises nothing."""
        began = self._clock.monotonic()
        try:
            if self._connection is None:
                self._connection = self._open()
            headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
            self._connection.request("POST", f"{self._base.path}{path}", body, headers)
            answer = self._connection.getresponse()
            told = json.loads(answer.read(_MOST_ANSWER) or b"{}")
            if answer.will_close or not answer.isclosed():
                self.close()
            seconds = self._clock.monotonic() - began
            return _Answer(answer.status, told if isinstance(told, dict) else {}, seconds)
        except (OSError, ValueError, http.client.HTTPException) as error:
            self.close()
            return _Answer(0, {"error": f"{self._base.netloc}: {error or type(error).__name__}"})

    def _open(self) -> http.client.HTTPConnection:
        netloc = self._base.netloc
        if self._base.scheme == "http":
            return http.client.HTTPConnection(netloc, timeout=_SOCKET_SECONDS)
        context = ssl.create_default_context(cafile=self._ca)
        return http.client.HTTPSConnection(netloc, timeout=_SOCKET_SECONDS, context=context)

    def close(self) -> None:
        """Close the connection; the next request opens another."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None


class ReportSender:
    """Takes reports at once, and sends them in order.

    Args:
        server: Where to.
        directory: For the spool, which is continued.
        limit: Bytes of the spool above which readings are left out.
        clock: For pauses.
        chance: For their length.

    Attributes:
        dropped: Reports that were dropped, since the spool was full twice over.
        refused: Why the server refuses; empty: it does not, or does not answer.
    """

    def __init__(
        self, server: Server, directory: Path, limit: int, clock: Clock, chance: random.Random
    ) -> None:
        self._server, self._clock, self._chance = server, clock, chance
        self._spool, self._limit = Spool(directory / "reports", limit), limit
        self._wire = _Wire(server, clock)
        self._token = ""
        self._grown = asyncio.Event()
        self._failures = 0
        self._skew: float | None = None
        self.dropped = 0
        self.refused = ""

    def add(self, report: NodeReport) -> None:
        """Keep a report until it is taken. Returns at once."""
        if self._skew is not None:
            report = _with_skew(report, self._skew)
        if self._spool.full:
            report = report.model_copy(update={"readings": ()})
            if not report.lines or self._is_overfull():
                self._drop(report)
                return
        self._spool.append(report.model_dump_json().encode())
        self._grown.set()

    def _is_overfull(self) -> bool:
        """True if even lines have no place left: on disk, or in memory where the disk is full."""
        if self._spool.trouble:
            return self.waiting > _MOST_HELD
        return self._spool.path.stat().st_size > 2 * self._limit

    def _drop(self, report: NodeReport) -> None:
        if report.lines:
            self.dropped += 1
            if self.dropped & (self.dropped - 1) == 0:
                log = structlog.get_logger()
                log.error("the spool is full: lines of the kernel lost", reports=self.dropped)

    @property
    def waiting(self) -> int:
        """Reports that no server has taken yet."""
        return self._spool.next_sequence - self._spool.first_sequence

    async def run(self) -> None:
        """Send until cancelled."""
        while True:
            self._grown.clear()
            while self.waiting:
                if not await self.send_once():
                    await self._clock.sleep(self._pause())
            await wait_at_most(self._clock, self._grown, _BACKOFF_SECONDS[1])

    async def send_once(self) -> bool:
        """Send the oldest report that waits; False: there is none, or no server takes it now."""
        for sequence, report in self._spool.after(self._spool.first_sequence - 1):
            if await self._sent(report):
                self._spool.acknowledge(sequence)
                return True
            break
        return False

    async def _sent(self, report: bytes) -> bool:
        """True once the report needs no more sending."""
        if not self._token and not await self._enrolled():
            return False
        answer = await self._post("reports", self._token, report)
        if answer.status == http.client.OK:
            self._took(answer)
            return True
        if answer.status in {
            http.client.REQUEST_ENTITY_TOO_LARGE,
            http.client.UNPROCESSABLE_ENTITY,
        }:
            self.dropped += 1
            structlog.get_logger().error("the server cannot read a report", reason=answer.words)
            return True
        if answer.status in {http.client.UNAUTHORIZED, http.client.FORBIDDEN}:
            self._token = ""
        self._failed(answer)
        return False

    async def _enrolled(self) -> bool:
        answer = await self._post("token", self._server.secret, b"")
        token = answer.body.get("token")
        if answer.status == http.client.OK and isinstance(token, str):
            self._token = token
            return True
        self._failed(answer)
        return False

    async def _post(self, what: str, token: str, body: bytes) -> _Answer:
        path = f"/nodes/{self._server.node}/{what}"
        return await in_thread(lambda: self._wire.post(path, token, body), "reports")

    def _took(self, answer: _Answer) -> None:
        if self._failures or self.refused:
            structlog.get_logger().info("reporting again", failures=self._failures)
        self._failures, self.refused = 0, ""
        now = answer.body.get("now")
        if isinstance(now, int | float):
            middle = self._clock.now().timestamp() - answer.seconds / 2
            self._skew = middle - now

    def _failed(self, answer: _Answer) -> None:
        """Log the 1st, 2nd, 4th, 8th … failure in a row."""
        self._failures += 1
        self.refused = answer.words if answer.status else ""
        if self._failures & (self._failures - 1) == 0:
            structlog.get_logger().warning(
                "report not taken, will retry", failures=self._failures, reason=answer.words
            )

    def _pause(self) -> float:
        """Full jitter: the monitors of a large cluster must not come back together."""
        least, most = _BACKOFF_SECONDS
        return self._chance.uniform(least, min(most, least * 2 ** min(self._failures, 10)))

    def close(self) -> None:
        """Close connection and spool; the next process sends the reports that are left."""
        self._wire.close()
        with contextlib.suppress(OSError):
            self._spool.close()


def _with_skew(report: NodeReport, skew: float) -> NodeReport:
    """The report with how far the node's clock is ahead of the server's."""
    told = Reading(
        source="clock", device="server", name="offset_seconds", value=skew, time=report.time
    )
    return report.model_copy(update={"readings": (*report.readings, told)})
