"""Makes the alert channel that `BABYSIT_ALERTS` names.

A channel is one module with a function `from_settings(settings)`, and one row in
:data:`CHANNELS`. The module is imported only when it is chosen, so a client library that is an
optional extra is needed by nobody else.
"""

from __future__ import annotations

from jobs.clock import Clock
from orchestrator.alerts.port import CheckedChannel, DictMemory, Notifier, RunningChannel
from orchestrator.registry import make
from orchestrator.settings import Settings

CHANNELS = {
    "log": "orchestrator.alerts.log:from_settings",
    "slack": "orchestrator.alerts.slack:from_settings",
}
"""Name in `BABYSIT_ALERTS` -> `module:function` that makes the channel."""


def make_notifier(settings: Settings) -> Notifier:
    """The alert channel that `settings.alerts` names.

    Raises:
        InvalidError: No such channel; the message lists those that exist.
    """
    notifier: Notifier = make("BABYSIT_ALERTS", settings.alerts, CHANNELS)(settings)
    return notifier


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
