"""Answered rises: what rollbacks were made for, and what follows for the next rise.

The problem: a rise that is rolled back is never seen to come back by itself, so nothing is learned
from it. If it belongs to the data (an epoch's start, a warm restart, another task), it is met
again and again, and each time a rollback loses work for nothing.

The design: each act that a rollback undid is remembered. After two of them, a further rise is
given a *respite*: time to come back by itself, as long as those before it lay apart. It is over at
once if the rise grows beyond what the earlier ones foretell. A rise that comes back is learned as
one that repeats (:mod:`monitors.recurrence`, :mod:`monitors.swings`). One that does not is acted
on late, but with its true onset, so the run goes back as far as without the respite; the next
respite is three times as long, up to 4,096 values.

Limits: a divergence that resembles the two rises before it is acted on late, by the respite: 4,096
values at most, and 10,240 while it falls again. In steps that is as many times the steps from
report to report.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, NamedTuple

from monitors.drift import Drift
from monitors.episode import Episode, Point

_KEPT = 32
_ENOUGH = 2
"""Rollbacks after which a further rise is waited out first."""
_HIGHER = 2.0
"""Factor of the highest earlier rise up to which another one is waited out."""
_GROWS = 3.0
"""That factor where an earlier rise was still growing when it was acted on."""
_ORDINARY = 0.5
"""Rise, as a share of the level, up to which one is waited out whatever the earlier ones were."""
_TRIPLED = 2.0
"""That share where an earlier rise was still growing: a warm restart shows its foot only."""
_HIGH = 1.0
"""Rise, as a share of the level, from which there is less time: it may be an explosion."""
_GROWTH = 1.3
"""Ratio of a rise's last values to its first above which it is growing."""
_LIKE = 1.5
"""Factor between heights, either way, within which rises are alike."""
_PUNCTUAL = 0.15
"""Deviation of an interval that is still the same, as a share of it."""
_SHORTEST, _LONGEST = 512, 4096
"""Values of a respite. The longest holds however often a rise did not come back: without it, the
fifth respite of a run that diverges again and again would outlast the run."""
_SAME_PLACE = 1024
"""Values of the respite of a rise that came back at the place of all earlier ones."""
_IF_HIGH = 256
"""Values of the respite of a high rise that neither is due nor like the earlier ones."""
_CAME_BACK = 0.35
"""Share of a rise up to which the level must fall for the rise to be over."""
_ON_ITS_WAY = 0.9
"""Share of its height up to which a rise has fallen when it is on its way back."""
_LATER = 3
"""Least factor of the longest time from an onset to its report that the next respite lasts."""
_IN_A_ROW = 3
"""Values above the top in a row that end a respite."""
_SLACK = 2.5
"""Factor of a respite that a rise has which is on its way back."""


class Height(NamedTuple):
    """The height of a rise."""

    rise: float
    level: float
    """The level before it."""

    def over(self, unit: float) -> float:
        """The rise over a level of this magnitude: as it was, or in proportion if that is more."""
        return max(self.rise, unit * self.rise / abs(self.level) if self.level else 0.0)


class Acted(NamedTuple):
    """A rise that was reported for action. Places are counted in values of the series."""

    step: int
    """The step of its onset."""
    place: int
    """The place of its onset."""
    height: Height
    growing: bool
    took: int
    """Values from its onset to the report: a respite is among them."""


@dataclass(slots=True)
class Respite:
    """Time for one rise to come back by itself."""

    cause: Episode | Drift
    level: float
    """The level before the rise."""
    top: float
    """Height above which the respite is over."""
    began: int
    length: int
    """Values."""
    length_if_high: int
    peak: float
    above: int = 0
    """Newest values in a row above the top."""

    @property
    def most(self) -> int:
        """Values after which it is over, whatever comes."""
        return math.ceil(_SLACK * self.length)

    @property
    def reports(self) -> int:
        """Values of the respite, by the height of the rise so far."""
        high = self.peak - self.level > _HIGH * abs(self.level)
        return self.length_if_high if high else self.length

    def follow(
        self, place: int, value: float, level: float, *, settled: bool
    ) -> Literal["waits", "back", "outgrown", "outlasted"]:
        """Take a value and the level of the series.

        `settled`: no stretch of anomalies is open, so the level is that of the newest values.
        """
        self.above = self.above + 1 if value > self.top else 0
        if self.above >= _IN_A_ROW or level > self.top:
            return "outgrown"
        self.peak = max(self.peak, level if settled else value)
        height = self.peak - self.level
        if settled and level <= self.level + _CAME_BACK * height:
            return "back"
        length: float = self.reports
        if settled and level <= self.level + _ON_ITS_WAY * height:
            length *= _SLACK
        return "waits" if place - self.began <= length else "outlasted"


