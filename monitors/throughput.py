"""Throughput drops: the steps of a run take longer than its own past explains, and go on to.

The design: the reports of the rank that speaks for the run are cut into windows. Of each window the
longest eighth of the reports is left out, so that evaluations, saves that nobody announced and
single slow steps do not count; nor does the time in which saves blocked. Where evaluations that
`run.phase` announces take more of a window than that, they are subtracted instead.
Windows are compared with those before, in the best unit that the script reports: model FLOPs
utilisation (`mfu` among its metrics), else seconds for the tokens of windows with as many tokens a
step, else seconds a step.

Limits: without tokens and MFU, longer sequences and larger batches look like a drop, so it is only
recorded as information. So do sequences that get longer while the tokens of a step stay the same,
where no MFU is reported: `run.expect` announces them. A run that is slow from its beginning is its
own past.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from enum import StrEnum

from pydantic import BaseModel, ConfigDict, Field

from babysit.wire import Part
from monitors.own_past import Change, Episode, OwnPast, Reading, usual
from monitors.slowdown_findings import begun, in_words, over
from monitors.types import Beat, Finding, FindingKind, Sample, Severity

WINDOWS = 6
"""Windows in a row that a drop must last: longer than a data stall, which explains one."""
_FEWEST = 12
"""Windows of the past that must be known: twice as long as a drop must last."""
_BINS = 128
"""Sums of reports that a window keeps at most."""
_LEFT_OUT = 8
"""One in this many bins is left out: the longest ones."""
_KIND = FindingKind.THROUGHPUT_DROP
_PAUSED = tuple(Part).index(Part.PAUSED)


class ThroughputSettings(BaseModel):
    """Settings of the search for throughput drops."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    drop: float = Field(default=0.2, gt=0, lt=1)
    """Share of the usual throughput that is lost. Twice what one slow machine of a gang costs
    (FAILURES.md row 11: some 10 %), which is a straggler."""
    steps: int = Field(default=96, ge=WINDOWS)
    """Reports over which it must last. Ours: the longest eighth of 16 in a window are two."""
    after_seconds: float = Field(default=360.0, ge=0)
    """Seconds over which it must last. Ours: longer than evaluations, uploads and compilations."""
    warmup_steps: int = Field(default=20, ge=1)
    """First reports of an attempt that are not judged: compilers and caches warm up."""


