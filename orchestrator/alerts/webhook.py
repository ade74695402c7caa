"""Notices and incidents to any URL, signed, as https://www.standardwebhooks.com has it.

Each message has an id (`webhook-id`) that stays the same however often it is sent: the outbox
delivers at least once, and the receiver leaves out what it has seen.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
from collections.abc import Mapping

from jobs.clock import Clock
from orchestrator.alerts.port import AlertMemory
from orchestrator.alerts.posting import Poster
from orchestrator.core.messages.instructions import IncidentUpdate, Notify
from orchestrator.errors import InvalidError
from orchestrator.settings import Settings

_PREFIX = "whsec_"


def from_settings(settings: Settings) -> WebhookChannel:
    """The channel for `webhook` in `BABYSIT_ALERTS`.

    Raises:
        InvalidError: The URL or the secret is missing, or the secret is not base64.
    """
    if not settings.webhook_url or settings.webhook_secret is None:
        raise InvalidError(
            "the alert channel webhook needs BABYSIT_WEBHOOK_URL and BABYSIT_WEBHOOK_SECRET"
        )
    secret = settings.webhook_secret.get_secret_value().removeprefix(_PREFIX)
    try:
        key = base64.b64decode(secret, validate=True)
    except binascii.Error as error:
        raise InvalidError(
            "BABYSIT_WEBHOOK_SECRET: expected base64, such as `openssl rand -base64 24` prints"
        ) from error
    return WebhookChannel(settings.webhook_url, key)


def signature(key: bytes, id_: str, timestamp: int, content: bytes) -> str:
    """The value of `webhook-signature`: HMAC-SHA256 over `ID.TIMESTAMP.CONTENT`, in base64."""
    signed = b".".join((id_.encode(), str(timestamp).encode(), content))
    return "v1," + base64.b64encode(hmac.digest(key, signed, hashlib.sha256)).decode()


class WebhookChannel:
    """Posts every notice and every update of an incident."""

    channel = "webhook"
    ignored_fields: Mapping[str, str] = {
        "notify.slack": "notices go to a webhook (BABYSIT_ALERTS=webhook)",
    }

    def __init__(self, url: str, key: bytes) -> None:
        self._url, self._key = url, key
        self._poster = Poster("webhook", "Correct BABYSIT_WEBHOOK_URL, or what answers there")
        self.trouble: Mapping[str, str] = self._poster.trouble
        self._clock: Clock | None = None

    async def start(self, _memory: AlertMemory, clock: Clock) -> None:
        """Begin; nothing is to be remembered."""
        self._clock = clock

    async def close(self) -> None:
        """Close the connections."""
        await self._poster.close()

    async def notify(self, notice: Notify) -> None:
        """Post a notice, type `notice`; raises NotDeliveredError unless it was taken."""
        await self._post("notice", notice)

    async def update(self, update: IncidentUpdate) -> None:
        """Post an update, type `incident`; raises NotDeliveredError unless it was taken."""
        await self._post("incident", update)

    async def _post(self, kind: str, item: Notify | IncidentUpdate) -> None:
        assert self._clock is not None  # noqa: S101 (`start` comes first)
        now = self._clock.now()
        body = {
            "type": kind,
            "timestamp": now.isoformat(),
            "data": {**item.model_dump(mode="json"), "dedup_key": item.dedup_key},
        }
        content, timestamp = json.dumps(body).encode(), int(now.timestamp())
        headers = {
            "webhook-id": item.id,
            "webhook-timestamp": str(timestamp),
            "webhook-signature": signature(self._key, item.id, timestamp, content),
        }
        await self._poster.post(self._url, content, headers)
