"""Several channels as one: routes, quiet hours, and escalations of pages that nobody takes.

The problem: a notice is one entry of the outbox and may go to several channels, of which one may be
away; the others must not get it again. A page that nobody acknowledges must go to the next person,
also if the server restarts in between.

The design: which channels have a notice is stored when not all do. A quiet notice simply waits: it
stays in the outbox. Pages that wait for an acknowledgement are stored, and looked at now and then
by the server that leads.

Limits: an escalation may come `LOOK_SECONDS` late, and twice if the server dies as it sends it.
"""

from __future__ import annotations

import asyncio
import datetime as dt
from collections import ChainMap, Counter
from collections.abc import Callable, Mapping
from typing import Any

import structlog

from jobs.clock import Clock
from monitors.types import Severity
from orchestrator.alerts.digests import Digests
from orchestrator.alerts.port import (
    SILENT,
    AlertMemory,
    CheckedChannel,
    CountedNotifier,
    DictMemory,
    NotDeliveredError,
    Notifier,
    RunningChannel,
    TendedChannel,
)
from orchestrator.alerts.rules import AlertRules, Escalation
from orchestrator.alerts.threads import Item, severity_of
from orchestrator.core.messages.instructions import IncidentUpdate, Notify
from orchestrator.core.model.entities import Incident
from orchestrator.core.model.states import IncidentState

_log = structlog.get_logger(__name__)
LOOK_SECONDS = 10.0
_WAITING, _SETTLED = "escalations", "escalations/settled"
_SETTLED_MOST = 500


