"""Which timers are due, whatever the wall clock does meanwhile.

The problem: deadlines are stored as times of day, since they must survive the server. A wall clock
that is set forward by minutes would fire them all at once: an attempt that is being stopped would
be fenced while its ranks live. One that is set back would delay them by as much.

The design: the wall clock is compared with the monotonic one each time. Where they disagree by more
than `STEP_SECONDS`, the wall clock was set, and the deadlines that were waiting move with it.
Deadlines that are set later are on the new time already. A lead that begins, and finds facts in the
database from well after its own time, knows that the wall clock was set back while nobody led.

Limits: a step forward while no server leads is not seen, nor one back by less than `BACK_SECONDS`.
Corrections of less than `STEP_SECONDS` between two looks count as time that has passed.
"""

from __future__ import annotations

import datetime as dt

import structlog

from jobs.clock import Clock
from orchestrator.core.model.state import Deadline, State

STEP_SECONDS = 1.0
"""A difference of the clocks between two looks, half a second apart, that no slewing makes."""
BACK_SECONDS = 60.0
"""A difference between two servers whose clocks are kept in step by NTP is far below this."""
_log = structlog.get_logger(__name__)


class SteadyTimers:
    """The timers of one lead, by durations. To be looked at about twice a second."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._seen = (clock.now(), clock.monotonic())
        self._begun = False
        self._moved: dict[Deadline, dt.timedelta] = {}
        """Deadlines from before a step of the wall clock, with the sum of the steps since."""

    def due(self, state: State) -> list[Deadline]:
        """Timers whose time has passed, the earliest first. They stay due until a turn takes them.

        Deadlines, in the state and in what is returned, are never changed: the core compares them.
        """
        now = self._look(state)
        if not self._moved:
            return state.due_timers(now)
        self._moved = {timer: by for timer, by in self._moved.items() if _stands(state, timer)}
        due = [timer for timer in state.due_timers(now) if timer not in self._moved]
        late = (timer for timer, by in self._moved.items() if timer.due + by <= now)
        return sorted([*due, *late])

    def until_next(self, state: State) -> float | None:
        """Seconds until the next timer, perhaps negative; None: not known, or there is none."""
        timer = state.next_timer()
        if timer is None or timer in self._moved:
            return None
        return (timer.due - self._clock.now()).total_seconds()

    def _look(self, state: State) -> dt.datetime:
        """The time, and the deadlines moved if it was set since the last look."""
        if not self._begun:
            self._begun = True
            self._seen = (_latest(state, self._seen[0]), self._seen[1])
        (wall, steady), self._seen = self._seen, (self._clock.now(), self._clock.monotonic())
        now = self._seen[0]
        step = (now - wall) - dt.timedelta(seconds=self._seen[1] - steady)
        if abs(step.total_seconds()) > STEP_SECONDS:
            _log.warning("wall clock was set; timers go by durations", seconds=step.total_seconds())
            for timer in state.timers():
                self._moved[timer] = self._moved.get(timer, dt.timedelta()) + step
        return now


def _latest(state: State, now: dt.datetime) -> dt.datetime:
    """The time now; or the latest time in the state, where it shows that the clock was set back."""
    times = [
        *(time for run in state.runs.values() for time in (run.submitted_at, run.started_at)),
        *(time for each in state.workers.values() for time in (each.launched_at, each.joined_at)),
        *(each.started_at for each in state.attempts.values()),
    ]
    latest = max(filter(None, times), default=now)
    return latest if (latest - now).total_seconds() > BACK_SECONDS else now


def _stands(state: State, timer: Deadline) -> bool:
    run = state.runs.get(timer.run)
    return run is not None and run.due(timer.timer, timer.subject) == timer.due
