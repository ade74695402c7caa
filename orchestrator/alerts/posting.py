"""Posts JSON to services of others, with errors as the outbox needs them."""

from __future__ import annotations

from collections.abc import Mapping

import httpx

from orchestrator.alerts.port import NotDeliveredError

_SECONDS = 15.0
"""A service that does not answer within this time is tried again later."""
_SHOWN = 200
_PASSING = {httpx.codes.REQUEST_TIMEOUT, httpx.codes.TOO_MANY_REQUESTS}


class Poster:
    """Posts to one service, and remembers what is wrong with it.

    Attributes:
        trouble: The service's name -> why it takes nothing, and what to do; empty: it does.
    """

    def __init__(self, name: str, fix: str) -> None:
        self._name, self._fix = name, fix
        self._client: httpx.AsyncClient | None = None
        self.trouble: dict[str, str] = {}

    async def post(self, url: str, content: bytes, headers: Mapping[str, str]) -> None:
        """Post once; redirects are not followed.

        Raises:
            NotDeliveredError: It was not taken, or nobody knows; the receiver tells a second time
                by the id in it.
        """
        if self._client is None:
            self._client = httpx.AsyncClient(timeout=_SECONDS)
        try:
            answer = await self._client.post(
                url, content=content, headers={"Content-Type": "application/json", **headers}
            )
        except httpx.HTTPError as error:
            raise NotDeliveredError(
                f"{self._name}: no answer: {error or type(error).__name__}"
            ) from error
        except httpx.InvalidURL as error:
            self._refuse(f"{self._name}: {error}. {self._fix}", error)
        if answer.is_success:
            self.trouble.clear()
            return
        said = f"{self._name} answered HTTP {answer.status_code}: {answer.text[:_SHOWN]}"
        if answer.is_server_error or answer.status_code in _PASSING:
            raise NotDeliveredError(said)
        self._refuse(f"{said}. {self._fix}", None)

    def _refuse(self, text: str, cause: Exception | None) -> None:
        self.trouble[self._name] = text
        raise NotDeliveredError(text, result="refused") from cause

    async def close(self) -> None:
        """Close the connections."""
        if self._client is not None:
            await self._client.aclose()
            self._client = None
