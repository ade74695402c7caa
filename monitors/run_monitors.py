"""All monitors of one run, behind one door."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from pydantic import BaseModel, ConfigDict

from monitors.hang import HangMonitor, HangSettings
from monitors.loss import LossSettings
from monitors.loss_memory import LossMemory
from monitors.loss_replay import LossReplay
from monitors.rank_losses import RankLosses
from monitors.replicas import ReplicaMonitor
from monitors.save_stalls import SavedShard
from monitors.slowdowns import SlowdownMonitors, SlowdownSettings
from monitors.stragglers import StragglerMonitor, StragglerSettings
from monitors.types import Beat, Finding, Fingerprint, Pace, Sample


class MonitorSettings(BaseModel):
    """Settings of all monitors of a run."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    loss: LossSettings = LossSettings()
    hang: HangSettings = HangSettings()
    straggler: StragglerSettings = StragglerSettings()
    slowdowns: SlowdownSettings = SlowdownSettings()


class RunMonitors:
    """Watches one run: losses and non-finite numbers on every rank, hangs, stragglers, slowdowns.

    Everything is a function of what was fed in, so a watch is rebuilt after a restart of the
    control plane by feeding the recent samples again, all attempts in order, and dropping the
    findings. Each sample names its attempt; `restart` only announces a new one sooner. `known` is
    what was learned of the pauses of the run before, and `learned` of its losses.
    """

    def __init__(
        self,
        settings: MonitorSettings | None = None,
        known: Pace | None = None,
        learned: LossMemory | None = None,
    ) -> None:
        self._settings = settings or MonitorSettings()
        self._losses = RankLosses(self._settings.loss, learned)
        self._replay = LossReplay()
        self._hang = HangMonitor(self._settings.hang, known)
        self._replicas = ReplicaMonitor(learned.replicas if learned else None)
        self._stragglers = StragglerMonitor(self._settings.straggler)
        start = known.start if known else 0.0
        self._slowdowns = SlowdownMonitors(self._settings.slowdowns, start)
        self._last_step: dict[int, int] = {}
        self._attempt = 0
        self._pace_rank: int | None = None

    @property
    def median_step_seconds(self) -> float | None:
        """Median step time of the run, seconds; None before the fifth step."""
        return self._hang.median_step_seconds

    @property
    def learned(self) -> LossMemory:
        """Knowledge of the losses of the rank that speaks for the run, and of its replicas."""
        return self._losses.memory.model_copy(update={"replicas": self._replicas.memory})

    @property
    def pace(self) -> Pace:
        """See :attr:`monitors.hang.HangMonitor.pace`."""
        return self._hang.pace

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
        return findings

    def compare(self, attempt: int, fingerprints: Sequence[Fingerprint]) -> list[Finding]:
        """Take fingerprints of any ranks, each rank's in order of steps.

        Those of older attempts are ignored.
        """
        if not fingerprints or attempt < self._attempt:
            return []
        if attempt > self._attempt:
            self.restart(attempt, min(one.step for one in fingerprints) - 1)
        return self._replicas.observe(fingerprints)

    def expect(self, attempt: int, step: int, until_step: int) -> None:
        """The script announced after `step` a change that lasts to `until_step`."""
        if attempt >= self._attempt:
            self._losses.expect(step, until_step)
            self._slowdowns.expect(until_step)

    def has_ranks(self, ranks: int) -> None:
        """The present attempt has that many: for samples that are fed again, without beats."""
        self._slowdowns.has_ranks(ranks)

    def saved(self, shards: Sequence[SavedShard]) -> list[Finding]:
        """Take shards that ranks have written. Those of other attempts are ignored."""
        return self._slowdowns.saved(shards)

    @property
    def moved_again(self) -> bool:
        """See :attr:`monitors.hang.HangMonitor.moved_again`."""
        return self._hang.moved_again

    def tick(
        self,
        now: float,
        beats: Sequence[Beat],
        *,
        wall: float | None = None,
        nodes: Mapping[int, str] | None = None,
    ) -> list[Finding]:
        """Look for hangs, stragglers and slowdowns.

        See :meth:`monitors.hang.HangMonitor.tick`. `nodes`: the node of each rank of the attempt.
        """
        nodes, at = nodes or {}, now if wall is None else wall
        current = [beat for beat in beats if beat.attempt >= self._attempt]
        self._slowdowns.restart(max((beat.attempt for beat in current), default=0))
        found = self._hang.tick(now, current, wall=wall)
        found += self._stragglers.tick(now, current, nodes, at)
        return found + self._slowdowns.tick(now, current, world=len(nodes), wall=at)

    def restart(self, attempt: int, step: int) -> None:
        """A new attempt resumed after `step`; 0: from the beginning.

        A second call for the same attempt changes nothing.
        """
        if attempt <= self._attempt:
            return
        self._attempt = attempt
        self._losses.restart(attempt, step)
        self._replay.restart(step)
        self._hang.restart(attempt)
        self._replicas.restart(attempt, step)
        self._stragglers.restart(attempt)
        self._slowdowns.restart(attempt)
        self._pace_rank = None
        self._last_step.clear()

    def _judge(self, sample: Sample) -> list[Finding]:
        # The pace is that of the lowest rank that reports: in a pipeline that may be the last one.
        found: list[Finding] = []
        if self._pace_rank is None or sample.rank <= self._pace_rank:
            self._pace_rank = sample.rank
            self._hang.observe(sample)
            found = self._slowdowns.observe(sample, straggles=self._stragglers.knows_one)
        # A spike that comes again is judged before it rolls the run back again.
        again, spikes = self._replay.observe(sample), self._losses.observe(sample)
        self._replay.found(spikes)
        return again + spikes + found