class Router:
    """Delivers through the channels that the rules name.

    Attributes:
        counts: Outcomes by channel and result.
        trouble: Why channels do not deliver, by place.
    """

    def __init__(self, channels: Mapping[str, Notifier], rules: AlertRules) -> None:
        self.channel = "+".join(channels)
        self._inner, self._rules = channels, rules
        self._channels = {name: CountedNotifier(each) for name, each in channels.items()}
        self.counts: Counter[tuple[str, str]] = Counter()
        for each in self._channels.values():
            self.counts |= each.counts
            each.counts = self.counts
        for name in channels:
            for result in ("delivered", "failed"):
                self.counts[name, result] += 0
        self.trouble: Mapping[str, str] = ChainMap(
            *(dict_of(each.trouble) for each in self._channels.values())
        )
        ignored = [each.ignored_fields for each in channels.values()]
        # A field has an effect if one channel heeds it.
        self.ignored_fields: Mapping[str, str] = {
            field: why for field, why in ignored[0].items() if all(field in i for i in ignored)
        }
        self._memory: AlertMemory = DictMemory()
        self._clock: Clock | None = None
        self._digests = Digests(rules.digest, self._memory)
        self._lock = asyncio.Lock()  # held from reading to writing what waits and what is settled

    async def start(self, memory: AlertMemory, clock: Clock) -> None:
        """Begin with a memory, which all channels share."""
        self._memory, self._clock = memory, clock
        self._digests = Digests(self._rules.digest, memory)
        for each in self._inner.values():
            if isinstance(each, RunningChannel):
                await each.start(memory, clock)

    async def close(self) -> None:
        """Close the connections of all channels."""
        for each in self._inner.values():
            if isinstance(each, RunningChannel):
                await each.close()

    async def check(self) -> str:
        """Check every channel that can be; raises NotDeliveredError with all that is wrong."""
        said, wrong = [], []
        for each in self._inner.values():
            if isinstance(each, CheckedChannel):
                try:
                    said.append(await each.check())
                except NotDeliveredError as error:
                    wrong.append(str(error))
        if wrong:
            raise NotDeliveredError("; ".join(wrong))
        return "; ".join(said) or f"{', '.join(self._inner)}: nothing to check"

    async def notify(self, notice: Notify) -> None:
        """Deliver a notice to the channels of its route, after quiet hours.

        Raises:
            NotDeliveredError: A channel has not taken it; a second call leaves out those that have.
        """
        await self._deliver(notice)
        page = notice.severity is Severity.CRITICAL and notice.incident is not None
        if not (page and self._rules.escalation) or notice.actor.startswith("operator:"):
            return
        entry = {"notice": notice.model_dump(mode="json"), "stage": 0, "since": self._now()}
        async with self._lock:
            if notice.incident not in (await self._memory.read(_SETTLED) or {}):
                await self._change_waiting(lambda waiting: waiting.setdefault(notice.id, entry))

    async def update(self, update: IncidentUpdate) -> None:
        """Show an incident in the channels of its route; raises as `notify` does."""
        incident = update.incident
        if self._rules.escalation:
            await self._heed(incident)
        await self._deliver(update)

    async def _heed(self, incident: Incident) -> None:
        """End the escalations of an incident that is answered or over; put them off in a silence.

        What is settled is kept: its page may come out of the outbox later.
        """
        if incident.acknowledged_by or incident.state is IncidentState.RESOLVED:
            async with self._lock:
                settled = dict(await self._memory.read(_SETTLED) or {})
                if incident.id not in settled:
                    kept = [*settled, incident.id][-_SETTLED_MOST:]
                    await self._memory.write(_SETTLED, dict.fromkeys(kept, True))
                await self._change_waiting(lambda waiting: _settle(waiting, incident.id))
        elif incident.silenced_until is not None:
            until = incident.silenced_until.timestamp()
            async with self._lock:
                await self._change_waiting(lambda waiting: _put_off(waiting, incident.id, until))

    async def _deliver(self, item: Item) -> None:
        assert self._clock is not None  # noqa: S101 (`start` comes first)
        report = isinstance(item, Notify) and item.report
        pause = 0.0 if report else self._rules.quiet.seconds(severity_of(item), self._clock.now())
        if pause > 0:
            await self._clock.sleep(pause)
        names, item = self._routed(item)
        if self._digests.takes(item):
            await self._digests.collect(item, names, self._clock.now())
            return
        await self._send_to(names, item)

    async def _send_to(self, names: list[str], item: Item) -> None:
        key = f"routed/{item.id}"
        stored = await self._memory.read(key) if len(names) > 1 else None
        done = list(stored["done"]) if stored else []
        errors = await self._send(item, [name for name in names if name not in done], done)
        if errors:
            if len(names) > 1:
                await self._memory.write(key, {"done": done}, run=item.run)
            results = {getattr(error, "result", "failed") for error in errors}
            text = "; ".join(str(error) or type(error).__name__ for error in errors)
            raise NotDeliveredError(text, result=results.pop()) from errors[0]

    async def _send(self, item: Item, names: list[str], done: list[str]) -> list[Exception]:
        """Send to channels side by side; adds to `done` what has arrived; the errors of others."""

        async def one(name: str) -> None:
            channel = self._channels[name]
            await (channel.notify(item) if isinstance(item, Notify) else channel.update(item))
            done.append(name)

        outcomes = await asyncio.gather(*map(one, names), return_exceptions=True)
        for outcome in outcomes:
            if isinstance(outcome, BaseException) and not isinstance(outcome, Exception):
                raise outcome
        return [outcome for outcome in outcomes if isinstance(outcome, Exception)]

    def _routed(self, item: Item) -> tuple[list[str], Item]:
        """The channels of the first route that takes an item, and the item as it goes there.

        A question whose route reaches nobody goes to every channel: its remedy starts once it is
        delivered, and nobody would have been asked.
        """
        for route in self._rules.routes:
            if route.takes(item):
                if route.slack and item.channel is None:
                    item = item.model_copy(update={"channel": route.slack})
                asks = isinstance(item, Notify) and item.asks
                names = list(dict.fromkeys(route.to))
                unread = asks and SILENT.issuperset(names)
                return (list(self._channels) if unread else names), item
        return list(self._channels), item

    # escalations

    async def tend(self, leads: Callable[[], bool]) -> None:
        """Escalate pages that nobody takes while this server leads, until cancelled.

        Channels that have something to do by themselves do it meanwhile.
        """
        async with asyncio.TaskGroup() as group:
            for each in self._inner.values():
                if isinstance(each, TendedChannel):
                    group.create_task(each.tend(leads))
            group.create_task(self._tend(leads))

    async def _tend(self, leads: Callable[[], bool]) -> None:
        assert self._clock is not None  # noqa: S101 (`start` comes first)
        while True:
            await self._clock.sleep(LOOK_SECONDS)
            for work in (self.escalate, self.send_digests):
                try:
                    if leads():
                        await work()
                except Exception as error:  # noqa: BLE001 (whatever a channel or database raises)
                    _log.warning("not delivered, will retry", what=work.__name__, error=str(error))

    async def send_digests(self) -> None:
        """Send what was collected, where its time is over, once quiet hours are.

        Raises:
            NotDeliveredError: Some receivers could not be reached; the others have their message.
        """
        failed: list[NotDeliveredError] = []
        for names, notice in await self._digests.due(self._now_utc()):
            if self._rules.quiet.seconds(notice.severity, self._now_utc()) <= 0:
                try:
                    await self._send_to(names, notice)
                except NotDeliveredError as error:
                    failed.append(error)
                else:
                    await self._digests.sent(notice)
        if failed:
            raise failed[0]

    async def escalate(self) -> None:
        """Send each page that has waited its time to the next on the list."""
        if not self._rules.escalation:
            return
        failed: list[Exception] = []
        for id_, entry in (await self._memory.read(_WAITING) or {}).items():
            if entry["stage"] >= len(self._rules.escalation):
                await self._replace_waiting(id_, None)
                continue
            stage = self._rules.escalation[entry["stage"]]
            if self._now() - entry["since"] < stage.after:
                continue
            number = entry["stage"] + 1
            notice = Notify.model_validate(entry["notice"])
            text = f"{notice.text} (nobody has acknowledged it)"
            more = {"id": f"{id_}/{number}", "text": text, "asks": False, **self._whom(stage)}
            if errors := await self._send(notice.model_copy(update=more), stage.to, []):
                failed += errors
                continue
            await self._replace_waiting(id_, {**entry, "stage": number, "since": self._now()})
        if failed:
            raise failed[0]

    def _whom(self, stage: Escalation) -> dict[str, str]:
        """The persons of a stage, in the words of Slack and of mail."""
        people = {
            id_: each for id_, each in self._rules.people.items() if each.name in stage.people
        }
        return {
            "mention": " ".join(f"<@{id_}>" for id_ in people),
            "mail_to": ", ".join(each.email for each in people.values() if each.email),
        }

    async def _replace_waiting(self, id_: str, entry: Mapping[str, Any] | None) -> None:
        """Replace a page that waits, or remove it; no effect if it was acknowledged meanwhile."""

        def change(waiting: dict[str, Any]) -> None:
            if waiting.pop(id_, None) is not None and entry is not None:
                waiting[id_] = entry

        async with self._lock:
            await self._change_waiting(change)

    async def _change_waiting(self, change: Callable[[dict[str, Any]], object]) -> None:
        """Change the pages that wait. The caller holds the lock."""
        before = await self._memory.read(_WAITING) or {}
        waiting = dict(before)
        change(waiting)
        if waiting != before:
            await self._memory.write(_WAITING, waiting)

    def _now_utc(self) -> dt.datetime:
        assert self._clock is not None  # noqa: S101 (`start` comes first)
        return self._clock.now()

    def _now(self) -> float:
        return self._now_utc().timestamp()


def dict_of(trouble: Mapping[str, str]) -> dict[str, str]:
    """A table of troubles that changes; a channel without one has an empty one."""
    return trouble if isinstance(trouble, dict) else {}


def _put_off(waiting: dict[str, Any], incident: str, until: float) -> None:
    for id_, entry in waiting.items():
        if entry["notice"]["incident"] == incident:
            waiting[id_] = {**entry, "since": max(entry["since"], until)}


def _settle(waiting: dict[str, Any], incident: str) -> None:
    for id_ in [i for i, entry in waiting.items() if entry["notice"]["incident"] == incident]:
        del waiting[id_]
