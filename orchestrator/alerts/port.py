"""The port of alert channels: how a notice reaches people.

One protocol, one implementation per channel, chosen by name in
:mod:`orchestrator.alerts.factory`. A notice comes out of the outbox, so it is delivered at least
once: a channel that can, groups by :attr:`Notify.dedup_key`.

A channel that shows incidents and edits what it has shown implements :class:`IncidentChannel` too.
A channel that must remember what it has sent, or holds connections, implements
:class:`RunningChannel`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, Protocol, runtime_checkable

from jobs.clock import Clock
from orchestrator.core.messages.instructions import IncidentUpdate, Notify
from orchestrator.errors import BabysitError


class NotDeliveredError(BabysitError):
    """A channel could not deliver; the message says why and what to do. It is tried again.

    Attributes:
        result: One word for the label `result` of `babysit_notifications_total`.
    """

    def __init__(self, message: str, *, result: str = "failed") -> None:
        super().__init__(message)
        self.result = result


class Notifier(Protocol):
    """Delivers notices to people."""

    channel: str
    """Name of the channel, a label of `babysit_notifications_total`."""
    ignored_fields: Mapping[str, str]
    """Fields of a run spec that have no effect here, such as `notify.slack`, each with the reason
    that `babysit submit` prints."""

    async def notify(self, notice: Notify) -> None:
        """Deliver one notice.

        Any exception counts as not delivered: the notice stays in the outbox and is tried again,
        with back-off, also after a restart of the server.
        """


@runtime_checkable
class IncidentChannel(Protocol):
    """A channel that shows incidents as they change. Others get notices only."""

    async def update(self, update: IncidentUpdate) -> None:
        """Show an incident as it is now. Updates may come twice, late and in any order."""


class AlertMemory(Protocol):
    """The memory of a channel: JSON objects by key, stored at once and for good."""

    async def read(self, key: str) -> Mapping[str, Any] | None:
        """The object under a key; None: there is none."""

    async def write(self, key: str, body: Mapping[str, Any], *, run: str | None = None) -> None:
        """Store the object under a key, in place of an older one.

        With a run, it may be removed together with the history of the run.
        """


@runtime_checkable
class RunningChannel(Protocol):
    """A channel with a memory or with connections of its own."""

    async def start(self, memory: AlertMemory, clock: Clock) -> None:
        """Begin; called once, before anything is to be delivered. Needs no network."""

    async def close(self) -> None:
        """Close connections; called once, when nothing more is to be delivered."""


@runtime_checkable
class TroubledChannel(Protocol):
    """A channel that knows why it does not deliver."""

    trouble: Mapping[str, str]
    """Place (a Slack channel, say) -> why nothing reaches it and what to do; empty: all is well."""


@runtime_checkable
class CheckedChannel(Protocol):
    """A channel that can look whether it would deliver."""

    async def check(self) -> str:
        """A word about the channel that delivers, for `babysit doctor`.

        Raises:
            NotDeliveredError: It would not; the message says what to do.
        """


@runtime_checkable
class CountingChannel(Protocol):
    """A channel that counts by itself, as it stands for several."""

    counts: Counter[tuple[str, str]]
    """Outcomes by channel and result."""


@runtime_checkable
class TendedChannel(Protocol):
    """A channel that has something to do without being called."""

    async def tend(self, leads: Callable[[], bool]) -> None:
        """Do it while `leads()`, until cancelled."""


SILENT = frozenset({"grafana"})
"""Channels that only show: nobody learns of anything through them alone."""
_RESULTS = ("delivered", "failed")


class DictMemory:
    """A memory that ends with the process: for tests, and where nothing is stored."""

    def __init__(self) -> None:
        self.bodies: dict[str, Mapping[str, Any]] = {}

    async def read(self, key: str) -> Mapping[str, Any] | None:
        """The object under a key; None: there is none."""
        return self.bodies.get(key)

    async def write(self, key: str, body: Mapping[str, Any], *, run: str | None = None) -> None:
        """Store the object under a key; `run` has no effect here."""
        del run
        self.bodies[key] = body


class CountedNotifier:
    """Delivers through another channel and counts the outcomes, by channel and result.

    Updates of incidents are counted like notices, where the channel shows them.
    """

    def __init__(self, inner: Notifier) -> None:
        self._inner = inner
        self.channel = inner.channel
        self.ignored_fields = inner.ignored_fields
        self.counts: Counter[tuple[str, str]]
        self._counts_here = not isinstance(inner, CountingChannel)
        if isinstance(inner, CountingChannel):
            self.counts = inner.counts
        else:
            self.counts = Counter({(self.channel, result): 0 for result in _RESULTS})

    @property
    def trouble(self) -> Mapping[str, str]:
        """Why the channel does not deliver, by place; empty: all is well, or nothing is known."""
        return self._inner.trouble if isinstance(self._inner, TroubledChannel) else {}

    async def notify(self, notice: Notify) -> None:
        """Deliver one notice; errors are those of the inner channel."""
        try:
            await self._inner.notify(notice)
        except Exception as error:
            self._failed(error)
            raise
        self._count("delivered")

    async def update(self, update: IncidentUpdate) -> None:
        """Show an incident, if the channel does; errors are those of the inner channel."""
        if not isinstance(self._inner, IncidentChannel):
            return
        try:
            await self._inner.update(update)
        except Exception as error:
            self._failed(error)
            raise
        self._count("delivered")

    def _failed(self, error: Exception) -> None:
        result = error.result if isinstance(error, NotDeliveredError) else "failed"
        self._count(result)

    def _count(self, result: str) -> None:
        if self._counts_here:
            self.counts[self.channel, result] += 1
