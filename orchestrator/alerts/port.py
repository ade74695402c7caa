"""The port of alert channels: how a notice reaches people.

One protocol, one implementation per channel, chosen by name in
:mod:`orchestrator.alerts.factory`. A notice comes out of the outbox, so it is delivered at least
once: a channel that can, groups by :attr:`Notify.dedup_key`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Protocol

from orchestrator.core.messages.instructions import Notify


class Notifier(Protocol):
    """Delivers notices to people."""

    channel: str
    """Name of the channel, a label of `babysit_notices_total`."""
    ignored_fields: Mapping[str, str]
    """Fields of a run spec that have no effect here, such as `notify.slack`, each with the reason
    that `babysit submit` prints."""

    async def notify(self, notice: Notify) -> None:
        """Deliver one notice.

        Any exception counts as not delivered: the notice stays in the outbox and is tried again,
        with back-off, also after a restart of the server.
        """


class CountedNotifier:
    """Delivers through another channel and counts the outcomes, by channel and result."""

    def __init__(self, inner: Notifier) -> None:
        self._inner = inner
        self.channel = inner.channel
        self.ignored_fields = inner.ignored_fields
        self.counts = Counter({(self.channel, result): 0 for result in ("delivered", "failed")})

    async def notify(self, notice: Notify) -> None:
        """Deliver one notice; errors are those of the inner channel."""
        try:
            await self._inner.notify(notice)
        except Exception:
            self.counts[self.channel, "failed"] += 1
            raise
        self.counts[self.channel, "delivered"] += 1
