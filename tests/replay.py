"""A journal, replayed: the recorded events must lead the core to the recorded instructions."""

from __future__ import annotations

import datetime as dt
from collections import Counter, defaultdict
from collections.abc import Sequence

from jobs.events import Event
from orchestrator.core.machine import handle
from orchestrator.core.messages.events import CHECKPOINT_REQUESTS, EVENT, IncidentChanged
from orchestrator.core.messages.instructions import IncidentUpdate, Instruction
from orchestrator.core.model.entities import Checkpoint, Entity, Incident, Run
from orchestrator.core.model.state import State
from orchestrator.database.port import JournalEntry


def check_whole(journal: Sequence[JournalEntry]) -> None:
    """Nothing an agent said is there twice, and no instruction is without the event it is for.

    Ids cannot be there twice: so what agents said is compared by what it says.
    """
    said = [_said(entry) for entry in journal if entry.actor.startswith("worker:")]
    doubled = [words for words, count in Counter(said).items() if count > 1]
    assert not doubled, f"in the journal twice: {doubled}"
    events = {entry.id for entry in journal if entry.kind == "event"}
    orphans = [e.id for e in journal if e.kind == "instruction" and e.cause not in events]
    assert not orphans, f"instructions without their event: {orphans}"


def _said(entry: JournalEntry) -> str:
    """What an agent reported, but for the event's own id."""
    return f"{entry.name} {sorted((k, repr(v)) for k, v in entry.payload.items() if k != 'id')}"


def replay(journal: Sequence[JournalEntry]) -> State:
    """Give the core the recorded events at the recorded times; it must decide the same again.

    Returns:
        The state after the last event.
    """
    decided: dict[str, list[object]] = defaultdict(list)
    for entry in journal:
        if entry.kind == "instruction":
            decided[str(entry.cause)].append(dict(entry.payload))
    again_decided = Replay()
    # Journals from before 2026-11-30 do not have what people were shown of incidents.
    shown = any(entry.name == "incident_update" for entry in journal)
    for entry in journal:
        if entry.kind != "event":
            continue
        given = again_decided.handle(EVENT.validate_python(dict(entry.payload)), entry.at)
        compared = [i for i in given if shown or not isinstance(i, IncidentUpdate)]
        again = [i.model_dump(mode="json") for i in compared]
        assert again == decided[entry.id], (
            f"{entry.name} at {entry.position} is decided otherwise:\n{again}\n{decided[entry.id]}"
        )
    return again_decided.state


class Replay:
    """A core that forgets what is over after each event, and is reminded as the controller does."""

    def __init__(self) -> None:
        self.state = State()
        self._stored: dict[tuple[type, str], Entity] = {}

    def handle(self, event: Event, now: dt.datetime) -> list[Instruction]:
        """Have the core take one event."""
        self._remind(event)
        instructions = handle(self.state, event, now)
        for entity in self.state.take_changes()[0]:
            self._stored[type(entity), getattr(entity, "id", "")] = entity
        self.state.forget()
        return instructions

    def _remind(self, event: Event) -> None:
        if isinstance(event, IncidentChanged) and event.incident not in self.state.incidents:
            incident = self._stored.get((Incident, event.incident))
            if isinstance(incident, Incident):
                self.state.recall(incident)
        elif isinstance(event, CHECKPOINT_REQUESTS) and event.run not in self.state.runs:
            run = self._stored.get((Run, event.run))
            known = [c for c in self._stored.values() if isinstance(c, Checkpoint)]
            if isinstance(run, Run):
                self.state.recall_run(run, [c for c in known if c.run == event.run])
