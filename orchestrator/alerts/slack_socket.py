"""Clicks on buttons, over Slack's Socket Mode: no address of ours need be open to the internet.

The problem: Slack wants each envelope acknowledged within 3 s, and sends it again otherwise; it
asks for new connections as it likes; only the server that leads may act.

The design: an envelope is acknowledged before anything else. Then the click becomes an event of an
operator and is decided on like one from the command line, once, however often it was sent. A
refusal is said to the person alone. slack-sdk's client connects anew when Slack asks for it.

Limits: a click that arrives as the server dies is lost; the person sees that nothing changed.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import aiohttp
import structlog
from slack_sdk.errors import SlackApiError, SlackClientError
from slack_sdk.socket_mode.aiohttp import SocketModeClient
from slack_sdk.socket_mode.async_client import AsyncBaseSocketModeClient
from slack_sdk.socket_mode.request import SocketModeRequest
from slack_sdk.socket_mode.response import SocketModeResponse
from slack_sdk.web.async_client import AsyncWebClient
from ulid import ULID

from jobs.clock import Clock
from jobs.events import Event
from orchestrator.alerts.rules import Person
from orchestrator.alerts.slack_buttons import Click, events_of, read_click
from orchestrator.errors import BabysitError

_log = structlog.get_logger(__name__)
_LOOK_SECONDS = 1.0
_RETRY_SECONDS = 10.0
_SEEN = 1000
_SHOWN = 3000
PLACE = "buttons"
"""The place of a trouble with clicks, among the troubles of channels."""
Act = Callable[[Event], Awaitable[object]]
Audit = Callable[[Click, Event | None, BabysitError | None], Awaitable[None]]
"""Told of each click: what it asked for, unless that was refused; and why it was refused."""


def _explain(error: Exception) -> str:
    """Why no click arrives, and what to do."""
    if not isinstance(error, SlackApiError):
        return f"Buttons in Slack do not work: {error or type(error).__name__}; it is tried again"
    return (
        f"Buttons in Slack do not work: Slack answered {error.response['error']}. Set"
        " BABYSIT_SLACK_APP_TOKEN to an app-level token (xapp-…) with the scope connections:write,"
        " and enable Socket Mode (api.slack.com/apps)"
    )


class _Client(SocketModeClient):
    """Says whether Slack lets us connect: slack-sdk itself only logs that, and tries for ever."""

    def __init__(
        self, app: str, web: AsyncWebClient, told: Callable[[Exception | None], None]
    ) -> None:
        super().__init__(app, web_client=web)
        self._told = told

    async def issue_new_wss_url(self) -> str:
        """Ask Slack where to connect to: at first, and for each new connection."""
        try:
            url = await super().issue_new_wss_url()
        except Exception as error:
            self._told(error)
            raise
        self._told(None)
        return url


class ClickListener:
    """Turns clicks into events.

    Args:
        tokens: The bot token and the app token.
        url: Of the Web API.
        people: Who may click what, by Slack's id.
        act: Has an event decided on; raises BabysitError where it is refused.
        clock: The time of the events.
        audit: Told of each click; None: nobody is.

    Attributes:
        trouble: By the place `buttons`, why no click arrives, while none does.
    """

    def __init__(
        self,
        tokens: tuple[str, str],
        url: str,
        people: Mapping[str, Person],
        act: Act,
        clock: Clock,
        *,
        audit: Audit | None = None,
    ) -> None:
        self._audit = audit
        self.trouble: dict[str, str] = {}
        self._tokens, self._url, self._people = tokens, url, people
        self._act, self._clock = act, clock
        self._seen: deque[str] = deque(maxlen=_SEEN)
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self, leads: Callable[[], bool]) -> None:
        """Listen while this server leads, until cancelled."""
        while True:
            if leads():
                try:
                    await self._session(leads)
                except (SlackApiError, SlackClientError, aiohttp.ClientError, OSError) as error:
                    _log.warning("no click on a button arrives, will retry", error=str(error))
                    await self._clock.sleep(_RETRY_SECONDS)
            await self._clock.sleep(_LOOK_SECONDS)

    async def _session(self, leads: Callable[[], bool]) -> None:
        bot, app = self._tokens
        client: Any = _Client(app, AsyncWebClient(bot, self._url), self._told)
        client.socket_mode_request_listeners.append(self._on_request)
        connecting = asyncio.create_task(client.connect())  # tries until it is cancelled
        try:
            while leads():
                await self._clock.sleep(_LOOK_SECONDS)
        finally:
            connecting.cancel()
            await asyncio.gather(connecting, return_exceptions=True)
            self.trouble.pop(PLACE, None)
            await client.close()
            for task in list(self._tasks):
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    def _told(self, error: Exception | None) -> None:
        if error is None:
            self.trouble.pop(PLACE, None)
        else:
            self.trouble[PLACE] = _explain(error)

    async def _on_request(
        self, client: AsyncBaseSocketModeClient, request: SocketModeRequest
    ) -> None:
        await client.send_socket_mode_response(SocketModeResponse(request.envelope_id))
        click = read_click(request.payload) if request.type == "interactive" else None
        if click is None or click.id in self._seen:
            return
        self._seen.append(click.id)
        task = asyncio.create_task(self._carry_out(client, click))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _carry_out(self, client: Any, click: Click) -> None:
        refusals: list[str] = []
        try:
            now = self._clock.now()
            asked = events_of(click, self._people, new_id=lambda: str(ULID()), now=now)
        except BabysitError as error:
            await self._tell_audit(click, None, error)
            asked, refusals = [], [str(error)]
        for event in asked:
            try:
                await self._act(event)
                await self._tell_audit(click, event, None)
            except BabysitError as error:
                await self._tell_audit(click, event, error)
                refusals.append(str(error))
        if refusals:
            text = "Not done: " + "; ".join(dict.fromkeys(refusals))
            with contextlib.suppress(SlackClientError, aiohttp.ClientError, OSError):
                await client.web_client.chat_postEphemeral(
                    channel=click.channel, user=click.user, text=text[:_SHOWN]
                )

    async def _tell_audit(
        self, click: Click, event: Event | None, error: BabysitError | None
    ) -> None:
        if self._audit is not None:
            await self._audit(click, event, error)
