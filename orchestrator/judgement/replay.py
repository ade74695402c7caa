"""Runs the monitors again over recorded samples, with the settings of a spec.

The problem: what would other thresholds have found in runs that are over? The samples are stored;
heartbeats and phases are not.

The design: the very monitors of the control plane, fed in the recorded order. Where two samples lie
apart, the hang monitor is ticked through the pause with the last step of the rank that speaks. A
loss finding that the remedy table has a remedy for is an *alarm*. A silence is an alarm from the
moment at which a run without proof would be restarted; with proof in the record (a rank that was
stopped, dead or in a deadlock), from the moment at which the monitor noticed it.

Limits: samples of most ranks were never stored, so a spike of another rank may be missed. Every
pause counts as training: the phase (an evaluation, a save) is not recorded. Pauses that other runs
of the name had shown are not known.
"""

from __future__ import annotations

import dataclasses
from array import array
from typing import Any, Literal

from babysit.wire import Phase
from jobs.spec import Action, RunSpec
from monitors.run_monitors import RunMonitors
from monitors.types import Beat, Finding, FindingKind, Sample
from orchestrator.controller.sample_pipeline import monitor_settings
from orchestrator.core.policy import remedies, time_limits
from orchestrator.core.supervision.findings import ASK_SECONDS

Family = Literal["loss", "hang"]
"""The subject of an alarm: the remedy of a loss is a rollback, that of a hang a restart."""
FAMILIES: tuple[Family, ...] = ("loss", "hang")
_TICK_SECONDS = 0.5
_TICK_SHARE = 0.02
"""Looks grow further apart by this share of the silence: that is how exact a delay is."""
_LONGEST_TICK_SECONDS = 9.0
"""The monitor counts at most 10 s between two ticks."""
_SHORTEST_PAUSE_SECONDS = 1.0
"""Shorter pauses are not looked at: no limit that a run needs is shorter."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Alarm:
    """A moment at which the monitors would have called for a remedy."""

    family: Family
    kind: FindingKind
    attempt: int
    onset_step: int
    detected_step: int
    onset_time: float
    """Unix seconds."""
    at: float
    """When it is raised, Unix seconds."""
    acts_at: float | None
    """When the remedy starts by itself; None: never, as the action is `observe`."""
    reason: str


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class End:
    """The end of an attempt."""

    time: float
    """When the attempt ended or its failure was detected, Unix seconds."""
    proven_hang_after: int | None = None
    """The last step before a hang with proof; None: there was none."""
    silent: bool = False
    """True if the attempt ended in a hang: it would have stayed silent for longer."""


class Replay:
    """The monitors of one run, once more. Samples come in the order of attempts and steps."""

    def __init__(self, spec: RunSpec) -> None:
        self._spec = spec
        self._monitors = RunMonitors(monitor_settings(spec))
        self._last: Sample | None = None
        self.alarms: list[Alarm] = []

    def feed(self, sample: Sample, *, speaks: bool = True) -> None:
        """Take a sample; only the rank that `speaks` for the run is judged for pauses."""
        if speaks:
            before = self._last
            if before is not None and before.attempt == sample.attempt:
                self._pause(before, sample.time, ended=True, proven=False)
            self._last = sample
        for finding in self._monitors.observe([sample]):
            self._take(finding)

    def end(self, end: End) -> None:
        """An attempt has ended: its last silence is judged."""
        last = self._last
        if last is not None:
            proven = end.proven_hang_after is not None and last.step >= end.proven_hang_after
            # A hang would have lasted until somebody ended it, so every limit ends it.
            until = last.time + 2 * time_limits.PAUSE_CEILING_SECONDS if end.silent else end.time
            self._pause(last, until, ended=False, proven=proven)
        self._last = None

    def _take(self, finding: Finding) -> None:
        if not remedies.FINDINGS[finding.kind].only_recorded:
            self.alarms.append(self._alarm(finding, "loss", finding.detected_time))

    def _pause(self, before: Sample, until: float, *, ended: bool, proven: bool) -> None:
        """Tick the monitor through a silence after a sample."""
        length = until - before.time
        if length < _SHORTEST_PAUSE_SECONDS:
            return
        found = self._noticed(before, until)
        if found is None:
            return
        limit = time_limits.pause_limit(
            self._spec,
            longest=float(found.evidence.get("longest_pause_seconds", 0.0)),
            starting=bool(found.evidence.get("starting")),
            longest_start=float(found.evidence.get("longest_start_seconds", 0.0)),
        )
        silence = found.detected_time - before.time
        waits = silence if proven and not ended else max(silence, limit)
        if waits <= length:
            onset = found.model_copy(update={"onset_time": before.time})
            self.alarms.append(self._alarm(onset, "hang", before.time + waits))

    def _noticed(self, before: Sample, until: float) -> Finding | None:
        beat = Beat(before.attempt, before.rank, before.step, Phase.TRAINING, before.time)
        now = before.time
        while now <= until:
            for finding in self._monitors.tick(now, [beat], wall=now):
                return finding
            wait = max(_TICK_SECONDS, _TICK_SHARE * (now - before.time))
            now += min(_LONGEST_TICK_SECONDS, wait)
        return None

    def _alarm(self, finding: Finding, family: Family, at: float) -> Alarm:
        action = remedies.action_of(self._spec, finding.kind)
        waits = {Action.ACT: 0.0, Action.ASK: ASK_SECONDS}.get(action)
        return Alarm(
            family=family,
            kind=finding.kind,
            attempt=finding.attempt,
            onset_step=finding.onset_step,
            detected_step=finding.detected_step,
            onset_time=finding.onset_time,
            at=at,
            acts_at=None if waits is None else at + waits,
            reason=finding.reason,
        )


class Curve:
    """The losses of the rank that speaks, of one attempt: what came after an alarm."""

    def __init__(self) -> None:
        self.step: array[Any] = array("q")
        self.time: array[Any] = array("d")
        self.loss: array[Any] = array("d")

    def add(self, sample: Sample) -> None:
        """Take the next sample."""
        self.step.append(sample.step)
        self.time.append(sample.time)
        self.loss.append(float("nan") if sample.loss is None else sample.loss)
