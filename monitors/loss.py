"""The loss monitor.

Non-finite numbers, spikes, blips, gradient-norm spikes and slow divergence of one rank's series.
"""

from __future__ import annotations

import math
from collections import deque
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from monitors.answered import Respite, acted_on
from monitors.drift import Drift, DriftDetector
from monitors.episode import Episode, Point, Track
from monitors.expectation import ReportedChanges
from monitors.kept_losses import KeptLoss
from monitors.learned import Learned
from monitors.loss_findings import Wording, gradient_spike
from monitors.loss_memory import LossMemory
from monitors.non_finite import NonFiniteGuard, loss_is_lost
from monitors.types import Finding, Sample

_GRAD_NORM_ACTION_RATIO = 10.0
"""A gradient norm this many times its median confirms a loss spike (LLM chronicles.

BLOOM saw 0.24 to 960 in six steps).
"""
_WIDE_REPORT_STEPS = 20
"""Steps from report to report at which two anomalous reports are evidence enough: they stand for
this many steps at least, and a single bad batch does not last that long."""
_HISTORY_WINDOWS = 8
"""Windows of samples kept so that the statistics can be wound back to a resumed step."""
_TOLERATED_RISE = 0.5
"""Rise, as a share, that a raised learning rate or another batch size explains for a window."""


