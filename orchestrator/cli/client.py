"""The one HTTP client of the command line. Answers become data, errors become exit codes."""

from __future__ import annotations

import asyncio
from typing import Any
from urllib.parse import quote

import httpx

from jobs.clock import Clock
from orchestrator.cli.errors import CliError, ExitCode, UnreachableError

_CODES = {
    401: ExitCode.NOT_ALLOWED,
    403: ExitCode.NOT_ALLOWED,
    404: ExitCode.NOT_FOUND,
    409: ExitCode.REFUSED,
    422: ExitCode.USAGE,
}
PREFIX = "/api/v1"
PATIENCE_SECONDS = 15.0
"""Seconds for which a 503 is retried: nothing was changed, and a new leader needs a moment."""
_AGAIN_SECONDS = 0.2


def path(*parts: object) -> str:
    """A path under the API, each part quoted (slashes are kept: checkpoint ids have them)."""
    return "/" + "/".join(quote(str(part), safe="/") for part in parts)


class Api:
    """The control plane, over HTTP."""

    def __init__(self, url: str, token: str | None, clock: Clock, *, timeout: float = 30.0) -> None:
        self.url = url
        self._clock = clock
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._http = httpx.Client(base_url=url, headers=headers, timeout=timeout, trust_env=False)

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

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

    def is_healthy(self, *, timeout: float = 2.0) -> bool:
        """True if the server answers its health check."""
        try:
            return self._http.get("/healthz", timeout=timeout).status_code == httpx.codes.OK
        except httpx.TransportError:
            return False

    def _ask(self, method: str, where: str, **options: Any) -> Any:
        until = self._clock.monotonic() + PATIENCE_SECONDS
        while True:
            answer = self._send(method, where, **options)
            if answer.status_code != httpx.codes.SERVICE_UNAVAILABLE:
                break
            if self._clock.monotonic() >= until:
                break
            asyncio.run(self._clock.sleep(_AGAIN_SECONDS))
        return self._read(answer)

    def _send(self, method: str, where: str, **options: Any) -> httpx.Response:
        try:
            return self._http.request(method, PREFIX + where, **options)
        except httpx.TransportError as error:
            raise UnreachableError(
                f"no answer from {self.url}: {str(error) or type(error).__name__}. Runs go on "
                "without the server. Check BABYSIT_SERVER, or see `babysit doctor`."
            ) from error

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


def _refused(status: int, body: Any, url: str) -> CliError:
    error = body.get("error", {}) if isinstance(body, dict) else {}
    message = str(error.get("message") or f"{url} answered {status}")
    if status in _CODES:
        return CliError(message, _CODES[status])
    return UnreachableError(f"{url}: {message}")
