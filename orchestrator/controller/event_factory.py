"""Events that the control plane makes itself: timers, findings, steps, lost contact, passes."""

from __future__ import annotations

from collections.abc import Callable

from ulid import ULID

from jobs.clock import Clock
from jobs.events import Event


def fresh_id() -> str:
    """A new id. Ids sort by time, across servers as well as their clocks agree."""
    return str(ULID())


class EventFactory:
    """Makes events with an id, the time, and the controller as the actor.

    Attributes:
        new_id: Source of ids. A replacement must never repeat an id: the journal drops an event
            whose id it has already.
        clock: What time it is.
    """

    def __init__(self, clock: Clock) -> None:
        self.new_id: Callable[[], str] = fresh_id
        self.clock = clock

    def make(self, kind: type[Event], **fields: object) -> Event:
        """An event of a kind; `fields` may also replace the id, the time and the actor.

        Raises pydantic.ValidationError when the fields do not fit the kind: a defect of ours.
        """
        given = {"id": self.new_id(), "at": self.clock.now(), "actor": "controller", **fields}
        return kind.model_validate(given)
