"""The hang monitor: no rank of a run has made progress for longer than its own pace explains."""

from __future__ import annotations

import dataclasses
import math
from collections import deque
from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict, Field

from babysit.wire import Phase
from monitors.statistics import SortedWindow
from monitors.types import Beat, Finding, FindingKind, Pace, Sample, Severity

_STEPS_KEPT = 256
_FEWEST_STEPS = 5
"""Step times needed before they set a limit.

Until an attempt has ended as many steps, its pauses are those of its start: programs compile for
each new shape.
"""
_PHASES_KEPT = 64
_PAUSES_KEPT = 16
_IN_LOOP = frozenset({Phase.TRAINING, Phase.LOADING})
_LONGEST_TICK_SECONDS = 10.0
_FEWEST_TICKS = 2
"""Silence is believed only when it was looked at twice.

The first look after a pause of the monitor itself sees old beats.
"""


class HangSettings(BaseModel):
    """Settings of the hang monitor."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    after_seconds: float | None = Field(default=None, gt=0)
    """Silence in training that is a hang; None: from the run's own step times."""
    starting_seconds: float = Field(default=600.0, gt=0)
    """Limit for starting, restoring, an attempt's first step, and a phase never seen to end."""
    floor_seconds: float = Field(default=3.0, gt=0)
    """Least limit in training.

    Below it, a pause of the garbage collector or a disk would be a hang.
    """
    median_factor: float = Field(default=5.0, ge=1)
    """Limit as a multiple of the median step (Unicron: 3 times the mean; NVRx: safety factor 5)."""
    quantile_factor: float = Field(default=2.0, ge=1)
    """Limit as a multiple of the 99th percentile of step times.

    Steps that are long now and then are normal here.
    """
    checkpointing_floor_seconds: float = Field(default=10.0, gt=0)
    """Least limit of the blocking part of a save; it is also five times the longest one seen."""
    evaluating_floor_seconds: float = Field(default=120.0, gt=0)
    """Least limit of an evaluation; it is also five times the longest one seen."""
    phase_factor: float = Field(default=5.0, ge=1)
    """Limit of a phase as a multiple of the longest one seen."""
    suspect_starting_seconds: float = Field(default=30.0, gt=0)
    """Silence while starting, before the first steps, or in a phase never seen to end, after which
    a look at the ranks is worth it. Only `starting_seconds` ends such a run without proof."""
    pause_factor: float = Field(default=1.5, ge=1)
    """Limit as a multiple of pauses that came twice: what comes back is part of the run's pace."""


@dataclasses.dataclass(slots=True)
class _Watched:
    """One rank, as the monitor's own clock saw it."""

    beat: Beat
    silence: float = 0.0
    """Seconds since the beat changed."""
    ticks: int = 0
    """Looks since the beat changed."""
    in_phase: float = 0.0
    """Seconds since the phase began."""