class LossSettings(BaseModel):
    """Settings of the loss monitor. Steps are reported points."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    threshold: float = Field(default=8.0, gt=0)
    """Robust standard deviations above the forecast at which a point is anomalous.

    Lower: more blips.
    """
    persistence: int = Field(default=3, ge=1)
    """Anomalous steps before a spike is reported for action.

    Lower: faster, and one bad batch may cost a rollback.
    """
    confirmed_persistence: int = Field(default=2, ge=1)
    """That, at most, where the gradient norm agrees or reports are wide."""
    warmup_steps: int = Field(default=20, ge=5)
    """Steps before anything but non-finite numbers is judged."""
    window: int = Field(default=64, ge=16)
    """Steps that the statistics rest on; a new level is accepted after half of it."""
    relative_floor: float = Field(default=0.05, ge=0)
    """Least rise of an anomaly as a share of the forecast loss.

    Keeps a nearly noiseless series quiet.
    """
    grad_norm_ratio: float = Field(default=3.0, gt=1)
    """Least rise of the gradient norm, as a multiple of its median, that is worth a warning."""
    drift_rise: float = Field(default=0.10, gt=0)
    """Rise of the median loss over its lowest, as a share, that is a slow divergence."""
    direction: Literal["down", "up"] = "down"
    """Where the loss is meant to go. `up` (a reward): falls are watched instead of rises."""
    drift: Literal["auto", "off"] = "auto"
    """`off`: slow divergence is not looked for. `auto`: where the series allows it (see
    :mod:`monitors.drift`)."""

    @property
    def settled_steps(self) -> int:
        """Steps of a series after which its window has none of the first warm-up any more.

        Earlier, the fall of a loss from its start widens the band, and hides a rise back to it.
        """
        return self.warmup_steps + self.window


class LossMonitor:
    """Watches the loss and gradient norm of one rank.

    Feed every sample once, in order of steps. Samples of an older attempt and steps seen already
    are ignored; a sample of a newer attempt resets to just before its step.

    Args:
        settings: Thresholds; None: the defaults.
        history_windows: Windows of samples kept to wind back; a reset further back warms up again.
        known: The memory of an earlier monitor of the same series.
    """

    def __init__(
        self,
        settings: LossSettings | None = None,
        history_windows: int = _HISTORY_WINDOWS,
        known: LossMemory | None = None,
    ) -> None:
        self._settings = settings or LossSettings()
        self._sign = 1.0 if self._settings.direction == "down" else -1.0
        self._say = Wording(self._sign)
        self._attempt = 0
        self._history: deque[KeptLoss] = deque(maxlen=history_windows * self._settings.window)
        self._drift = DriftDetector(self._settings.drift_rise, self._settings.threshold / 2)
        self._learned = Learned(self._settings.window)
        self._known = known or LossMemory()
        self._learned.recall(self._known)
        self._clear()

    def _clear(self) -> None:
        s = self._settings
        self._guard = NonFiniteGuard()
        self._loss = Track(s.window, s.warmup_steps, s.threshold, relative_floor=s.relative_floor)
        self._grad = Track(s.window, s.warmup_steps, s.threshold, floor=math.log(s.grad_norm_ratio))
        self._changes = ReportedChanges()
        self._last_step: int | None = None
        self._grad_infinite = False
        self._reported: Episode | None = None
        self._warned: Episode | None = None
        self._repeating: Episode | None = None
        """The rise that was last taken for one of those that come back by themselves."""
        self._awaited: Episode | None = None
        """Such a rise after it was accepted: it is to come back yet."""
        self._quiet_below = -math.inf
        self._quiet_left = 0
        self._tolerant_left = 0
        self._expected_until = 0
        self._announced: deque[float] | None = None
        """Values since the announcement of a change that is under way."""

    def reset(self, attempt: int, step: int) -> None:
        """A new attempt resumed after `step`.

        Later steps are forgotten, episodes are closed, the rest is kept.
        """
        kept = [sample for sample in self._history if sample.step <= step]
        place = kept[0].place if kept else self._place_of(step)
        skips, learned = self._guard.skips, self._learned
        self._learned = learned.wound_back(attempt, step, place)
        self._history.clear()
        self._drift.forget_after(kept[0].step - 1 if kept else step)
        self._clear()
        self._loss.seen = place
        for sample in kept:
            self._judge(sample.of_attempt(attempt))
        learned.inherit(self._learned, step)
        self._learned = learned
        self._guard = NonFiniteGuard(skips)
        self._loss.episode = self._grad.episode = self._reported = self._warned = None
        self._awaited = None
        self._quiet_left = 0
        self._attempt = attempt
        self._last_step = step

    def _place_of(self, step: int) -> int:
        """Losses up to a step of which no sample is kept, about."""
        last, place = self._last_step, self._loss.seen
        if last is None:
            last, place = self._known.step, self._known.place
        return max(0, place - round((last - step) / max(1.0, self._steps_in_a_report())))

    @property
    def memory(self) -> LossMemory:
        """Knowledge for a later monitor of this series."""
        return self._learned.memory(
            self._last_step or 0, self._loss.seen, self._steps_in_a_report()
        )

    def expect(self, until_step: int) -> None:
        """A change was announced that lasts to this step: until then only NaN counts."""
        self._expected_until = max(self._expected_until, until_step)

    def observe(self, sample: Sample) -> list[Finding]:
        """Judge one step. Findings come out at most once for each thing that happened."""
        if sample.attempt < self._attempt:
            return []
        if sample.attempt > self._attempt:
            self.reset(sample.attempt, sample.step - 1)
        if self._last_step is not None and sample.step <= self._last_step:
            return []
        return self._judge(sample)

    def _judge(self, sample: Sample) -> list[Finding]:
        self._last_step = sample.step
        self._history.append(KeptLoss.of(sample, self._loss.seen))
        self.expect(sample.expected_until)
        findings = self._guard.observe(sample)
        if self._change_is_announced(sample):
            return findings
        if self._changes.observe(sample.learning_rate, sample.tokens):
            self._tolerant_left = self._settings.window
        findings += self._judge_grad_norm(sample)
        if sample.loss is not None and not loss_is_lost(sample):
            findings += self._judge_loss(sample, self._sign * sample.loss)
        return findings

    def _change_is_announced(self, sample: Sample) -> bool:
        if sample.step > self._expected_until:
            if self._announced is not None:
                self._loss.relearn(self._announced)
                self._drift.rebase(sample.step - 1)
                self._announced = None
            return False
        if self._announced is None:
            self._announced = deque(maxlen=self._settings.window)
        self._changes.observe(sample.learning_rate, sample.tokens)
        if sample.loss is not None and math.isfinite(sample.loss):
            self._announced.append(self._sign * sample.loss)
            self._loss.learn(_point(sample, self._sign * sample.loss))
        if math.isfinite(sample.grad_norm) and sample.grad_norm > 0:
            self._grad.learn(_point(sample, math.log(sample.grad_norm)))
        self._reported = self._warned = self._awaited = None
        self._learned.forget_rises()
        return True

    def _judge_grad_norm(self, sample: Sample) -> list[Finding]:
        self._grad_infinite = not math.isfinite(sample.grad_norm)
        if self._grad_infinite or sample.grad_norm <= 0:  # -1: not reported
            return []
        self._grad.observe(_point(sample, math.log(sample.grad_norm)))
        episode = self._grad.episode
        if episode is None or episode is self._warned:
            return []
        self._warned = episode
        return [gradient_spike(episode, sample)]

    def _judge_loss(self, sample: Sample, loss: float) -> list[Finding]:
        ended = self._loss.observe(_point(sample, loss))
        self._learned.swings.observe(sample.step, loss, self._loss.window.spread)
        self._quiet_left -= 1
        self._count_tolerance(sample)
        found = self._judge_respite(sample, loss)
        if ended is not None:
            return found + self._close(ended, sample)
        episode = self._loss.episode
        if episode is None:
            if self._learned.is_back(self._loss.seen, self._loss.window.median):
                self._drift.rebase(sample.step)
            return found or self._judge_awaited(sample) or self._judge_drift(sample, loss)
        if found or episode is self._reported or episode.high < self._persistence_needed():
            return found
        return [] if self._is_explained(episode) else self._respond(episode, sample)

    def _judge_awaited(self, sample: Sample) -> list[Finding]:
        """A rise that was known is a finding once it outlasts those before it, or outgrows them."""
        episode = self._awaited
        if episode is None:
            return []
        if not self._learned.swings.rising:
            self._awaited = None
        elif not self._learned.swings.knows():
            self._awaited = None
            return self._respond(episode, sample)
        return []

    def _judge_respite(self, sample: Sample, loss: float) -> list[Finding]:
        settled, level = self._loss.episode is None, self._loss.window.median
        over = self._learned.follow(self._loss.seen, loss, level, settled=settled)
        if over is None:
            return []
        respite, came_back = over
        if came_back:
            return [self._say.returned(respite, sample)]
        self._reported = self._loss.episode
        return [self._act(respite.cause, sample, respite)]

    def _respond(self, cause: Episode | Drift, sample: Sample) -> list[Finding]:
        """Report a rise for action, or give it time since rollbacks for others did not help."""
        if self._learned.respite is not None:
            return []
        respite = self._learned.grant(cause, self._place(cause))
        if respite is None:
            self._reported = cause if isinstance(cause, Episode) else self._reported
            return [self._act(cause, sample)]
        earlier = self._learned.answers.steps
        until = sample.step + math.ceil(respite.most * max(1.0, self._steps_in_a_report()))
        return [self._say.awaited(respite, sample, self._onset(cause), earlier, until)]

    def _place(self, cause: Episode | Drift) -> int:
        if isinstance(cause, Episode):
            return cause.start
        return self._place_of(cause.onset.step)

    def _act(
        self, cause: Episode | Drift, sample: Sample, respite: Respite | None = None
    ) -> Finding:
        since = self._onset(cause)
        rise = acted_on(cause, since, self._place(cause), self._loss.seen, respite)
        self._learned.answers.act(sample.attempt, rise)
        if isinstance(cause, Drift):
            return self._say.drifted(cause, sample)
        agrees = self._grad_norm_agrees()
        return self._say.spike(cause, sample, since, gradient_agrees=agrees)

    def _count_tolerance(self, sample: Sample) -> None:
        if self._tolerant_left > 0:
            self._tolerant_left -= 1
            if self._tolerant_left == 0:
                self._drift.rebase(sample.step)

    def _is_explained(self, episode: Episode) -> bool:
        """True if something else than a fault explains a rise, so far."""
        if self._quiet_left > 0 and episode.peak.value <= self._quiet_below:
            # An aftershock of what was reported; it counts again if it grows or outlasts the quiet.
            return True
        if self._tolerant_left > 0 and episode.height <= _TOLERATED_RISE:
            return True
        if not self._learned.knows(episode):
            return False
        self._repeating = episode
        return True

    def _persistence_needed(self) -> int:
        needed = self._settings.persistence
        if self._grad_norm_agrees() or self._steps_in_a_report() >= _WIDE_REPORT_STEPS:
            needed = min(needed, self._settings.confirmed_persistence)
        return needed

    def _steps_in_a_report(self) -> float:
        if not self._history:
            return self._known.stride
        first, last = self._history[0].step, self._history[-1].step
        return (last - first) / max(1, len(self._history) - 1)

    def _grad_norm_agrees(self) -> bool:
        episode = self._grad.episode
        return self._grad_infinite or (
            episode is not None
            and episode.peak.value - episode.level >= math.log(_GRAD_NORM_ACTION_RATIO)
        )

    def _close(self, episode: Episode, sample: Sample) -> list[Finding]:
        if episode.accepted:
            self._drift.rebase(sample.step)
            self._learned.accept(episode, self._loss.window.median)
            if episode is self._repeating and self._awaited is None:
                self._awaited = episode
        known = self._learned.knows(episode)
        if not episode.accepted:
            self._learned.came_back(episode)
        if episode is not self._reported:
            return [] if known else [self._say.blip(episode, sample)]
        self._reported = None
        self._quiet_below = episode.peak.value
        self._quiet_left = self._settings.window // 2
        return []

    def _judge_drift(self, sample: Sample, loss: float) -> list[Finding]:
        window = self._loss.window
        if self._settings.drift == "off" or not window.full or not self._drift.count(loss):
            return []
        gradient = self._grad.window.median if self._grad.window.full else None
        level = _point(sample, window.median)
        known = self._learned.respite is not None or self._learned.swings.knows()
        drift = self._drift.observe(level, window.spread, gradient, known=known)
        if drift is None or self._tolerant_left > 0:
            return []
        return self._respond(drift, sample)

    def _onset(self, cause: Episode | Drift) -> Point:
        """The gradient norm may have led: then things went wrong where it did."""
        if isinstance(cause, Drift):
            return cause.onset
        grad = self._grad.episode
        return grad.onset if grad and grad.onset.step < cause.onset.step else cause.onset


def _point(sample: Sample, value: float) -> Point:
    return Point(sample.step, sample.batch, sample.time, value)
