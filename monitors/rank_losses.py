"""The losses of all ranks of a run.

The problem: in a pipeline only the last stage has a loss, so no fixed rank can stand for the run;
and a fault of one rank may show in its own loss alone. But a micro-batch of each of many ranks
multiplies the noise, and with it every false alarm.

The design: the lowest rank that reports a loss speaks for the run. Each other rank has a small
monitor of its own that is harder to convince, says nothing of single bad batches, and names its
rank. What several ranks show at once is said once, by the first.

Limits: of runs with more than `JUDGED_RANKS` ranks with a loss, the others are only watched for
numbers that are not finite.
"""

from __future__ import annotations

from collections import deque

from monitors.loss import LossMonitor, LossSettings
from monitors.loss_memory import LossMemory
from monitors.non_finite import NonFiniteGuard
from monitors.types import Finding, FindingKind, Sample

JUDGED_RANKS = 1024
"""Ranks whose losses are judged for spikes; each takes about 60 KB."""
_HARDER = 1.5
"""Factor of the threshold of ranks other than the one that speaks for the run."""
_LONGER = 2
"""Anomalous steps that such a rank needs more, so that what all ranks show is found on the speaker
even if the reports of its node come later."""
_HIGHER = 0.25
"""Least rise of such a rank, as a share of its forecast: its micro-batches are noisy."""
_SAME_STEPS = 64
"""Onsets closer than this, on different ranks, are one event."""
_KEPT = 64


class RankLosses:
    """Judges the loss of every rank. Bounded memory for each rank."""

    def __init__(self, settings: LossSettings, known: LossMemory | None = None) -> None:
        self._settings = settings
        self._known = known
        self._monitors: dict[int, LossMonitor] = {}
        self._guards: dict[int, NonFiniteGuard] = {}
        self._speaker: int | None = None
        """The lowest rank that has reported a loss."""
        self._expected: list[tuple[int, int]] = []
        """Announced changes: the step of the announcement, and to which step it lasts."""
        self._said: deque[Finding] = deque(maxlen=_KEPT)

    @property
    def memory(self) -> LossMemory:
        """Knowledge from the losses of the rank that speaks for the run."""
        if self._speaker is None:
            return self._known or LossMemory()
        return self._monitors[self._speaker].memory

    def observe(self, sample: Sample) -> list[Finding]:
        """Judge one step of one rank."""
        if sample.expected_until > sample.step:
            self.expect(sample.step - 1, sample.expected_until)
        monitor = self._monitor_of(sample)
        if monitor is None:
            guard = self._guards.setdefault(sample.rank, NonFiniteGuard())
            return self._news(guard.observe(sample))
        found = self._news(monitor.observe(sample))
        if sample.rank == self._speaker:
            return found
        return [_naming(finding) for finding in found if finding.kind in _OF_ANY_RANK]

    def expect(self, step: int, until_step: int) -> None:
        """A change was announced after `step` that lasts to `until_step`, on whichever rank."""
        if any(until >= until_step for _, until in self._expected):
            return
        self._expected = [*self._expected, (step, until_step)][-_KEPT:]
        for monitor in self._monitors.values():
            monitor.expect(until_step)

    def restart(self, attempt: int, step: int) -> None:
        """A new attempt resumed after `step`."""
        self._expected = [told for told in self._expected if told[0] <= step]
        for monitor in self._monitors.values():
            monitor.reset(attempt, step)
            for _, until_step in self._expected:
                monitor.expect(until_step)
        self._guards.clear()
        self._said.clear()

    def _monitor_of(self, sample: Sample) -> LossMonitor | None:
        """The monitor of a rank that has reported a loss."""
        rank = sample.rank
        monitor = self._monitors.get(rank)
        if monitor is not None or sample.loss is None:
            return monitor
        speaks = self._speaker is None or rank < self._speaker
        if not speaks and len(self._monitors) >= JUDGED_RANKS:
            return None
        if speaks:
            if self._speaker is not None:  # it only was the first to report
                self._begin(self._speaker, sample, LossMonitor(self._harder(), 2))
            self._speaker = rank
            return self._begin(rank, sample, LossMonitor(self._settings, known=self._known))
        return self._begin(rank, sample, LossMonitor(self._harder(), 2))

    def _begin(self, rank: int, sample: Sample, monitor: LossMonitor) -> LossMonitor:
        self._guards.pop(rank, None)
        self._monitors[rank] = monitor
        monitor.reset(sample.attempt, sample.step - 1)
        for _, until_step in self._expected:
            monitor.expect(until_step)
        return monitor

    def _harder(self) -> LossSettings:
        s = self._settings
        return s.model_copy(
            update={
                "threshold": _HARDER * s.threshold,
                "persistence": s.persistence + _LONGER,
                "confirmed_persistence": s.persistence + _LONGER,
                "relative_floor": max(_HIGHER, s.relative_floor),
                "window": max(16, s.window // 2),
                "drift": "off",
            }
        )

    def _news(self, findings: list[Finding]) -> list[Finding]:
        """Findings that no other rank has reported: ranks that share gradients fail together."""
        news = [finding for finding in findings if not self._is_said(finding)]
        self._said.extend(finding for finding in news if finding.kind in _OF_ANY_RANK)
        return news

    def _is_said(self, finding: Finding) -> bool:
        if finding.kind not in _OF_ANY_RANK:
            return False
        return any(
            said.kind is finding.kind
            and (
                said.onset_step == finding.onset_step
                if finding.kind is FindingKind.NON_FINITE
                else said.rank != finding.rank
                and abs(said.onset_step - finding.onset_step) <= _SAME_STEPS
            )
            for said in self._said
        )


_OF_ANY_RANK = frozenset({FindingKind.NON_FINITE, FindingKind.LOSS_SPIKE})
"""The finding of a rank that does not speak for the run."""


def _naming(finding: Finding) -> Finding:
    if finding.kind is FindingKind.NON_FINITE:  # its reason names the rank
        return finding
    return finding.model_copy(update={"reason": f"{finding.reason}; on rank {finding.rank}"})
