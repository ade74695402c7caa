"""Makes the alert channel that `BABYSIT_ALERTS` names.

A channel is one module with a function `from_settings(settings)`, and one row in
:data:`CHANNELS`. The module is imported only when it is chosen, so a client library that is an
optional extra is needed by nobody else.
"""

from __future__ import annotations

from orchestrator.alerts.port import Notifier
from orchestrator.registry import make
from orchestrator.settings import Settings

CHANNELS = {
    "log": "orchestrator.alerts.log:from_settings",
}
"""Name in `BABYSIT_ALERTS` -> `module:function` that makes the channel."""


def make_notifier(settings: Settings) -> Notifier:
    """The alert channel that `settings.alerts` names.

    Raises:
        InvalidError: No such channel; the message lists those that exist.
    """
    notifier: Notifier = make("BABYSIT_ALERTS", settings.alerts, CHANNELS)(settings)
    return notifier
