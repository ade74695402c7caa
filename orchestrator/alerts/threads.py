"""The message about one problem, and what has been said below it. Pure data and rules.

The problem: updates and notices about one problem (one :attr:`Notify.dedup_key`) come many at a
time, twice, late and out of order, and a server may die between any two calls. People must see one
message that ends in the true state, and each notice once.

The design: a thread holds the latest update of each incident of the problem, which any order of
updates leads to, and the ids of what was said. What is being sent is noted before it is sent, so
that the next server can look whether it arrived.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence

from pydantic import BaseModel

from monitors.types import Severity
from orchestrator.core.messages.instructions import IncidentUpdate, Notify
from orchestrator.core.model.states import IncidentState
from orchestrator.core.views.remedy_text import incident_remedy

Item = Notify | IncidentUpdate
_SEEN = 2000
"""Ids that a thread remembers, the oldest forgotten first: far more than wait in an outbox."""
_SEVERITIES = (Severity.INFO, Severity.WARNING, Severity.CRITICAL)
_STATES = (IncidentState.RESOLVED, IncidentState.MITIGATING, IncidentState.OPEN)


def severity_of(item: Item) -> Severity:
    """How urgent a notice or an update is."""
    return item.severity if isinstance(item, Notify) else item.incident.severity


def worst(severities: Sequence[Severity]) -> Severity:
    """The most urgent one; `info` of none."""
    return max(severities, key=_SEVERITIES.index, default=Severity.INFO)


def at_least(severity: Severity, floor: Severity) -> bool:
    """True if a severity is as urgent as `floor`, or more."""
    return _SEVERITIES.index(severity) >= _SEVERITIES.index(floor)


class Thread(BaseModel):
    """One problem as a channel shows it."""

    key: str
    conversation: str = ""
    """Where the message is, in the channel's own words; empty: nowhere yet."""
    wanted: str = ""
    """Where the message was to be; empty: nobody knows yet."""
    place: str = ""
    """Where, in people's words, such as #training; empty: nowhere yet."""
    ts: str = ""
    """Id of the message there; empty: it is not sent."""
    updates: dict[str, IncidentUpdate] = {}
    """Latest update by incident."""
    notice: Notify | None = None
    """The notice that is part of the message; others are said below it."""
    note: str = ""
    """Why the message is not where it was to be; shown at its end."""
    named: list[str] = []
    """Runs that were named below the message, as it is about several."""
    ended: list[str] = []
    """Runs whose end was said below the message, as it is about several."""
    counts_down: bool = False
    """The message says how much time is left."""
    shown: str = ""
    """Text of the message as it was last sent or edited."""
    said: str = ""
    """The standing that people were last told of; a change is said below the message."""
    seen: list[str] = []
    """Ids of notices and updates that are dealt with, oldest first."""
    sending: str = ""
    """Id of what may have been sent without an answer; empty: nothing."""
    sending_since: float = 0.0
    """Unix seconds of that."""

    def take(self, items: Sequence[Item]) -> None:
        """Take in what came, in any order."""
        for item in items:
            if isinstance(item, Notify):
                continue
            known = self.updates.get(item.incident.id)
            if known is None or _version(known) <= _version(item):
                self.updates[item.incident.id] = _completed(item, known)

    def dealt_with(self, *ids: str) -> None:
        """Note that nothing more is to be sent for these ids."""
        self.seen = [*self.seen, *(id_ for id_ in ids if id_ not in self.seen)][-_SEEN:]
        self.sending = ""

    @property
    def runs(self) -> dict[str, str]:
        """Names of the runs that have the problem, by id, in the order in which they got it."""
        ordered = sorted(self.updates.values(), key=lambda u: (u.incident.opened_at, u.incident.id))
        return {update.run: update.run_name or update.run for update in ordered}

    def of_run(self, run: str) -> Thread:
        """The problem as that of one run."""
        own = {id_: update for id_, update in self.updates.items() if update.run == run}
        return Thread(key=self.key, updates=own)

    @property
    def head(self) -> IncidentUpdate | None:
        """The update that the message is about: of the incidents in the worst state, the oldest."""
        return min(
            self.updates.values(),
            key=lambda u: (-_STATES.index(u.incident.state), u.incident.opened_at, u.incident.id),
            default=None,
        )

    @property
    def starts_at(self) -> dt.datetime | None:
        """When the next remedy starts unless people answer; None: none does by itself."""
        return min((u.starts_at for u in self.updates.values() if u.starts_at), default=None)

    def silenced(self, now: dt.datetime) -> bool:
        """True while nobody is to be pinged about the problem."""
        until = (update.incident.silenced_until for update in self.updates.values())
        return any(each is not None and each > now for each in until)

    @property
    def severity(self) -> Severity:
        """The most urgent of its parts."""
        parts: list[Item] = [*self.updates.values(), *([self.notice] if self.notice else [])]
        return worst([severity_of(part) for part in parts])

    @property
    def standing(self) -> str:
        """Where the problem stands, in a sentence; empty where no incident is known."""
        head = self.head
        if head is None:
            return ""
        incident = head.incident
        remedy = incident_remedy(incident)
        if incident.state is IncidentState.RESOLVED:
            how = str(incident.evidence.get("resolved", ""))
            return "Resolved" + (f": {how}" if how else "")
        words = incident.state.value.capitalize() + (f": {remedy}" if remedy else "")
        if head.held and head.asked:
            words += f". Nothing starts: {head.held}"
        if incident.acknowledged_by:
            words += f". Acknowledged by {person(incident.acknowledged_by)}"
        if incident.silenced_until:
            words += f". Silenced until {incident.silenced_until:%H:%M} UTC"
        return words


def _completed(update: IncidentUpdate, known: IncidentUpdate | None) -> IncidentUpdate:
    """An update with what it does not know any more, as its run is over."""
    if update.run_name or known is None:
        return update
    own = ("id", "cause", "reason", "at", "incident")
    return known.model_copy(update={name: getattr(update, name) for name in own})


def _version(update: IncidentUpdate) -> tuple[object, ...]:
    incident = update.incident
    return (
        update.at,
        incident.state is IncidentState.RESOLVED,
        bool(incident.acknowledged_by),
        bool(incident.silenced_until),
        update.id,
    )


def person(actor: str) -> str:
    """The name of an actor, without its kind: `operator:anna` is anna."""
    return actor.partition(":")[2] or actor
