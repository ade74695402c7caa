"""A journal, replayed: the recorded events must lead the core to the recorded instructions."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence

from orchestrator.core.machine import handle
from orchestrator.core.messages.events import EVENT
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
    state = State()
    for entry in journal:
        if entry.kind != "event":
            continue
        given = handle(state, EVENT.validate_python(dict(entry.payload)), entry.at)
        state.take_changes()
        state.forget()
        again = [instruction.model_dump(mode="json") for instruction in given]
        assert again == decided[entry.id], (
            f"{entry.name} at {entry.position} is decided otherwise:\n{again}\n{decided[entry.id]}"
        )
    return state
