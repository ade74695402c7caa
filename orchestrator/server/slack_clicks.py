"""Buttons in Slack act through the controller, as operators do through the API."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import TYPE_CHECKING

import structlog
from ulid import ULID

from jobs.clock import Clock
from jobs.events import Event
from orchestrator.alerts.rules import AlertRules, Person, read
from orchestrator.controller.controller import Controller
from orchestrator.database.audit import AuditEntry
from orchestrator.errors import BabysitError
from orchestrator.server.audit import NOTES, Notes, note_event, subjects
from orchestrator.settings import Settings

if TYPE_CHECKING:
    from orchestrator.alerts.slack_buttons import Click

_log = structlog.get_logger(__name__)


async def listen(settings: Settings, controller: Controller, clock: Clock) -> None:
    """Act on clicks while this server leads, until cancelled. Needs both tokens of Slack."""
    from orchestrator.alerts.slack_socket import ClickListener  # noqa: PLC0415 (an optional extra)

    bot, app = settings.slack_token, settings.slack_app_token
    if bot is None or app is None:
        return
    names = settings.alerts.split(",")
    rules = read(settings.alerts_rules, names) if settings.alerts_rules else AlertRules()
    tokens = bot.get_secret_value(), app.get_secret_value()
    clicks = AuditedClicks(controller, rules.people, clock)
    listener = ClickListener(
        tokens, settings.slack_url, rules.people, clicks.act, clock, audit=clicks.write
    )
    listener.trouble = controller.clicks_trouble
    await listener.run(lambda: controller.is_leader)


class AuditedClicks:
    """Has clicks decided on, and leaves an entry in the audit log for each, refused ones too.

    Args:
        controller: Decides and stores.
        people: By Slack's id.
        clock: What time it is.
    """

    def __init__(self, controller: Controller, people: Mapping[str, Person], clock: Clock) -> None:
        self._controller, self._people, self._clock = controller, people, clock

    async def act(self, event: Event) -> object:
        """Submit the event of a click, and note what it changed; raises as the controller does."""
        before = subjects(self._controller.state, event)
        noted = Notes()
        NOTES.set(noted)  # of this click's own task
        decided = await self._controller.submit(event)
        note_event(noted, before, subjects(self._controller.state, event))
        return decided

    async def write(self, click: Click, event: Event | None, error: BabysitError | None) -> None:
        """Leave the entry of a click. Not stored is logged: the journal has the event as well."""
        person = self._people.get(click.user)
        noted = NOTES.get() or Notes()
        entry = AuditEntry(
            id=str(ULID()),
            at=self._clock.now(),
            actor=person.name if person else "",
            role=person.role if person else "",
            via="slack",
            subject=click.user,
            action=click.action.replace("babysit_", "slack_"),
            target=getattr(event, "incident", "") or " ".join(click.incidents) or click.run,
            run=click.run or None,
            reason=str(getattr(event, "reason", "")),
            outcome="done" if error is None else "refused",
            detail="" if error is None else str(error),
            event="" if event is None else event.id,
            before=noted.before,
            after=noted.after,
        )
        try:
            await asyncio.shield(self._controller.store.add_audit(entry))
        except BabysitError as trouble:
            _log.error("an entry of the audit log was not stored", error=str(trouble))
