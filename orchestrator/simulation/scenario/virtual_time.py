"""Virtual time, and the production core running in it."""

from __future__ import annotations

import datetime as dt
import heapq
import itertools
import math
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from jobs.events import Event
from orchestrator.core.machine import handle
from orchestrator.core.messages.events import SchedulingPassDue, TimerFired
from orchestrator.core.messages.instructions import Instruction
from orchestrator.core.model.entities import Entity
from orchestrator.core.model.state import State
from orchestrator.errors import ConflictError, InvalidError, NotFoundError

Action = Callable[[], None]


class Engine:
    """An event heap in virtual time, and the core's turns in the order of the controller.

    Attributes:
        state: State of the core.
        now: Seconds since the scenario began.
        turns: Number of handled events.
        refusals: Events that the core refused, with its messages.
    """

    def __init__(self, begin: dt.datetime) -> None:
        self.state = State()
        self.now = 0.0
        self.turns = 0
        self.refusals: list[str] = []
        self.carry_out: Callable[[Instruction], None]
        self.changed: Callable[[Sequence[Entity]], None]
        self._begin = begin
        self._heap: list[tuple[float, int, Action]] = []
        self._numbers = itertools.count(1)
        self._events: deque[Event] = deque()
        self._turning = False

    def moment(self, seconds: float | None = None) -> dt.datetime:
        """A second of the scenario (None: now) as the UTC time that the core sees."""
        return self._begin + dt.timedelta(seconds=self.now if seconds is None else seconds)

    def at(self, when: float, action: Action) -> None:
        """Schedule an action at second `when`; a time in the past means as soon as possible."""
        heapq.heappush(self._heap, (max(when, self.now), next(self._numbers), action))

    def after(self, delay: float, action: Action) -> None:
        """Schedule an action in `delay` seconds."""
        self.at(self.now + delay, action)

    def identity(self) -> str:
        """A new event id; ids sort by time."""
        return f"{next(self._numbers):010d}"

    def tell(self, kind: type[Event], *, since: float | None = None, **fields: Any) -> None:
        """Build an event that arose at second `since` (None: now) and hand it to the core.

        The fields are not validated: the event of a gang has tens of thousands of generated values.
        """
        identity = {"id": self.identity(), "at": self.moment(since)}
        self.submit(kind.model_construct(**{**identity, **fields}))

    def submit(self, event: Event) -> None:
        """Handle an event; events that it causes at once follow it, in order."""
        self._events.append(event)
        if self._turning:
            return
        self._turning = True
        while self._events or self.state.pass_wanted is not None:
            self._turn(self._events.popleft() if self._events else self._pass())
        self._turning = False

    def _pass(self) -> Event:
        """The scheduling pass for all events handled so far, as in production."""
        cause = self.state.pass_wanted
        return SchedulingPassDue(id=self.identity(), at=self.moment(), cause=cause)

    def _turn(self, event: Event) -> None:
        self.turns += 1
        try:
            instructions = handle(self.state, event, self.moment())
        except (ConflictError, NotFoundError, InvalidError) as error:
            self.refusals.append(f"{event.kind}: {error}")
            return
        changes, _ = self.state.take_changes()
        self.changed(changes)
        for instruction in instructions:
            self.carry_out(instruction)
        self.state.forget()

    def run(self, until: float) -> None:
        """Execute everything due by second `until`, in order; timers go last at equal times."""
        while True:
            timer = self.state.next_timer()
            due = (timer.due - self._begin).total_seconds() if timer else math.inf
            first = self._heap[0][0] if self._heap else math.inf
            if min(due, first) > until:
                break
            if first <= due:
                self.now, _, action = heapq.heappop(self._heap)
                action()
            elif timer is not None:
                self.now = max(self.now, due)
                self.tell(TimerFired, **timer._asdict())
        self.now = until
