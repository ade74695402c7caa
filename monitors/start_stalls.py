"""Start-up stalls: an attempt takes far longer to its first step than earlier attempts of the run.

The design: the time from the first beats of an attempt to its first step is compared with the
longest of the starts that ended before. The time in which ranks load a checkpoint is left out,
since a first attempt loads none and a tier may be slow. The stall is found while it lasts, by the
monitor's own clock, and is over with the first step.

A start that ended before this monitor saw any beats, as with a new server, counts as one of the
longest that is known.

Limits: at least two starts of the run must have ended. A script that does not say that it restores
(`run.restore`, `run.phase("restore")`) starts for longer when there is something to load, and one
that reads its data again up to its step starts for longer each time: such starts are compared with
each other from the second restart on.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict, Field

from babysit.wire import Phase
from monitors.hang import has_ended_step
from monitors.own_past import Reading
from monitors.slowdown_findings import begun, in_words, over
from monitors.types import Beat, Finding, FindingKind

_FEWEST = 2
"""Starts of the run that must have ended: the first one loads nothing and compiles everything."""
_KEPT = 16
_LONGEST_TICK_SECONDS = 10.0
"""Most seconds between two looks that count: a control plane that slept saw no start."""
_KIND = FindingKind.STARTUP_STALL


class StartupStallSettings(BaseModel):
    """Settings of the search for start-up stalls."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    factor: float = Field(default=3.0, gt=1)
    """Time to the first step as a multiple of the longest earlier start. Ours: cold caches of
    images and compilers double a start."""
    seconds: float = Field(default=120.0, ge=0)
    """Seconds by which it must be longer. Ours: less is not worth an alert."""


class StartupStallMonitor:
    """Watches the starts of one run. `known`: the longest start of earlier runs of its name."""

    def __init__(self, settings: StartupStallSettings | None = None, known: float = 0.0) -> None:
        self._settings = settings or StartupStallSettings()
        self._known = known
        self._starts: deque[float] = deque(maxlen=_KEPT)
        self._beats: dict[int, Beat] = {}
        self._last_tick: float | None = None
        self._begun: float | None = None
        """Unix seconds of the first look at the attempt."""
        self._stepped = self._told = False
        self._ended = False
        """True once the start is over."""
        self._phases: dict[str, float] = {}
        """Seconds by the phase of the rank that is behind."""

    def restart(self) -> None:
        """A new attempt."""
        if self._begun is None and self._stepped:
            self._end_unseen()
        self._beats.clear()
        self._begun = None
        self._stepped = self._told = self._ended = False
        self._phases.clear()

    def forget(self) -> None:
        """Another world size: starts of the past say nothing."""
        self._starts.clear()
        self._known = 0.0

    def stepped(self) -> None:
        """A step of the attempt has ended: the next look ends its start."""
        self._stepped = True

    def tick(self, attempt: int, now: float, beats: Sequence[Beat], wall: float) -> list[Finding]:
        """Look at the newest beats of the attempt; `now` on a clock that only goes forward."""
        spent = now - self._last_tick if self._last_tick is not None else 0.0
        self._last_tick = now
        if self._ended:
            return []
        if self._begun is None:
            if beats and self._stepped:
                self._end_unseen()
            self._begun = wall if beats else None
            return []
        self._pass(min(max(spent, 0.0), _LONGEST_TICK_SECONDS), beats)
        if self._stepped or self._saw_step(beats):
            return self._end(attempt, beats, wall)
        return self._judge(attempt, wall)

    def _pass(self, seconds: float, beats: Sequence[Beat]) -> None:
        """Count time by the phase of the rank that has been silent for longest; loading is free."""
        alive = [beat for beat in beats if beat.alive]
        if not alive or any(beat.phase == Phase.RESTORING for beat in alive):
            return
        phase = str(min(alive, key=lambda each: each.beat).phase)
        self._phases[phase] = self._phases.get(phase, 0.0) + seconds

    def _saw_step(self, beats: Sequence[Beat]) -> bool:
        """True if a rank has ended a step since the last look: not every rank reports."""
        before, self._beats = self._beats, {beat.rank: beat for beat in beats}
        return any(
            beat.rank in before and has_ended_step(before[beat.rank], beat) for beat in beats
        )

    @property
    def _elapsed(self) -> float:
        return sum(self._phases.values())

    def _reading(self, step: int, wall: float) -> Reading:
        began = wall if self._begun is None else self._begun
        return Reading(self._elapsed, 0.0, 0, step, began, wall)

    def _judge(self, attempt: int, wall: float) -> list[Finding]:
        longest = max((*self._starts, self._known))
        s, elapsed = self._settings, self._elapsed
        limit = max(s.factor * longest, longest + s.seconds)
        if self._told or len(self._starts) < _FEWEST or elapsed <= limit:
            return []
        self._told = True
        phase = max(self._phases, key=lambda each: self._phases[each])
        step = max((beat.step for beat in self._beats.values()), default=0)
        reading = self._reading(step, wall)
        return [
            begun(
                _KIND,
                attempt,
                (reading, reading),
                f"no step has ended {in_words(elapsed)} after the start (loading of checkpoints not"
                f" counted); the longest of {len(self._starts)} starts before took"
                f" {in_words(longest)}; the rank that is behind was {phase} for"
                f" {in_words(self._phases[phase])}",
                None,
                elapsed_seconds=round(elapsed, 1),
                longest_start_seconds=round(longest, 1),
                lost_seconds=round(elapsed - longest, 1),
                phase=phase,
            )
        ]

    def _end_unseen(self) -> None:
        """The start ended before any look at it: its time is not known."""
        self._ended = True
        if self._known:
            self._starts.append(self._known)

    def _end(self, attempt: int, beats: Sequence[Beat], wall: float) -> list[Finding]:
        longest = max((*self._starts, self._known))
        self._starts.append(self._elapsed)
        self._ended = True
        if not self._told:
            return []
        step = max((beat.step for beat in beats), default=0)
        seen = f"the first step has ended {in_words(self._elapsed)} after the start"
        return [over(_KIND, attempt, self._reading(step, wall), seen, self._elapsed - longest)]