class HangMonitor:
    """Judges silence by the monitor's own clock, so that the clocks of nodes need not agree.

    Only time between two ticks counts, and at most ten seconds of it: a control plane that slept
    does not call its runs hung. A rank that is absent from a tick (its agent is out of contact)
    starts anew when it is back, since losing contact is not failure. Tick about once a second.

    `known` is the pace of earlier attempts and other runs of the name: a first evaluation then has
    a limit.
    """

    def __init__(self, settings: HangSettings | None = None, known: Pace | None = None) -> None:
        known = known or Pace()
        self._settings = settings or HangSettings()
        self._steps = SortedWindow(_STEPS_KEPT)
        self._phases = {
            Phase.CHECKPOINTING: SortedWindow(_PHASES_KEPT),
            Phase.EVALUATING: SortedWindow(_PHASES_KEPT),
        }
        self._attempt = 0
        self._ranks: dict[int, _Watched] = {}
        self._stepped = -1
        """The attempt of the newest step known."""
        self._sampled = -1
        """The attempt of the newest sample: samples tell the pace better than looks do."""
        self._last_tick: float | None = None
        self._reported: set[int] = set()
        self.moved_again = False
        """At the last look, every rank that had been reported had moved since."""
        self._since_restart = 0.0
        """Seconds that the attempt has been looked at."""
        self._longest_start = known.start
        """Longest time to a first step, or within the first steps, seconds; 0: none seen."""
        self._first_step: int | None = None
        """The first step that the attempt is known to have ended."""
        self._newest_step = 0
        self._in_pace = False
        """True if a step of the attempt had ended at the last look."""
        self._was_young = True
        """True if the attempt had not ended its first steps at the last look."""
        self._long: deque[float] = deque(maxlen=_PAUSES_KEPT)
        """Pauses beyond the limit that ended by themselves."""
        self.longest_pause = known.pause
        """Longest silence in training that ended by itself, seconds."""
        if known.evaluation > 0:
            self._phases[Phase.EVALUATING].push(known.evaluation)
        if known.save > 0:
            self._phases[Phase.CHECKPOINTING].push(known.save)

    @property
    def pace(self) -> Pace:
        """The longest pauses that ended by themselves, those known from the beginning included."""
        longest = {
            phase: seen.quantile(1.0) if len(seen) else 0.0 for phase, seen in self._phases.items()
        }
        return Pace(
            start=self._longest_start,
            pause=self.longest_pause,
            evaluation=longest[Phase.EVALUATING],
            save=longest[Phase.CHECKPOINTING],
        )

    @property
    def median_step_seconds(self) -> float | None:
        """Median step time of the run without the time that saves blocked it.

        None before the fifth step.
        """
        return self._steps.median if len(self._steps) >= _FEWEST_STEPS else None

    def observe(self, sample: Sample) -> None:
        """Learn the pace of the run from a step."""
        if sample.attempt < self._attempt:
            return
        self._stepped = self._sampled = sample.attempt
        self._note_step(sample.step)
        pace = sample.seconds - sample.blocked_seconds
        if math.isfinite(pace) and pace > 0:
            self._steps.push(pace)
        if math.isfinite(sample.blocked_seconds) and sample.blocked_seconds > 0:
            self._phases[Phase.CHECKPOINTING].push(sample.blocked_seconds)

    def restart(self, attempt: int) -> None:
        """A new attempt: what ranks did is forgotten, the pace of the run is kept.

        A second call for the same attempt changes nothing: beats tell of an attempt before its
        first sample does, and the time of its start counts from them.
        """
        if attempt <= self._attempt:
            return
        self._attempt = attempt
        self._ranks.clear()
        self._reported.clear()
        self._in_pace = False
        self._since_restart = 0.0
        self._first_step, self._newest_step = None, 0

    def _note_step(self, step: int) -> None:
        self._first_step = step if self._first_step is None else min(self._first_step, step)
        self._newest_step = max(self._newest_step, step)

    @property
    def _is_young(self) -> bool:
        """True until the attempt has ended its first five steps; one, if a limit is stated."""
        first = self._first_step
        if self._stepped < self._attempt or first is None:
            return True
        if self._settings.after_seconds is not None:
            return False
        return self._newest_step - first + 1 < _FEWEST_STEPS

    def limit(self, phase: str) -> float:
        """Seconds of silence that are normal in a phase (a :class:`babysit.wire.Phase` value).

        Until a step of the attempt has ended, training has the limit of starting: the first step
        compiles and connects.
        """
        s = self._settings
        if phase == Phase.CHECKPOINTING:
            return self._phase_limit(Phase.CHECKPOINTING, s.checkpointing_floor_seconds)
        if phase == Phase.EVALUATING:
            return self._phase_limit(Phase.EVALUATING, s.evaluating_floor_seconds)
        median = self.median_step_seconds
        if phase not in _IN_LOOP or self._stepped < self._attempt:
            return min(s.starting_seconds, s.suspect_starting_seconds)
        if s.after_seconds is not None:
            return s.after_seconds
        if median is None:
            return min(s.starting_seconds, s.suspect_starting_seconds)
        again = sorted(self._long)[-2] if len(self._long) > 1 else 0.0
        return max(
            s.floor_seconds,
            s.median_factor * median,
            s.quantile_factor * self._steps.quantile(0.99),
            s.pause_factor * again,
        )

    def _phase_limit(self, phase: Phase, floor: float) -> float:
        seen = self._phases[phase]
        if not len(seen):
            return max(floor, self._settings.suspect_starting_seconds)
        return max(floor, self._settings.phase_factor * seen.quantile(1.0))

    def tick(
        self, now: float, beats: Sequence[Beat], *, wall: float | None = None
    ) -> list[Finding]:
        """Look at the last beats of all ranks in contact; at most one finding for a hang.

        Args:
            now: Seconds on a monotonic clock; only differences between ticks matter.
            beats: One for each rank whose agent is in contact.
            wall: Unix seconds, for the times in a finding; absent: `now`.
        """
        elapsed = 0.0 if self._last_tick is None else now - self._last_tick
        self._last_tick = now
        known_before = bool(self._reported)
        self._take(min(max(elapsed, 0.0), _LONGEST_TICK_SECONDS), beats)
        hung = self._hung()
        known = bool(self._reported)
        self.moved_again = known_before and not known
        self._reported |= {watched.beat.rank for watched in hung}
        return [self._finding(now if wall is None else wall, hung)] if hung and not known else []

    def _take(self, elapsed: float, beats: Sequence[Beat]) -> None:
        newest = max((beat.attempt for beat in beats), default=0)
        if newest > self._attempt:
            self.restart(newest)
        current = {b.rank: b for b in beats if b.attempt == self._attempt and b.alive}
        if self._ranks.keys() != current.keys():
            self._ranks = {rank: w for rank, w in self._ranks.items() if rank in current}
            self._reported &= current.keys()
        pause = 0.0
        for rank, beat in current.items():
            watched = self._ranks.get(rank)
            if watched is None:
                self._ranks[rank] = _Watched(beat)
            elif beat is not watched.beat and _progressed(watched.beat, beat):
                self._reported.discard(rank)
                pause = max(pause, watched.silence if watched.beat.phase in _IN_LOOP else 0.0)
                self._advance(watched, beat, elapsed)
            else:
                watched.silence += elapsed
                watched.in_phase += elapsed
                watched.ticks += 1
        self._since_restart += elapsed
        if self._stepped == self._attempt and not self._in_pace:
            self._longest_start = max(self._longest_start, self._since_restart)
        if self._in_pace:  # a pause before the first step says nothing about the run's pace
            self._learn_pause(pause)
            if self._was_young:
                self._longest_start = max(self._longest_start, pause)
        self._was_young = self._is_young
        self._in_pace = self._stepped == self._attempt

    def _advance(self, watched: _Watched, beat: Beat, elapsed: float) -> None:
        before = watched.beat
        if has_ended_step(before, beat) and self._sampled < self._attempt:
            # Ranks that draw batches and never report have a pace too.
            self._stepped = self._attempt
            self._note_step(beat.step)
            self._steps.push((watched.silence + elapsed) / (beat.step - before.step))
        watched.in_phase += elapsed
        if beat.phase != before.phase:
            lasted = self._phases.get(Phase(before.phase))
            if lasted is not None:
                lasted.push(watched.in_phase)
            watched.in_phase = 0.0
        watched.beat, watched.silence, watched.ticks = beat, 0.0, 0

    def _longest_seen(self) -> float:
        """Longest time without a step that was normal: a pause, a save, an evaluation."""
        phases = (seen.quantile(1.0) for seen in self._phases.values() if len(seen))
        return max(self.longest_pause, *phases, 0.0)

    def _learn_pause(self, silence: float) -> None:
        self.longest_pause = max(self.longest_pause, silence)
        if silence > self.limit(Phase.TRAINING):
            self._long.append(silence)

    def _hung(self) -> list[_Watched]:
        """Ranks silent beyond their limit and beyond that of any peer they may rightly wait for."""
        # Silence says nothing of a rank that has never moved, unless no rank has.
        moved = [w for w in self._ranks.values() if w.beat.moved]
        judged = moved or list(self._ranks.values())
        limits = {phase: self.limit(phase) for phase in {w.beat.phase for w in judged}}
        silent = [w for w in judged if w.silence > limits[w.beat.phase]]
        if not silent:  # as nearly always, and with many thousand ranks
            return []
        late = {id(w) for w in silent}
        within = {w.beat.phase for w in judged if id(w) not in late} - {Phase.FINISHED}
        patience = max((limits[phase] for phase in within), default=0.0)
        return [w for w in silent if w.ticks >= _FEWEST_TICKS and w.silence > patience]

    def _suspect(self, hung: list[_Watched]) -> int | None:
        """The one rank that is behind all others; when all stand at the same step, nobody."""
        if len(hung) == 1 and len(self._ranks) > 1:
            return hung[0].beat.rank
        lowest = min(w.beat.step for w in hung)
        behind = [w.beat.rank for w in hung if w.beat.step == lowest]
        return behind[0] if len(behind) == 1 and len(hung) > 1 else None

    def _is_first(self, hung: list[_Watched]) -> bool:
        """True if a phase that was never seen to end is awaited: nothing tells how long it takes.

        A rank that has ended its loop keeps no other rank waiting.
        """
        busy = [w for w in self._ranks.values() if w.beat.phase != Phase.FINISHED]
        awaited = {Phase(w.beat.phase) for w in (*hung, *busy)} - _IN_LOOP
        return any(not len(self._phases.get(phase, ())) for phase in awaited)

    def _finding(self, now: float, hung: list[_Watched]) -> Finding:
        silence = max(w.silence for w in hung)
        limit = max(self.limit(w.beat.phase) for w in hung)
        onset = min(w.beat.step for w in hung)
        suspect = self._suspect(hung)
        at_start = self._is_young
        longest_start = self._longest_start
        if longest_start and self._stepped == self._attempt:
            longest_start = max(longest_start, self._longest_seen())
        median = self.median_step_seconds
        pace = f", median step {median:.3g} s" if median is not None else ""
        reason = (
            f"no progress on {len(hung)} of {len(self._ranks)} ranks for {silence:.1f} s "
            f"after step {onset} (limit {limit:.1f} s{pace})"
        )
        if suspect is not None:
            others = [w.beat.step for rank, w in self._ranks.items() if rank != suspect]
            is_behind = self._ranks[suspect].beat.step < min(others)
            reason += f"; rank {suspect} is {'behind' if is_behind else 'the silent one'}"
        return Finding(
            kind=FindingKind.HANG,
            severity=Severity.CRITICAL,
            attempt=self._attempt,
            rank=suspect,
            onset_step=onset,
            detected_step=max(w.beat.step for w in self._ranks.values()),
            onset_time=now - silence,
            detected_time=now,
            reason=reason,
            evidence={
                "limit_seconds": limit,
                "longest_pause_seconds": round(self._longest_seen(), 3),
                "longest_start_seconds": round(longest_start, 3) if at_start else 0.0,
                "starting": at_start or self._is_first(hung),
                "median_step_seconds": median,
                "ranks": [
                    {
                        "rank": w.beat.rank,
                        "step": w.beat.step,
                        "phase": w.beat.phase,
                        "silent_seconds": round(w.silence, 3),
                    }
                    for w in sorted(self._ranks.values(), key=lambda w: w.beat.rank)
                ],
            },
        )


def has_ended_step(before: Beat, after: Beat) -> bool:
    """True if a step ended between two beats of a rank.

    From 0 to any step but the first, the rank may only have restored a checkpoint.
    """
    return after.step > before.step and (before.step > 0 or after.step == 1)


def _progressed(before: Beat, after: Beat) -> bool:
    return (before.step, before.phase, before.beat) != (after.step, after.phase, after.beat)