class Answers:
    """Remembers the last 32 acts that rollbacks undid. `apart`: values between two events."""

    def __init__(self, apart: int) -> None:
        self._apart = apart
        self._acted: list[tuple[int, Acted]] = []
        """The acts of the attempt that runs, with its number."""
        self._undone: dict[tuple[int, int], Acted] = {}
        """By attempt and onset: samples that are fed again report the same."""
        self._back: deque[Height] = deque(maxlen=_KEPT)
        """Rises that came back within their respite."""

    def act(self, attempt: int, rise: Acted) -> None:
        """Take a rise that is reported for action."""
        self._acted.append((attempt, rise))

    def back(self, respite: Respite) -> None:
        """A rise came back within its respite."""
        self._back.append(Height(respite.peak - respite.level, respite.level))

    def roll_back(self, attempt: int, step: int) -> None:
        """An attempt resumed after `step`: what was reported after it before is undone."""
        for earlier, rise in self._acted:
            if rise.step > step and earlier < attempt:
                self._undone[earlier, rise.step] = rise
        for key in list(self._undone)[:-_KEPT]:
            del self._undone[key]
        self._acted = [(number, rise) for number, rise in self._acted if number >= attempt]

    @property
    def kept(self) -> tuple[list[tuple[int, Acted]], list[tuple[int, Acted]], list[Height]]:
        """Acts of the newest attempt, acts that were undone, and heights that came back."""
        undone = [(attempt, rise) for (attempt, _), rise in self._undone.items()]
        return list(self._acted), undone, list(self._back)

    def recall(
        self,
        acted: Iterable[tuple[int, Acted]],
        undone: Iterable[tuple[int, Acted]],
        back: Iterable[Height],
    ) -> None:
        """Remember what :attr:`kept` has been."""
        self._acted = list(acted)
        self._undone = {(attempt, rise.step): rise for attempt, rise in undone}
        self._back.extend(back)

    @property
    def steps(self) -> list[int]:
        """The onsets of the last two events of which acts were undone."""
        return list(dict.fromkeys(rise.step for rise in self._undone.values()))[-_ENOUGH:]

    def respite(self, cause: Episode | Drift, place: int) -> Respite | None:
        """Time for a rise with its onset at `place` to come back by itself.

        None: it is to be acted on now.
        """
        undone = list(self._undone.values())
        if len(undone) < _ENOUGH:
            return None
        elsewhere = [old for old in undone if abs(old.place - place) > self._apart]
        # The same rise once more says nothing of whether others like it come back.
        told = undone if len(undone) - len(elsewhere) >= _ENOUGH else elsewhere
        level, peak = _heights(cause)
        rise, unit = peak - level, abs(level)
        grew = any(old.growing for old in told)
        highest = max(h.over(unit) for h in (*(old.height for old in told), *self._back))
        share = _TRIPLED if grew else _ORDINARY
        top = max((_GROWS if grew else _HIGHER) * highest, share * unit)
        if rise > top:
            return None
        gaps = self._gaps(undone, place)
        slow = min(_LONGEST, _LATER * max(old.took for old in undone))
        length = max(slow, min(_LONGEST, max(_SHORTEST, max(gaps, default=_SAME_PLACE))))
        due = len(gaps) > 1 and abs(gaps[0] - gaps[1]) <= _PUNCTUAL * gaps[1]
        alike = sum(_alike(rise, unit, old.height) for old in elsewhere) >= _ENOUGH
        if_high = length if due or alike else max(slow, _IF_HIGH)
        return Respite(cause, level, level + top, place, length, if_high, peak)

    def _gaps(self, undone: list[Acted], place: int) -> list[int]:
        """Intervals between events up to this place, the newest first."""
        gaps, at = [], place
        for earlier in sorted((old.place for old in undone), reverse=True):
            if at - earlier > self._apart:
                gaps.append(at - earlier)
                at = earlier
        return gaps


def acted_on(
    cause: Episode | Drift, onset: Point, place: int, now: int, respite: Respite | None
) -> Acted:
    """A rise with its onset at `place` as it is remembered, acted on at the place `now`."""
    level, peak = _heights(cause)
    if respite is not None:
        height = Height(respite.peak - level, level)
        return Acted(onset.step, place, height, growing=True, took=now - place)
    grows = isinstance(cause, Drift) or max(cause.held[-2:]) - level > _GROWTH * (
        cause.held[0] - level
    )
    return Acted(onset.step, place, Height(peak - level, level), grows, now - place)


def _heights(cause: Episode | Drift) -> tuple[float, float]:
    """The level before a rise, and its peak."""
    if isinstance(cause, Drift):
        return cause.best.value, cause.level
    return cause.forecast, cause.peak.value


def _alike(rise: float, unit: float, old: Height) -> bool:
    share = unit * old.rise / abs(old.level) if old.level else old.rise
    return any(max(rise, other) <= _LIKE * min(rise, other) for other in (old.rise, share))
