"""Findings of the loss monitor, with their sentences and figures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from monitors.answered import Respite
from monitors.drift import Drift
from monitors.episode import Episode, Point
from monitors.types import Finding, FindingKind, Sample, Severity

AWAITED, RETURNED = "awaited", "returned"
"""Forms of a blip: a rise that has time to come back by itself, and one that has come back."""


class Wording:
    """Makes findings of one series.

    Args:
        sign: 1.0, or -1.0 for a series that is meant to rise and is watched upside down.
    """

    def __init__(self, sign: float) -> None:
        self._sign = sign
        self._side = "below" if sign > 0 else "above"

    def spike(
        self, episode: Episode, sample: Sample, since: Point, *, gradient_agrees: bool
    ) -> Finding:
        """A loss that jumped and stays up."""
        reason = (
            f"loss {sample.loss:.4g} against a median of {self._sign * episode.level:.4g} for "
            f"{episode.high} steps, since step {since.step}"
        )
        if gradient_agrees:
            reason += f"; gradient norm {sample.grad_norm:.4g} agrees"
        evidence = {
            **self._figures(episode),
            "form": "persistent",
            "loss": sample.loss,
            "grad_norm": repr(sample.grad_norm),
            "grad_norm_agrees": gradient_agrees,
        }
        return _finding(FindingKind.LOSS_SPIKE, Severity.CRITICAL, sample, since, reason, evidence)

    def blip(self, episode: Episode, sample: Sample) -> Finding:
        """A loss that jumped and came back by itself."""
        end = "it became the new level" if episode.accepted else "it came back by itself"
        reason = (
            f"loss {self._sign * episode.peak.value:.4g} against a median of "
            f"{self._sign * episode.level:.4g} at step {episode.peak.step}; {end}"
        )
        evidence = {**self._figures(episode), "last_step": episode.last.step}
        return _finding(
            FindingKind.LOSS_BLIP, Severity.INFO, sample, episode.onset, reason, evidence
        )

    def awaited(
        self,
        respite: Respite,
        sample: Sample,
        since: Point,
        earlier: Sequence[int],
        until_step: int,
    ) -> Finding:
        """A loss that has risen as before earlier rollbacks, and is given time to come back.

        `until_step`: by that step it has come back or is reported, about.
        """
        steps = " and ".join(str(step) for step in earlier)
        at = f"step{'s' if len(earlier) > 1 else ''} {steps}"
        reason = (
            f"loss {self._sign * respite.peak:.4g} against {self._sign * respite.level:.4g} "
            f"since step {since.step}, as at {at}, for which the run was rolled back: "
            f"it has time to come back by itself, for {respite.reports} reports and while it "
            f"stays {self._side} {self._sign * respite.top:.4g}"
        )
        evidence = {
            "form": AWAITED,
            "until_step": until_step,
            "level": self._sign * respite.level,
            "limit": self._sign * respite.top,
            "reports": respite.reports,
        }
        return _finding(FindingKind.LOSS_BLIP, Severity.WARNING, sample, since, reason, evidence)

    def returned(self, respite: Respite, sample: Sample) -> Finding:
        """A loss that was given time to come back, and has."""
        reason = (
            f"loss came back by itself from {self._sign * respite.peak:.4g} "
            f"since step {respite.cause.onset.step}"
        )
        evidence = {"form": RETURNED, "level": self._sign * respite.level}
        onset = respite.cause.onset
        return _finding(FindingKind.LOSS_BLIP, Severity.INFO, sample, onset, reason, evidence)

    def drifted(self, drift: Drift, sample: Sample) -> Finding:
        """A loss that crept up."""
        best, level = self._sign * drift.best.value, self._sign * drift.level
        way, extreme = ("up", "lowest") if self._sign > 0 else ("down", "highest")
        reason = (
            f"median loss crept {way} to {level:.4g} from {best:.4g}, its {extreme}, "
            f"since step {drift.onset.step}"
        )
        evidence = {
            "form": "drift",
            "median": level,
            "lowest": best,
            "lowest_step": drift.best.step,
        }
        return _finding(
            FindingKind.LOSS_SPIKE, Severity.CRITICAL, sample, drift.onset, reason, evidence
        )

    def _figures(self, episode: Episode) -> dict[str, Any]:
        return {
            "median": self._sign * episode.level,
            "spread": episode.spread,
            "z": _finite(episode.z),
            "peak": self._sign * episode.peak.value,
            "peak_step": episode.peak.step,
            "anomalous_steps": episode.high,
        }


def gradient_spike(episode: Episode, sample: Sample) -> Finding:
    """A gradient norm that jumped; its series is logarithms."""
    usual = math.exp(episode.level)
    reason = (
        f"gradient norm {sample.grad_norm:.4g} against a median of {usual:.4g}, "
        f"since step {episode.onset.step}"
    )
    evidence = {"grad_norm": sample.grad_norm, "median": usual, "z": _finite(episode.z)}
    return _finding(
        FindingKind.GRAD_NORM_SPIKE, Severity.WARNING, sample, episode.onset, reason, evidence
    )


def _finite(value: float) -> float | str:
    return value if math.isfinite(value) else repr(value)


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
