"""The port of alert channels."""

from __future__ import annotations

from collections import Counter
from typing import Protocol

from orchestrator.core.messages.instructions import Notify


class Notifier(Protocol):
    """Tells people."""

    channel: str
    """Where they are told: a word for the metrics."""

    async def notify(self, notice: Notify) -> None:
        """Deliver one notice."""


class CountedNotifier:
    """Tells through another, and counts how that went, by channel and result."""

    def __init__(self, inner: Notifier) -> None:
        self._inner = inner
        self.channel = inner.channel
        self.counts = Counter({(self.channel, result): 0 for result in ("delivered", "failed")})

    async def notify(self, notice: Notify) -> None:
        """Deliver one notice; errors are the other's."""
        try:
            await self._inner.notify(notice)
        except Exception:
            self.counts[self.channel, "failed"] += 1
            raise
        self.counts[self.channel, "delivered"] += 1
