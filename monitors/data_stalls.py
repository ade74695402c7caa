"""Data stalls: the run waits for its loader far more than it used to.

The design: ranks sum up the seconds in which they wait for the next batch (`babysit.step_times`).
Windows of the run are compared with those before. A stall is what lasts for `WINDOWS` of them, with
a larger share of the step and more seconds a step: another batch size changes the seconds and
not the share, and a faster step changes the share and not the seconds. The step must be longer by
as much: a host that runs ahead of its GPU waits for its loader and loses nothing.

Limits: the lower median of the ranks counts, so one slow loader among them is a straggler.
Only loaders that `run.steps()` draws from are measured. Workers that are behind from the first
minute on are the run's past.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median_low

from pydantic import BaseModel, ConfigDict, Field

from babysit.wire import Part
from monitors.own_past import Change, Episode, OwnPast, Reading, usual
from monitors.slowdown_findings import begun, in_words, over
from monitors.step_parts import PartWindows, Window
from monitors.types import Beat, Finding, FindingKind

WINDOWS = 4
"""Windows in a row that a stall must last."""
_FEWEST = 8
"""Windows of the past that must be known: twice as long as a stall must last."""
_GROWN = 0.25
"""Part of `share` by which the share of waiting must have grown: larger batches take more time to
load and to compute."""


class DataStallSettings(BaseModel):
    """Settings of the search for data stalls."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    share: float = Field(default=0.2, gt=0, lt=1)
    """Share of a step that is lost to waiting for data beyond the usual seconds. Ours: no monitor
    that we know publishes one."""
    factor: float = Field(default=2.0, gt=1)
    """Seconds of waiting a step, as a multiple of the usual ones. Ours: a queue that is emptied
    faster for a while doubles no wait."""
    steps: int = Field(default=64, ge=WINDOWS)
    """Steps over which it must last. Ours: several times the queue of a loader."""
    after_seconds: float = Field(default=240.0, ge=0)
    """Seconds over which it must last. Ours: workers that start anew in an epoch take less."""
    warmup_steps: int = Field(default=20, ge=1)
    """First steps of an attempt that are not judged: caches and the loader's queue fill."""


class DataStallMonitor:
    """Watches the share of a step that the ranks wait for data. O(ranks) a window."""

    def __init__(self, settings: DataStallSettings | None = None) -> None:
        self._settings = s = settings or DataStallSettings()
        steps = -(-s.steps // WINDOWS)
        self._cutter = PartWindows(steps, s.after_seconds / WINDOWS, s.warmup_steps)
        self._past = OwnPast()
        self._episode = Episode(self._past, WINDOWS)

    @property
    def explains(self) -> bool:
        """True while a stall is known or suspected: the run is slow because of it."""
        return self._episode.active or self._episode.is_suspected

    def restart(self) -> None:
        """A new attempt: other processes, with the same work."""
        self._cutter.reset()
        self._episode.forget()

    def forget(self) -> None:
        """The work has changed: nothing of the past can be compared."""
        self._cutter.reset()
        self._past.clear()

    def tick(self, attempt: int, now: float, beats: Sequence[Beat], wall: float) -> list[Finding]:
        """Look at the newest beats of the attempt; `now` on a clock that only goes forward."""
        window = self._cutter.add(now, beats)
        if window is None or window.step_seconds <= 0.0:
            return []
        return self._judge(attempt, window, wall)

    def _judge(self, attempt: int, window: Window, wall: float) -> list[Finding]:
        waited, step = float(median_low(window.of(Part.DATA))), window.step_seconds
        begun = wall - (window.ended - window.begun)
        reading = Reading(waited, 0.0, window.first_step + 1, window.step, begun, wall, step)
        past = self._past.like(0.0)
        if len(past) < _FEWEST:
            self._episode.take(reading, slow=None)
            return []
        waits = usual(each.value for each in past)
        shares = usual(each.value / each.other for each in past)
        typical = usual(each.other for each in past).median
        s, share = self._settings, waited / step
        more = min(waited - waits.high, step - typical) / step
        grown = share > shares.high + _GROWN * s.share
        cost = max(0.0, min(waited - waits.median, step - typical) / step)
        change = self._episode.take(
            reading,
            slow=grown and more > s.share and waited > s.factor * waits.high,
            calm=not grown or more <= s.share / 2,
            lost=cost * (wall - begun),
        )
        if change is Change.BEGUN:
            return [self._begun(attempt, reading, (waits.median, shares.median), cost)]
        if change is Change.OVER:
            what = f"the ranks wait for data for {share:.0%} of a step again"
            return [over(FindingKind.DATA_STALL, attempt, reading, what, self._episode.lost)]
        return []

    def _begun(
        self, attempt: int, newest: Reading, before: tuple[float, float], cost: float
    ) -> Finding:
        (wait, share), waited, step = before, newest.value, newest.other
        return begun(
            FindingKind.DATA_STALL,
            attempt,
            (self._episode.first, newest),
            f"the ranks wait for data for {waited / step:.0%} of a step ({in_words(waited)}),"
            f" against {share:.0%} ({in_words(wait)}) before",
            3600.0 * cost,
            share=round(waited / step, 4),
            usual_share=round(share, 4),
            wait_seconds_a_step=round(waited, 6),
            usual_wait_seconds_a_step=round(wait, 6),
        )
