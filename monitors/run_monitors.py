"""All monitors of one run, behind one door."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from pydantic import BaseModel, ConfigDict, Field

from monitors.hang import HangMonitor, HangSettings
from monitors.loss import LossMonitor, LossSettings
from monitors.non_finite import NonFiniteGuard
from monitors.types import Beat, Finding, FindingKind, Sample


class MonitorSettings(BaseModel):
    """Settings of all monitors of a run."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    loss: LossSettings = LossSettings()
    hang: HangSettings = HangSettings()
    loss_rank: int = Field(default=0, ge=0)
    """The rank whose loss is judged for spikes.

    A micro-batch of each of the others would only repeat the noise.
    """


class RunMonitors:
    """Watches one run: spikes on one rank, non-finite numbers on every rank, hangs on all together.

    Everything is a function of what was fed in, so a watch is rebuilt after a restart of the
    control plane by feeding the recent samples again, all attempts in order, and dropping the
    findings. Each sample names its attempt; `restart` only announces a new one sooner.
    """

    def __init__(self, settings: MonitorSettings | None = None) -> None:
        self._settings = settings or MonitorSettings()
        self._loss = LossMonitor(self._settings.loss)
        self._hang = HangMonitor(self._settings.hang)
        self._guards: dict[int, NonFiniteGuard] = {}
        self._last_step: dict[int, int] = {}
        self._attempt = 0
        self._pace_rank: int | None = None
        self._said: set[tuple[FindingKind, int]] = set()

    @property
    def median_step_seconds(self) -> float | None:
        """Median step time of the run, seconds; None before the fifth step."""
        return self._hang.median_step_seconds

    def observe(self, samples: Iterable[Sample]) -> list[Finding]:
        """Take samples of any ranks, each rank's in order of steps.

        Those of older attempts are ignored.
        """
        findings: list[Finding] = []
        for sample in samples:
            if sample.attempt < self._attempt:
                continue
            if sample.attempt > self._attempt:
                self.restart(sample.attempt, sample.step - 1)
            if sample.step <= self._last_step.get(sample.rank, -1):
                continue
            self._last_step[sample.rank] = sample.step
            findings += self._judge(sample)
        return [finding for finding in findings if self._is_news(finding)]

    @property
    def moved_again(self) -> bool:
        """See :attr:`monitors.hang.HangMonitor.moved_again`."""
        return self._hang.moved_again

    def tick(
        self, now: float, beats: Sequence[Beat], *, wall: float | None = None
    ) -> list[Finding]:
        """Look for hangs; see :meth:`monitors.hang.HangMonitor.tick`."""
        current = [beat for beat in beats if beat.attempt >= self._attempt]
        return self._hang.tick(now, current, wall=wall)

    def restart(self, attempt: int, step: int) -> None:
        """A new attempt resumed after `step` (0.

        From the beginning). Saying it twice changes nothing.
        """
        if attempt <= self._attempt:
            return
        self._attempt = attempt
        self._loss.reset(attempt, step)
        self._hang.restart(attempt)
        self._guards.clear()
        self._pace_rank = None
        self._last_step.clear()
        self._said.clear()

    def _judge(self, sample: Sample) -> list[Finding]:
        # The pace is that of the lowest rank that reports: in a pipeline that may be the last one.
        if self._pace_rank is None or sample.rank <= self._pace_rank:
            self._pace_rank = sample.rank
            self._hang.observe(sample)
        if sample.rank == self._settings.loss_rank:
            return self._loss.observe(sample)
        return self._guards.setdefault(sample.rank, NonFiniteGuard()).observe(sample)

    def _is_news(self, finding: Finding) -> bool:
        """Ranks that average their gradients go non-finite together.

        The first to say so speaks for all.
        """
        if finding.kind is not FindingKind.NON_FINITE:
            return True
        key = (finding.kind, finding.onset_step)
        if key in self._said:
            return False
        self._said.add(key)
        return True
