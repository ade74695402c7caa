"""PagerDuty, Events API v2: critical notices page; incidents acknowledge and resolve the page.

The problem: events may come late and in any order, and a page about a run that has failed must not
resolve by itself because the incidents of the run end with it.

The design: a notice triggers the alert of its problem (the dedup key). What triggered it is
remembered. An update of the incident acknowledges or resolves that alert, unless both were decided
together: then the notice is about the end, and a person resolves it.

API: https://developer.pagerduty.com/docs/events-api-v2-overview
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from jobs.clock import Clock
from monitors.types import Severity
from orchestrator.alerts.keyed_locks import KeyedLocks
from orchestrator.alerts.port import AlertMemory, DictMemory
from orchestrator.alerts.posting import Poster
from orchestrator.alerts.threads import at_least
from orchestrator.core.messages.instructions import IncidentUpdate, Notify
from orchestrator.core.model.states import IncidentState
from orchestrator.errors import InvalidError
from orchestrator.settings import Settings

_SUMMARY, _KEY = 1024, 255
"""Longest summary and dedup key that the API takes, in characters."""


def from_settings(settings: Settings) -> PagerDutyChannel:
    """The channel for `pagerduty` in `BABYSIT_ALERTS`.

    Raises:
        InvalidError: The routing key is missing.
    """
    if settings.pagerduty_key is None:
        raise InvalidError("the alert channel pagerduty needs BABYSIT_PAGERDUTY_KEY")
    key = settings.pagerduty_key.get_secret_value()
    return PagerDutyChannel(key, settings.pagerduty_url, settings.alerts_link)


class PagerDutyChannel:
    """Triggers, acknowledges and resolves alerts of one service."""

    channel = "pagerduty"
    ignored_fields: Mapping[str, str] = {
        "notify.slack": "notices go to PagerDuty (BABYSIT_ALERTS=pagerduty)",
    }

    def __init__(self, key: str, url: str, link: str) -> None:
        self._key, self._url, self._link = key, url, link
        self._poster = Poster(
            "pagerduty", "Set BABYSIT_PAGERDUTY_KEY to the integration key of an Events v2 service"
        )
        self.trouble: Mapping[str, str] = self._poster.trouble
        self._memory: AlertMemory = DictMemory()
        self._locks = KeyedLocks()

    async def start(self, memory: AlertMemory, _clock: Clock) -> None:
        """Begin with a memory."""
        self._memory = memory

    async def close(self) -> None:
        """Close the connections."""
        await self._poster.close()

    async def notify(self, notice: Notify) -> None:
        """Page about a critical notice; others have no effect.

        Raises:
            NotDeliveredError: PagerDuty has not taken it; a second call makes no second alert.
        """
        if not at_least(notice.severity, Severity.CRITICAL):
            return
        payload = {
            "summary": notice.text[:_SUMMARY],
            "source": notice.run_name or "babysit",
            "severity": "critical",
            "component": notice.queue or None,
            "group": notice.project or None,
            "class": notice.incident_kind,
            "custom_details": {"run": notice.run, "incident": notice.incident},
        }
        links = []
        if self._link and notice.run:
            links = [{"href": self._link.replace("{run}", notice.run), "text": "Open the run"}]
        key = f"pagerduty/{notice.dedup_key}"
        async with self._locks.of(key):  # an end in the meantime must find what it ends
            await self._send("trigger", notice.dedup_key, payload=payload, links=links)
            await self._memory.write(key, {"cause": notice.cause}, run=notice.run)

    async def update(self, update: IncidentUpdate) -> None:
        """Acknowledge or resolve the page about an incident, if there was one.

        Raises:
            NotDeliveredError: PagerDuty has not taken it.
        """
        resolved = update.incident.state is IncidentState.RESOLVED
        if not resolved and update.incident.acknowledged_by is None:
            return
        key = f"pagerduty/{update.dedup_key}"
        async with self._locks.of(key):
            paged = await self._memory.read(key)
            if paged is None or (resolved and paged["cause"] == update.cause):
                return
            await self._send("resolve" if resolved else "acknowledge", update.dedup_key)

    async def _send(self, action: str, dedup_key: str, **more: Any) -> None:
        body = {
            "routing_key": self._key,
            "event_action": action,
            "dedup_key": dedup_key[-_KEY:],
            "client": "babysit",
            **more,
        }
        await self._poster.post(self._url, json.dumps(body).encode(), {})
