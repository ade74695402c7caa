"""The digest: incidents and notices of low severity, collected and sent as one message.

The problem: a warning each minute teaches people to read none. What is collected was taken out of
the outbox, so it must be neither lost nor sent twice if the server dies.

The design: what has the same receivers is collected in one stored object, by incident, so that only
its newest state is in the message. Before a message is sent it is stored whole with its id; the
next server sends the same one, which a channel takes once.

Limits: the newest `MOST` lines are shown, the others counted. Mail has no ids that all programs
heed, so a mail may come twice.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import json
from typing import TYPE_CHECKING, Any

from orchestrator.alerts.port import AlertMemory
from orchestrator.alerts.threads import Item, Thread, at_least, severity_of, worst
from orchestrator.core.messages.instructions import IncidentUpdate, Notify
from orchestrator.core.model.entities import Incident
from orchestrator.core.model.vocabulary import Response
from orchestrator.core.text import counted

if TYPE_CHECKING:
    from orchestrator.alerts.rules import Digest

_KEY = "digests"
MOST = 25
"""Lines in a message: Slack shows 3000 characters in a section."""
_LINE = 100
_SEEN = 500


class Digests:
    """The collected lines, by their receivers.

    Args:
        rule: What is collected; None: nothing.
        memory: Where it is kept.
    """

    def __init__(self, rule: Digest | None, memory: AlertMemory) -> None:
        self._rule, self._memory = rule, memory
        self._lock = asyncio.Lock()

    def takes(self, item: Item) -> bool:
        """True if an item is collected: it is of low severity, and asks for nothing."""
        if self._rule is None or not at_least(self._rule.severity, severity_of(item)):
            return False
        if isinstance(item, IncidentUpdate):
            # A question is a message of its own, which shows the answer and the end as well.
            return not _was_asked(item.incident)
        return not (item.asks or item.report)

    async def collect(self, item: Item, names: list[str], now: dt.datetime) -> None:
        """Keep an item for the next message to its receivers; the second time has no effect."""
        group_key = json.dumps([names, item.channel])
        async with self._lock:
            groups = dict(await self._memory.read(_KEY) or {})
            group: dict[str, Any] = dict(groups.get(group_key) or {"lines": {}, "seen": []})
            if item.id in group["seen"]:
                return
            about = item.incident.id if isinstance(item, IncidentUpdate) else item.id
            at = item.at if isinstance(item, IncidentUpdate) else now
            known = group["lines"].get(about)
            if known is None or known["at"] <= at.isoformat():
                line = {"text": _line(item), "severity": severity_of(item), "at": at.isoformat()}
                group["lines"] = {**group["lines"], about: line}
            group["since"] = group.get("since") or now.isoformat()
            group["seen"] = [*group["seen"], item.id][-_SEEN:]
            groups[group_key] = group
            await self._memory.write(_KEY, groups)

    async def due(self, now: dt.datetime) -> list[tuple[list[str], Notify]]:
        """Messages that are to be sent now, with their channels; stored until they are `sent`."""
        if self._rule is None:
            return []
        async with self._lock:
            before = await self._memory.read(_KEY) or {}
            groups = dict(before)
            for key, group in before.items():
                since = group.get("since")
                waited = since is not None and (
                    (now - dt.datetime.fromisoformat(since)).total_seconds() >= self._rule.every
                )
                if waited and not group.get("sending"):
                    notice = _notice(key, group)
                    groups[key] = {
                        "lines": {},
                        "seen": group["seen"],
                        "sending": notice.model_dump(mode="json"),
                    }
            if groups != before:
                await self._memory.write(_KEY, groups)
        return [
            (json.loads(key)[0], Notify.model_validate(group["sending"]))
            for key, group in groups.items()
            if group.get("sending")
        ]

    async def sent(self, notice: Notify) -> None:
        """Forget a message that was delivered."""
        async with self._lock:
            groups = dict(await self._memory.read(_KEY) or {})
            for key, group in groups.items():
                if (group.get("sending") or {}).get("id") == notice.id:
                    groups[key] = {**group, "sending": None}
            await self._memory.write(_KEY, groups)


def _was_asked(incident: Incident) -> bool:
    known = incident.remedy_at is not None or incident.remedy_step is not None
    return known or incident.response is Response.ASKED


def _line(item: Item) -> str:
    if isinstance(item, Notify):
        return item.text
    thread = Thread(key=item.problem)
    thread.take([item])
    name = item.run_name or item.run
    return f"{name}: {item.incident.kind}: {item.incident.reason}. {thread.standing}"


def _notice(key: str, group: dict[str, Any]) -> Notify:
    lines = sorted(group["lines"].values(), key=lambda line: line["at"])
    shown = [f"• {line['text'][:_LINE]}" for line in lines[-MOST:]]
    left = len(lines) - len(shown)
    more = [f"and {left} before"] if left else []
    title = (
        f"Digest since {group['since'][:16].replace('T', ' ')} UTC: {counted(len(lines), 'item')}"
    )
    id_ = f"digest/{group['since']}/{key}"
    return Notify(
        id=id_,
        cause=id_,
        run=None,
        reason="digest",
        severity=worst([line["severity"] for line in lines]),
        text="\n".join([title, *shown, *more]),
        incident_kind="digest",
        channel=json.loads(key)[1],
        cascade=id_,
        report=True,
    )
