"""Annotations in Grafana: each incident as a region over the dashboards, and the end of a run.

The problem: a curve with a dip says nothing about its cause. And updates of an incident may come
twice, late and in any order, while the answer to a request may be lost.

The design: an annotation bears the id of its incident as a tag. It is looked for by that tag before
one is made, and what it was last made of is remembered, so that an older update changes nothing.
Incidents of one run are tagged with the run, which the dashboard of the run selects by.

Limits: Grafana pages nobody, so this channel goes beside another one. A notice about an incident is
left out, as the incident is shown.

API: https://grafana.com/docs/grafana/latest/developers/http_api/annotations/
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from typing import Any

import httpx

from jobs.clock import Clock
from orchestrator.alerts.keyed_locks import KeyedLocks
from orchestrator.alerts.port import AlertMemory, DictMemory, NotDeliveredError
from orchestrator.core.messages.instructions import IncidentUpdate, Notify
from orchestrator.core.views.remedy_text import incident_remedy
from orchestrator.errors import InvalidError
from orchestrator.settings import Settings

_SECONDS = 15.0
_SHOWN = 200
_PASSING = {httpx.codes.REQUEST_TIMEOUT, httpx.codes.TOO_MANY_REQUESTS}
_FIXES = {
    httpx.codes.UNAUTHORIZED: "Set BABYSIT_GRAFANA_TOKEN to a valid token of a service account",
    httpx.codes.FORBIDDEN: "Give the service account of BABYSIT_GRAFANA_TOKEN the role Editor",
}
_FIX = "Check BABYSIT_GRAFANA_URL: it is the address of Grafana, with its path prefix"


def from_settings(settings: Settings) -> GrafanaChannel:
    """The channel for `grafana` in `BABYSIT_ALERTS`.

    Raises:
        InvalidError: A setting is missing.
    """
    if not settings.grafana_url or settings.grafana_token is None:
        raise InvalidError(
            "the alert channel grafana needs BABYSIT_GRAFANA_URL and BABYSIT_GRAFANA_TOKEN"
        )
    return GrafanaChannel(settings.grafana_url, settings.grafana_token.get_secret_value())


class GrafanaChannel:
    """Makes and changes annotations of one Grafana."""

    channel = "grafana"
    ignored_fields: Mapping[str, str] = {
        "notify.slack": "Grafana shows annotations (BABYSIT_ALERTS=grafana)",
    }

    def __init__(self, url: str, token: str) -> None:
        self._url = url.rstrip("/") + "/api/annotations"
        self._headers = {"Authorization": f"Bearer {token}"}
        self._client: httpx.AsyncClient | None = None
        self._memory: AlertMemory = DictMemory()
        self._clock: Clock | None = None
        self._locks = KeyedLocks()
        self.trouble: dict[str, str] = {}

    async def start(self, memory: AlertMemory, clock: Clock) -> None:
        """Begin with a memory of what each annotation was made of."""
        self._memory, self._clock = memory, clock

    async def close(self) -> None:
        """Close the connections."""
        if self._client is not None:
            await self._client.aclose()
            self._client = None

    async def check(self) -> str:
        """Ask Grafana for an annotation; raises NotDeliveredError with what is wrong."""
        await self._request("GET", params={"tags": "babysit", "limit": 1})
        return "grafana: annotations can be read"

    async def notify(self, notice: Notify) -> None:
        """Annotate the moment of a notice that is not about an incident."""
        assert self._clock is not None  # noqa: S101 (`start` comes first)
        if notice.incident is not None:
            return
        tags = ["babysit", "notice", notice.incident_kind, f"notice:{notice.id}"]
        if notice.run is not None:
            tags.append(f"run_id:{notice.run}")
        if await self._find(f"notice:{notice.id}") is None:
            now = _milliseconds(self._clock.now())
            await self._request("POST", json={"time": now, "tags": tags, "text": notice.text})

    async def update(self, update: IncidentUpdate) -> None:
        """Show an incident as it is now: a region from its begin to its end."""
        # Updates of one incident at once would each find no annotation, and each make one.
        async with self._locks.of(update.incident.id):
            await self._show(update)

    async def _show(self, update: IncidentUpdate) -> None:
        incident = update.incident
        key = f"grafana/{incident.id}"
        known = await self._memory.read(key)
        if known is not None and dt.datetime.fromisoformat(known["at"]) >= update.at:
            return
        body = _annotation(update)
        there = await self._find(f"incident:{incident.id}")
        if there is None:
            await self._request("POST", json=body)
        else:
            await self._request("PATCH", f"/{there}", json=body)
        await self._memory.write(key, {"at": update.at.isoformat()}, run=update.run)

    async def _find(self, tag: str) -> int | None:
        """The id of the annotation with a tag."""
        query = {"tags": tag, "type": "annotation", "limit": 1}
        found = await self._request("GET", params=query)
        return int(found[0]["id"]) if found else None

    async def _request(self, method: str, path: str = "", **arguments: Any) -> Any:
        if self._client is None:
            self._client = httpx.AsyncClient(timeout=_SECONDS, headers=self._headers)
        try:
            answer = await self._client.request(method, self._url + path, **arguments)
            body = answer.json() if answer.is_success else None
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            text = f"grafana: no answer: {error or type(error).__name__}"
            raise NotDeliveredError(text) from error
        except ValueError as error:
            raise self._refused(f"grafana: {self._url} answers with a web page. {_FIX}") from error
        if answer.is_success:
            self.trouble.clear()
            return body
        said = f"grafana answered HTTP {answer.status_code}: {answer.text[:_SHOWN]}"
        if answer.is_server_error or answer.status_code in _PASSING:
            raise NotDeliveredError(said)
        raise self._refused(f"{said}. {_FIXES.get(httpx.codes(answer.status_code), _FIX)}")

    def _refused(self, text: str) -> NotDeliveredError:
        self.trouble["grafana"] = text
        return NotDeliveredError(text, result="refused")


def _annotation(update: IncidentUpdate) -> dict[str, Any]:
    incident = update.incident
    lines = [f"{update.run_name or 'run'}: {incident.kind} ({incident.severity})", incident.reason]
    if incident.remedy is not None:
        lines.append(f"Remedy: {incident_remedy(incident)}")
    if update.lost_seconds is not None:
        lines.append(f"Lost: {update.lost_seconds:.0f} s")
    body: dict[str, Any] = {
        "time": _milliseconds(incident.opened_at),
        "tags": [
            "babysit",
            "incident",
            str(incident.kind),
            incident.severity.value,
            f"run_id:{update.run}",
            f"incident:{incident.id}",
        ],
        "text": "\n".join(filter(None, lines)),
    }
    if incident.resolved_at is not None:
        body["timeEnd"] = _milliseconds(incident.resolved_at)
    return body


def _milliseconds(at: dt.datetime) -> int:
    return int(at.timestamp() * 1000)
