"""Makes the alert channel that `BABYSIT_ALERTS` names.

A channel is one module with a function `from_settings(settings)`, and one row in
:data:`CHANNELS`. The module is imported only when it is chosen, so a client library that is an
optional extra is needed by nobody else.
"""

from __future__ import annotations

from jobs.clock import Clock
from orchestrator.alerts.port import SILENT, CheckedChannel, DictMemory, Notifier, RunningChannel
from orchestrator.alerts.router import Router
from orchestrator.alerts.rules import AlertRules, read
from orchestrator.errors import InvalidError
from orchestrator.registry import make
from orchestrator.settings import Settings

CHANNELS = {
    "log": "orchestrator.alerts.log:from_settings",
    "slack": "orchestrator.alerts.slack:from_settings",
    "webhook": "orchestrator.alerts.webhook:from_settings",
    "pagerduty": "orchestrator.alerts.pagerduty:from_settings",
    "email": "orchestrator.alerts.mail:from_settings",
    "grafana": "orchestrator.alerts.grafana:from_settings",
}
"""Name in `BABYSIT_ALERTS` -> `module:function` that makes the channel."""


def make_channel(settings: Settings, name: str) -> Notifier:
    """One channel by its name, whichever ones `settings.alerts` names.

    Raises:
        InvalidError: No such channel; the message lists those that exist. Or a setting is missing.
    """
    channel: Notifier = make("BABYSIT_ALERTS", name, CHANNELS)(settings)
    return channel


def make_notifier(settings: Settings) -> Notifier:
    """The alert channel that `settings.alerts` names; of several, a router to them.

    Raises:
        InvalidError: No such channel; the message lists those that exist. Or a setting of a channel
            is missing, the rules are wrong, or every channel is silent.
    """
    names = list(dict.fromkeys(name.strip() for name in settings.alerts.split(",")))
    if SILENT.issuperset(names):
        raise InvalidError(
            f"BABYSIT_ALERTS={settings.alerts}: it makes annotations and tells nobody; name another"
            f" channel too, such as BABYSIT_ALERTS=log,{settings.alerts}"
        )
    channels = {name: make_channel(settings, name) for name in names}
    if len(channels) == 1 and settings.alerts_rules is None:
        return channels[names[0]]
    rules = read(settings.alerts_rules, names) if settings.alerts_rules else AlertRules()
    return Router(channels, rules)


async def check_channel(settings: Settings, clock: Clock) -> str:
    """See whether the channel that the settings name would deliver; a word about it.

    Sends nothing.

    Raises:
        InvalidError: No such channel, or a setting is missing.
        NotDeliveredError: It would not; the message has the fix.
    """
    notifier = make_notifier(settings)
    if not isinstance(notifier, CheckedChannel):
        return f"{notifier.channel}: nothing to check"
    if isinstance(notifier, RunningChannel):
        await notifier.start(DictMemory(), clock)
    try:
        return await notifier.check()
    finally:
        if isinstance(notifier, RunningChannel):
            await notifier.close()
