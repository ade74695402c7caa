"""Buttons in Slack act through the controller, as operators do through the API."""

from __future__ import annotations

from jobs.clock import Clock
from orchestrator.alerts.rules import AlertRules, read
from orchestrator.controller.controller import Controller
from orchestrator.settings import Settings


async def listen(settings: Settings, controller: Controller, clock: Clock) -> None:
    """Act on clicks while this server leads, until cancelled. Needs both tokens of Slack."""
    from orchestrator.alerts.slack_socket import ClickListener  # noqa: PLC0415 (an optional extra)

    bot, app = settings.slack_token, settings.slack_app_token
    if bot is None or app is None:
        return
    names = settings.alerts.split(",")
    rules = read(settings.alerts_rules, names) if settings.alerts_rules else AlertRules()
    tokens = bot.get_secret_value(), app.get_secret_value()
    listener = ClickListener(tokens, settings.slack_url, rules.people, controller.submit, clock)
    await listener.run(lambda: controller.is_leader)
