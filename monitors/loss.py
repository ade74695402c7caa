"""The loss monitor.

Non-finite numbers, spikes, blips, gradient-norm spikes and slow divergence of one rank's series.
"""

from __future__ import annotations

import math
from collections import deque
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from monitors.drift import Drift, DriftDetector
from monitors.episode import Episode, Point, Track
from monitors.non_finite import NonFiniteGuard, loss_is_lost
from monitors.types import Finding, FindingKind, Sample, Severity

_GRAD_NORM_ACTION_RATIO = 10.0
"""A gradient norm this many times its median confirms a loss spike (LLM chronicles.

BLOOM saw 0.24 to 960 in six steps).
"""
_CONFIRMED_PERSISTENCE = 2
_HISTORY_WINDOWS = 8
"""Windows of samples kept so that the statistics can be wound back to a resumed step."""


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


class LossMonitor:
    """Watches the loss and gradient norm of one rank.

    Feed every sample once, in order of steps. Samples of an older attempt and steps seen already
    are ignored; a sample of a newer attempt resets to just before its step.
    """

    def __init__(self, settings: LossSettings | None = None) -> None:
        self._settings = settings or LossSettings()
        self._attempt = 0
        self._history: deque[Sample] = deque(maxlen=_HISTORY_WINDOWS * self._settings.window)
        self._clear()

    def _clear(self) -> None:
        s = self._settings
        self._guard = NonFiniteGuard()
        self._loss = Track(s.window, s.warmup_steps, s.threshold, relative_floor=s.relative_floor)
        self._grad = Track(s.window, s.warmup_steps, s.threshold, floor=math.log(s.grad_norm_ratio))
        self._drift = DriftDetector(s.drift_rise, s.threshold / 2)
        self._last_step: int | None = None
        self._grad_infinite = False
        self._reported: Episode | None = None
        self._warned: Episode | None = None
        self._quiet_below = -math.inf
        self._quiet_left = 0

    def reset(self, attempt: int, step: int) -> None:
        """A new attempt resumed after `step`.

        Later steps are forgotten, episodes are closed, the rest is kept.
        """
        kept = [sample for sample in self._history if sample.step <= step]
        self._history.clear()
        self._clear()
        for sample in kept:
            self._judge(sample)
        self._guard = NonFiniteGuard()
        self._loss.episode = self._grad.episode = self._reported = self._warned = None
        self._quiet_left = 0
        self._attempt = attempt
        self._last_step = step

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
        self._history.append(sample)
        findings = self._guard.observe(sample)
        findings += self._judge_grad_norm(sample)
        if sample.loss is not None and not loss_is_lost(sample):
            findings += self._judge_loss(sample, sample.loss)
        return findings

    def _judge_grad_norm(self, sample: Sample) -> list[Finding]:
        self._grad_infinite = not math.isfinite(sample.grad_norm)
        if self._grad_infinite or sample.grad_norm <= 0:  # -1: not reported
            return []
        self._grad.observe(_point(sample, math.log(sample.grad_norm)))
        episode = self._grad.episode
        if episode is None or episode is self._warned:
            return []
        self._warned = episode
        return [self._grad_norm_spike(episode, sample)]

    def _judge_loss(self, sample: Sample, loss: float) -> list[Finding]:
        ended = self._loss.observe(_point(sample, loss))
        self._quiet_left -= 1
        if ended is not None:
            return self._close(ended, sample)
        episode = self._loss.episode
        if episode is None:
            return self._judge_drift(sample)
        if episode is self._reported or episode.high < self._persistence_needed():
            return []
        if self._quiet_left > 0 and episode.peak.value <= self._quiet_below:
            # An aftershock of what was reported; it counts again if it grows or outlasts the quiet.
            return []
        self._reported = episode
        return [self._spike(episode, sample)]

    def _persistence_needed(self) -> int:
        return min(
            self._settings.persistence,
            _CONFIRMED_PERSISTENCE if self._grad_norm_agrees() else self._settings.persistence,
        )

    def _grad_norm_agrees(self) -> bool:
        episode = self._grad.episode
        return self._grad_infinite or (
            episode is not None
            and episode.peak.value - episode.level >= math.log(_GRAD_NORM_ACTION_RATIO)
        )

    def _close(self, episode: Episode, sample: Sample) -> list[Finding]:
        if episode.accepted:
            self._drift.rebase()
        if episode is not self._reported:
            return [self._blip(episode, sample)]
        self._reported = None
        self._quiet_below = episode.peak.value
        self._quiet_left = self._settings.window // 2
        return []

    def _judge_drift(self, sample: Sample) -> list[Finding]:
        window = self._loss.window
        if not window.full:
            return []
        drift = self._drift.observe(_point(sample, window.median), window.spread)
        return [self._drifted(drift, sample)] if drift is not None else []

    # What is said.

    def _spike(self, episode: Episode, sample: Sample) -> Finding:
        agrees = self._grad_norm_agrees()
        since = self._onset(episode.onset)
        reason = (
            f"loss {sample.loss:.4g} against a median of {episode.level:.4g} for {episode.high} "
            f"steps, since step {since.step}"
        )
        if agrees:
            reason += f"; gradient norm {sample.grad_norm:.4g} agrees"
        evidence = {
            **_figures(episode),
            "form": "persistent",
            "loss": sample.loss,
            "grad_norm": repr(sample.grad_norm),
            "grad_norm_agrees": agrees,
        }
        return _finding(FindingKind.LOSS_SPIKE, Severity.CRITICAL, sample, since, reason, evidence)

    def _onset(self, onset: Point) -> Point:
        """The gradient norm may have led: then things went wrong where it did."""
        grad = self._grad.episode
        return grad.onset if grad is not None and grad.onset.step < onset.step else onset

    def _blip(self, episode: Episode, sample: Sample) -> Finding:
        end = "it became the new level" if episode.accepted else "it came back by itself"
        reason = (
            f"loss {episode.peak.value:.4g} against a median of {episode.level:.4g} at step "
            f"{episode.peak.step}; {end}"
        )
        evidence = {**_figures(episode), "last_step": episode.last.step}
        return _finding(
            FindingKind.LOSS_BLIP, Severity.INFO, sample, episode.onset, reason, evidence
        )

    def _grad_norm_spike(self, episode: Episode, sample: Sample) -> Finding:
        usual = math.exp(episode.level)
        reason = (
            f"gradient norm {sample.grad_norm:.4g} against a median of {usual:.4g}, "
            f"since step {episode.onset.step}"
        )
        evidence = {"grad_norm": sample.grad_norm, "median": usual, "z": _finite(episode.z)}
        return _finding(
            FindingKind.GRAD_NORM_SPIKE, Severity.WARNING, sample, episode.onset, reason, evidence
        )

    def _drifted(self, drift: Drift, sample: Sample) -> Finding:
        reason = (
            f"median loss crept up to {drift.level:.4g} from {drift.best.value:.4g}, its lowest, "
            f"since step {drift.best.step}"
        )
        evidence = {"form": "drift", "median": drift.level, "lowest": drift.best.value}
        return _finding(
            FindingKind.LOSS_SPIKE, Severity.CRITICAL, sample, drift.best, reason, evidence
        )


def _point(sample: Sample, value: float) -> Point:
    return Point(sample.step, sample.batch, sample.time, value)


def _finite(value: float) -> float | str:
    return value if math.isfinite(value) else repr(value)


def _figures(episode: Episode) -> dict[str, Any]:
    return {
        "median": episode.level,
        "spread": episode.spread,
        "z": _finite(episode.z),
        "peak": episode.peak.value,
        "peak_step": episode.peak.step,
        "anomalous_steps": episode.high,
    }


def _finding(
    kind: FindingKind,
    severity: Severity,
    sample: Sample,
    onset: Point,
    reason: str,
    evidence: dict[str, Any],
) -> Finding:
    return Finding(
        kind=kind,
        severity=severity,
        attempt=sample.attempt,
        rank=sample.rank,
        onset_step=onset.step,
        onset_batch=onset.batch,
        detected_step=sample.step,
        onset_time=onset.time,
        detected_time=sample.time,
        reason=reason,
        evidence=evidence,
    )
