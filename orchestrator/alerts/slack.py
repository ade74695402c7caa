"""Slack's Web API: calls with its rate limits and errors as they concern a sender of notices.

The problem: a call may be refused for good, may have to wait, or may end without an answer, and
then nobody knows whether it took effect. The three must not be confused: what was refused was not
sent, what is unclear must be looked up before it is sent again.

The design: one method for all calls. It waits as long as Slack says after a 429 and goes on; other
callers of the same method wait with it, as each of their calls would extend the limit. A refusal
and an unclear end are errors of their own types. slack-sdk's own retries are off: they would send
a message again that may have arrived.

Limits: this module and :mod:`orchestrator.alerts.slack_socket` alone import slack_sdk.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

import aiohttp
from slack_sdk.errors import SlackApiError, SlackClientError
from slack_sdk.web.async_client import AsyncWebClient

from jobs.clock import Clock
from orchestrator.alerts.port import NotDeliveredError
from orchestrator.alerts.slack_channel import SlackChannel, SlackSettings
from orchestrator.errors import InvalidError
from orchestrator.settings import Settings

_SECONDS = 30
"""A call without an answer after this time is unclear."""
_WAIT_SECONDS = 30.0
"""After a 429 without Retry-After, which Slack always sends."""
_PASSING = {
    "accesslimited",
    "fatal_error",
    "internal_error",
    "request_timeout",
    "service_unavailable",
    "team_added_to_org",
}
"""Codes after which the call may have taken effect, or will later."""
_LIMITED = {"ratelimited", "rate_limited", "message_limit_exceeded"}


class SlackRefusedError(NotDeliveredError):
    """Slack has refused a call: it took no effect.

    Attributes:
        code: Slack's `error`.
        needed: Slack's `needed`: the scope that is missing; else empty.
    """

    def __init__(self, code: str, needed: str = "") -> None:
        super().__init__(f"Slack answered {code}")
        self.code, self.needed = code, needed


class SlackWeb:
    """Calls Slack with one token."""

    def __init__(self, token: str, url: str, clock: Clock) -> None:
        self._token, self._url, self._clock = token, url, clock
        self._client: AsyncWebClient | None = None
        self._session: aiohttp.ClientSession | None = None
        self._opens: defaultdict[str, float] = defaultdict(float)
        """Method to the monotonic time before which it is not called."""

    async def call(self, method: str, **arguments: Any) -> Mapping[str, Any]:
        """Call a method such as `chat.postMessage`; its answer.

        Waits as long as rate limits demand.

        Raises:
            SlackRefusedError: It took no effect.
            NotDeliveredError: There was no answer: it may have taken effect.
        """
        function = getattr(self._connected(), method.replace(".", "_"))
        while True:
            if (left := self._opens[method] - self._clock.monotonic()) > 0:
                await self._clock.sleep(left)
            try:
                answer = await function(**arguments)
            except SlackApiError as error:
                pause = _refusal(error)
                self._opens[method] = self._clock.monotonic() + pause
            except (aiohttp.ClientError, SlackClientError, OSError, TimeoutError) as error:
                why = str(error) or type(error).__name__
                raise NotDeliveredError(f"no answer from {self._url}: {why}") from error
            else:
                body: Mapping[str, Any] = answer.data
                return {**body, "scopes": answer.headers.get("x-oauth-scopes", "")}

    def _connected(self) -> AsyncWebClient:
        if self._client is None:
            timeout = aiohttp.ClientTimeout(total=_SECONDS)
            self._session = aiohttp.ClientSession(timeout=timeout, trust_env=True)
            self._client = AsyncWebClient(
                self._token,
                self._url,
                timeout=_SECONDS,
                session=self._session,
                retry_handlers=[],
            )
        return self._client

    async def close(self) -> None:
        """Close the connections."""
        if self._session is not None:
            await self._session.close()
        self._session = self._client = None


def _refusal(error: SlackApiError) -> float:
    """Seconds to wait after a rate limit; raises what anything else means."""
    answer = error.response
    status = getattr(answer, "status_code", 0) or getattr(answer, "status", 0)
    data = getattr(answer, "data", None)
    body = data if isinstance(data, dict) else {}
    code = str(body.get("error", ""))
    if status == HTTPStatus.TOO_MANY_REQUESTS or code in _LIMITED:
        return _seconds(getattr(answer, "headers", {}))
    if not code or code in _PASSING or status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        raise NotDeliveredError(f"Slack answered {code or f'HTTP {status}'}") from error
    raise SlackRefusedError(code, str(body.get("needed", ""))) from error


def _seconds(headers: Mapping[str, Any]) -> float:
    names = {str(name).lower(): value for name, value in headers.items()}
    try:
        return max(0.0, float(names["retry-after"]))
    except (KeyError, ValueError):
        return _WAIT_SECONDS


def from_settings(settings: Settings) -> SlackChannel:
    """The channel for `BABYSIT_ALERTS=slack`.

    Raises:
        InvalidError: A setting that it needs is missing.
    """
    token = settings.slack_token.get_secret_value() if settings.slack_token else ""
    if not token or not settings.slack_channel:
        missing = "BABYSIT_SLACK_TOKEN" if not token else "BABYSIT_SLACK_CHANNEL"
        raise InvalidError(f"BABYSIT_ALERTS=slack needs {missing}; see alerts.md")
    return SlackChannel(
        lambda clock: SlackWeb(token, settings.slack_url, clock),
        SlackSettings(
            conversation=settings.slack_channel,
            severity=settings.alerts_severity,
            link=settings.alerts_link,
            mention=settings.slack_mention,
            buttons=settings.slack_app_token is not None,
        ),
    )