class _Bins:
    """Sums over reports in equal numbers; pairs are merged where there are too many."""

    def __init__(self) -> None:
        self._sums: list[tuple[float, float, int]] = []
        """Seconds, tokens and steps."""
        self._stride, self._open = 1, (0.0, 0.0, 0)
        self.reports = self.steps = 0
        self.seconds = self.blocked = 0.0
        self._no_tokens = self._no_mfu = False
        """True if a report had none."""
        self._mfu = 0.0

    def add(self, sample: Sample, seconds: float, steps: int) -> None:
        """Take a report about some steps."""
        self.reports += 1
        self.steps += steps
        self.seconds += seconds
        self.blocked += sample.blocked_seconds
        self._mfu += sample.mfu
        self._no_mfu = self._no_mfu or sample.mfu <= 0
        self._no_tokens = self._no_tokens or sample.tokens <= 0
        had = self._open
        self._open = had[0] + seconds, had[1] + sample.tokens, had[2] + steps
        if self.reports % self._stride:
            return
        self._sums.append(self._open)
        self._open = (0.0, 0.0, 0)
        if len(self._sums) >= _BINS:
            pairs = zip(self._sums[::2], self._sums[1::2], strict=True)
            self._sums = [(a[0] + b[0], a[1] + b[1], a[2] + b[2]) for a, b in pairs]
            self._stride *= 2

    @property
    def mfu(self) -> float:
        """Mean model FLOPs utilisation; 0: a report had none."""
        return 0.0 if self._no_mfu else self._mfu / self.reports

    def pace(self) -> tuple[float, float]:
        """Seconds and tokens a step without the longest bins; 0 tokens: a report had none."""
        by_pace = sorted(self._sums, key=lambda each: each[0] / each[2])
        kept = by_pace[: len(by_pace) - len(by_pace) // _LEFT_OUT]
        seconds, tokens, steps = map(sum, zip(*kept, strict=True))
        return seconds / steps, 0.0 if self._no_tokens else tokens / steps


class _Unit(StrEnum):
    """The unit of a window; the value is the word in the evidence."""

    MFU = "mfu"
    TOKENS = "tokens"
    STEPS = "steps"


class ThroughputMonitor:
    """Watches the pace of one rank. O(1) a report; O(past) when a window ends."""

    def __init__(self, settings: ThroughputSettings | None = None) -> None:
        self._settings = settings or ThroughputSettings()
        self._past = OwnPast()
        self._episode = Episode(self._past, WINDOWS)
        self._unit = _Unit.STEPS
        self._last: Sample | None = None
        self._seen = 0
        """Reports of the attempt."""
        self._bins, self._first = _Bins(), 0
        self._paused = self._paused_before = 0.0
        """Seconds of saves and announced evaluations, now and when the window began."""
        self.load = 0.0
        """Tokens a step in the newest window; 0: not known."""

    def restart(self) -> None:
        """A new attempt: other processes, with the same work."""
        self._episode.forget()
        self._last, self._seen = None, 0
        self._bins = _Bins()

    def forget(self) -> None:
        """The work has changed: nothing of the past can be compared."""
        self._past.clear()
        self._last = None
        self._bins = _Bins()

    def pause(self, beats: Sequence[Beat]) -> None:
        """Hear how long the rank has saved and evaluated so far."""
        if self._last is not None:
            rank = self._last.rank
            parts = next((beat.parts for beat in beats if beat.rank == rank), ())
            self._paused = parts[_PAUSED] if len(parts) > _PAUSED else 0.0

    def observe(self, sample: Sample, *, explained: bool = False) -> list[Finding]:
        """Take a report of the rank that speaks for the run.

        Args:
            sample: The report. One of another rank than before begins anew.
            explained: What slows the run is known already, so its windows prove nothing.
        """
        last, self._last = self._last, sample
        if last is None or last.rank != sample.rank:
            self._bins = _Bins()
            return []
        self._seen += 1
        steps, seconds = sample.step - last.step, sample.seconds
        if steps > 1 and sample.time > last.time:  # reports between may be lost, or not stored
            seconds = sample.time - last.time
        seconds -= sample.blocked_seconds
        if self._seen <= self._settings.warmup_steps or not 0 < seconds < math.inf:
            return []
        if not self._bins.reports:
            self._first, self._paused_before = last.step + 1, self._paused
        self._bins.add(sample, seconds, steps)
        s = self._settings
        if self._bins.reports < -(-s.steps // WINDOWS) or (
            self._bins.seconds < s.after_seconds / WINDOWS
        ):
            return []
        bins, self._bins = self._bins, _Bins()
        return self._judge(sample, bins, explained=explained)

    def _judge(self, sample: Sample, bins: _Bins, *, explained: bool) -> list[Finding]:
        reading = self._reading(sample, bins)
        if explained and not self._episode.active:
            return []
        past = self._past.like(reading.load)
        if len(past) < _FEWEST:
            change = self._episode.take(reading, slow=None)
            return [self._over(sample, reading)] if change is Change.OVER else []
        before, drop = usual(each.value for each in past), self._settings.drop
        change = self._episode.take(
            reading,
            slow=reading.value * (1 - drop) > before.high,
            calm=reading.value * (1 - drop / 2) <= before.high,
            lost=(1 - before.median / reading.value) * (reading.ended - reading.begun),
        )
        if change is Change.BEGUN:
            step_before = usual(each.other for each in past).median
            return [self._drop(sample.attempt, reading, before.median, step_before)]
        return [self._over(sample, reading)] if change is Change.OVER else []

    def _reading(self, sample: Sample, bins: _Bins) -> Reading:
        seconds, tokens = bins.pace()
        paused = self._paused - self._paused_before - bins.blocked
        if 0 < paused < bins.seconds:
            seconds = min(seconds, (bins.seconds - paused) / bins.steps)
        unit, value, load = _Unit.STEPS, seconds, 0.0
        if bins.mfu:
            unit, value = _Unit.MFU, 1.0 / bins.mfu
        elif tokens:
            unit, value, load = _Unit.TOKENS, seconds / tokens, tokens
        if unit is not self._unit:  # the script reports something else: nothing can be compared
            self._unit = unit
            self._past.clear()
        self.load, begun_at = tokens, sample.time - bins.seconds - bins.blocked
        return Reading(value, load, self._first, sample.step, begun_at, sample.time, seconds)

    def _drop(self, attempt: int, newest: Reading, before: float, step_before: float) -> Finding:
        kept = before / newest.value
        seen = f"a step takes {in_words(newest.other)}, against {in_words(step_before)} before:"
        if self._unit is _Unit.MFU:
            seen = f"MFU is {1 / newest.value:.3g}, against {1 / before:.3g} before:"
        seen += f" {1 - kept:.0%} less throughput"
        untold = self._unit is _Unit.STEPS
        if untold:
            seen += "; the script reports no tokens, so its batches may have grown"
        return begun(
            _KIND,
            attempt,
            (self._episode.first, newest),
            seen,
            3600.0 * (1 - kept),
            severity=Severity.INFO if untold else Severity.WARNING,
            unit=self._unit.value,
            drop=round(1 - kept, 4),
            step_seconds=round(newest.other, 6),
            usual_step_seconds=round(step_before, 6),
        )

    def _over(self, sample: Sample, reading: Reading) -> Finding:
        seen = f"a step takes {in_words(reading.other)}: the drop of the throughput is over"
        return over(_KIND, sample.attempt, reading, seen, self._episode.lost)
