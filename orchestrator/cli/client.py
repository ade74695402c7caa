"""The one HTTP client of the command line. Answers become data, errors become exit codes."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Self

import httpx
from ulid import ULID

from jobs import unix_socket
from jobs.clock import Clock
from orchestrator.cli.errors import CliError, ExitCode, UnreachableError

_CODES = {
    401: ExitCode.NOT_ALLOWED,
    403: ExitCode.NOT_ALLOWED,
    404: ExitCode.NOT_FOUND,
    409: ExitCode.REFUSED,
    413: ExitCode.USAGE,
    422: ExitCode.USAGE,
}
PREFIX = "/api/v1"
PATIENCE_SECONDS = 15.0
"""Seconds for which a 503 is retried: nothing was changed, and a new leader needs a moment."""
UPLOAD_SECONDS = 300.0
"""Seconds for which a server that has a whole upload may take to store it."""
_AGAIN_SECONDS = 0.2
_BROKEN = (httpx.RemoteProtocolError, httpx.ReadError, httpx.WriteError)
"""A connection that broke after the request was sent: it may have been done, and is sent again with
its key."""


class Api:
    """The control plane, over HTTP.

    Args:
        url: Such as `https://babysit.example.org`, or `unix:` and the path of a socket.
        token: Sent with each request but the health check, or what gives it anew for each; None:
            none is needed, or there is none.
        clock: For pauses.
        timeout: Seconds for which an answer is awaited.
        ca: PEM file of the authorities to trust; None: the system's, or those of SSL_CERT_FILE.
    """

    def __init__(
        self,
        url: str,
        token: str | Callable[[], str] | None,
        clock: Clock,
        *,
        timeout: float = 30.0,
        ca: Path | None = None,
    ) -> None:
        self.url = url
        self._clock = clock
        self._token = token
        self._open = contextlib.ExitStack()
        self._http = self._client(timeout, ca)

    def _client(self, timeout: float, ca: Path | None) -> httpx.Client:
        base, uds = self.url, None
        if self.url.startswith(unix_socket.HTTP_SCHEME):
            socket = Path(self.url.removeprefix(unix_socket.HTTP_SCHEME))
            base = "http://babysit"
            uds = self._open.enter_context(unix_socket.address(socket))
        transport = httpx.HTTPTransport(verify=_trust(base, ca), uds=uds)
        return self._open.enter_context(
            httpx.Client(base_url=base, transport=transport, timeout=timeout, trust_env=False)
        )

    def __enter__(self) -> Self:
        """Use the connections until the end of a block."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the connections."""
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._open.close()

    def get(self, where: str, **params: Any) -> Any:
        """GET. Parameters that are None are left out."""
        given = {key: value for key, value in params.items() if value is not None}
        return self._ask("GET", where, params=given)

    def post(self, where: str, **body: Any) -> Any:
        """POST."""
        return self._ask("POST", where, json=body)

    def patch(self, where: str, **body: Any) -> Any:
        """PATCH."""
        return self._ask("PATCH", where, json=body)

    def put(self, where: str, **body: Any) -> Any:
        """PUT."""
        return self._ask("PUT", where, json=body)

    def delete(self, where: str) -> Any:
        """DELETE."""
        return self._ask("DELETE", where)

    def has(self, where: str) -> bool:
        """True if the server has something at a path (HEAD).

        A refusal counts as no: it has no words, and the upload that follows gets them.
        """
        return self._patiently("HEAD", where, {}).is_success

    def upload(self, where: str, content: Callable[[], Iterable[bytes]], size: int) -> None:
        """PUT a file. Each try sends it from the beginning.

        Args:
            where: Its path.
            content: Gives the chunks of the file, for one try.
            size: Bytes of the file.
        """
        headers = {"Content-Length": str(size), "Content-Type": "application/octet-stream"}
        self._read(self._patiently("PUT", where, headers, content=content, timeout=UPLOAD_SECONDS))

    def is_healthy(self, *, timeout: float = 2.0) -> bool:
        """True if the server answers its health check, which is asked for without the token."""
        try:
            return self._http.get("/healthz", timeout=timeout).status_code == httpx.codes.OK
        except httpx.TransportError:
            return False

    def is_ready(self, *, timeout: float = 2.0) -> bool:
        """True if the server leads, and knows the nodes: it has begun."""
        try:
            return bool(self._http.get("/healthz", timeout=timeout).json().get("ready"))
        except (httpx.TransportError, ValueError):
            return False

    def _ask(self, method: str, where: str, **options: Any) -> Any:
        # One key for all tries: the server may have stored the first, and its answer was lost.
        key = {} if method == "GET" else {"Idempotency-Key": str(ULID())}
        return self._read(self._patiently(method, where, key, **options))

    def _patiently(
        self, method: str, where: str, key: Mapping[str, str], **options: Any
    ) -> httpx.Response:
        until = self._clock.monotonic() + PATIENCE_SECONDS
        sent = False
        while True:
            late = self._clock.monotonic() >= until
            try:
                answer = self._send(method, where, key, **options)
            except httpx.TransportError as error:
                sent = sent or isinstance(error, _BROKEN)
                if late or not (key and sent):
                    raise self._silent(error) from error
            else:
                if late or answer.status_code != httpx.codes.SERVICE_UNAVAILABLE:
                    return answer
            asyncio.run(self._clock.sleep(_AGAIN_SECONDS))

    def _send(
        self, method: str, where: str, headers: Mapping[str, str], **options: Any
    ) -> httpx.Response:
        token = self._token() if callable(self._token) else self._token
        if token:
            headers = {"Authorization": f"Bearer {token}", **headers}
        if (content := options.pop("content", None)) is not None:
            options["content"] = content()
        return self._http.request(method, PREFIX + where, headers=headers, **options)

    def _silent(self, error: httpx.TransportError) -> UnreachableError:
        return UnreachableError(
            f"no answer from {self.url}: {str(error) or type(error).__name__}. Runs that are "
            "alive go on without the server. Check BABYSIT_SERVER, or see `babysit doctor`."
        )

    def _read(self, answer: httpx.Response) -> Any:
        if answer.status_code == httpx.codes.NO_CONTENT:
            return None
        try:
            body = answer.json()
        except ValueError as error:
            raise UnreachableError(
                f"{self.url} answered {answer.status_code}, and not as a babysit server does: "
                "check BABYSIT_SERVER."
            ) from error
        if answer.is_success:
            return body
        raise _refused(answer.status_code, body, self.url)


def _trust(url: str, ca: Path | None) -> ssl.SSLContext | bool:
    """Which certificates are trusted; False where there are none, as it takes time to load them."""
    if not url.startswith("https:"):
        return False
    try:
        # Without a file, OpenSSL reads SSL_CERT_FILE and SSL_CERT_DIR itself.
        return ssl.create_default_context(cafile=ca)
    except OSError as error:
        message = f"BABYSIT_CA={ca} cannot be read: {error.strerror or error}"
        raise CliError(message, ExitCode.USAGE) from error


def _refused(status: int, body: Any, url: str) -> CliError:
    error = body.get("error", {}) if isinstance(body, dict) else {}
    message = str(error.get("message") or f"{url} answered {status}")
    if status in _CODES:
        return CliError(message, _CODES[status])
    return UnreachableError(f"{url}: {message}")
