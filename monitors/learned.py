"""The memory of one series of losses: rises that came back, and rises that were rolled back."""

from __future__ import annotations

from dataclasses import dataclass

from monitors.answered import Answers, Respite
from monitors.drift import Drift
from monitors.episode import Episode
from monitors.loss_memory import ACTS, LEAST_VALUES, LossMemory, newest
from monitors.recurrence import Recurrence, Returned
from monitors.swings import Swings

_CAME_BACK = 0.35
"""Share of a rise up to which the level must fall for the rise to be over."""
_FOLLOWED_VALUES = 4096
"""Values for which a level that rose is watched for its return."""
_SHAPE_VALUES = 3
"""Newest values of a rise, the least of which tells its height: one may be an outlier."""


@dataclass(slots=True)
class _Raised:
    """A level that was accepted, and may come back."""

    episode: Episode
    value: float
    """Level at which it has come back."""


class Learned:
    """Remembers rises that came back, watches those that may, and grants respites.

    `apart`: values between two events.
    """

    def __init__(self, apart: int) -> None:
        self.swings = Swings()
        self.answers = Answers(apart)
        self.respite: Respite | None = None
        """Time for the rise under way to come back, since rollbacks for others did not help."""
        self._returned = Recurrence()
        self._trusted: Episode | Drift | None = None
        """The rise that last had a respite: it counts twice once it has come back."""
        self._raised: _Raised | None = None

    def memory(self, step: int, place: int, stride: float) -> LossMemory:
        """The part that outlives a restart of the server; `stride`: steps from report to report."""
        acted, undone, back = self.answers.kept
        return LossMemory(
            step=step,
            place=place,
            stride=stride,
            returned=newest(r for r in self._returned.kept if r.high >= LEAST_VALUES),
            swings=newest(self.swings.kept),
            acted=newest(acted, ACTS),
            undone=newest(undone, ACTS),
            back=newest(back, ACTS),
        )

    def recall(self, memory: LossMemory) -> None:
        """Remember what :meth:`memory` has been."""
        for rise in memory.returned:
            self._returned.remember(rise)
        self.swings.recall(memory.swings)
        self.answers.recall(memory.acted, memory.undone, memory.back)

    def wound_back(self, attempt: int, step: int, place: int) -> Learned:
        """An empty memory that sees the kept values up to `step` again, from a place on.

        Hand it to :meth:`inherit` once it has.
        """
        again = Learned(0)
        again.swings = Swings(place)
        self.answers.roll_back(attempt, step)
        return again

    def inherit(self, again: Learned, step: int) -> None:
        """Take over the level that `again` has seen up to `step`; what was learned is kept."""
        self._returned.forget_after(step)
        again.swings.inherit(self.swings, step)
        self.swings = again.swings
        self.forget_rises()
        self._raised = again._raised

    def forget_rises(self) -> None:
        """No rise is under way any more."""
        self.respite = self._trusted = self._raised = None

    def knows(self, episode: Episode) -> bool:
        """True if a rise is one of those that come back by themselves."""
        return self._returned.knows(_returned(episode)) or (
            episode.high >= _SHAPE_VALUES and self.swings.knows(min(episode.held[-_SHAPE_VALUES:]))
        )

    def came_back(self, episode: Episode, length: int | None = None) -> None:
        """A rise came back by itself after `length` values; None: after those of the episode."""
        rise = _returned(episode)
        for _ in range(2 if episode is self._trusted else 1):
            self._returned.remember(rise if length is None else rise._replace(length=length))

    def accept(self, episode: Episode, level: float) -> None:
        """A rise is the new level for now, and is watched for its return."""
        self._raised = _Raised(episode, episode.level + _CAME_BACK * (level - episode.level))

    def is_back(self, place: int, level: float) -> bool:
        """True if the level that was accepted last has come back by itself."""
        raised = self._raised
        if raised is None:
            return False
        length = place - raised.episode.start
        if length > _FOLLOWED_VALUES:
            self._raised = None
        elif level <= raised.value:
            self.came_back(raised.episode, length)
            self._raised = None
            return True
        return False

    def grant(self, cause: Episode | Drift, place: int) -> Respite | None:
        """A respite for a rise with its onset at `place`; None: it is to be acted on now."""
        self.respite = self.answers.respite(cause, place)
        if self.respite is not None:
            self.swings.trust()
            self._trusted = cause
        return self.respite

    def follow(
        self, place: int, value: float, level: float, *, settled: bool
    ) -> tuple[Respite, bool] | None:
        """Take a value; the respite if it is over, and True if the rise has come back."""
        respite = self.respite
        if respite is None:
            return None
        verdict = respite.follow(place, value, level, settled=settled)
        if verdict == "waits":
            return None
        self.respite = None
        if verdict == "back":
            self.answers.back(respite)
        return respite, verdict == "back"


def _returned(episode: Episode) -> Returned:
    return Returned(episode.last.step, episode.start, episode.height, episode.high, episode.length)
