"""Guard 0: losses and gradient norms that are NaN or infinite."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass

from monitors.types import Finding, FindingKind, Sample, Severity

OVERFLOW_STEPS = 10
"""Non-finite gradient norms in a row that count as lost, the loss being finite.

Dynamic loss scaling skips such steps and halves its scale; from DeepSpeed's default 2**16 ten
halvings reach the scales that fp16 runs train at. Without loss scaling a NaN gradient makes the
next loss NaN, so waiting costs one step.
"""
WARMUP_OVERFLOW_STEPS = 40
"""Overflow steps in a row that are allowed at the start of a run.

Megatron begins at a scale of 2**32 and may halve it thirty times.
"""
_WARMUP_STEPS = 60
LOST_REPORTS = 2
"""Losses in a row that are not finite before they count as lost.

A step that was taken with a NaN leaves weights that make every later loss NaN, so waiting costs one
report. A step that loss scaling or the script skipped leaves a finite loss behind it.
"""
_CHANCE = 1e-6
"""Chance of as many lost losses in a row as count, in a run that is known to skip steps."""
_LEAST_SHARE = 0.01
"""Share of skipped steps that is taken for the run's at least, once it has skipped one."""
_RECENT = 20
_MOST_OF_RECENT = 10
"""Losses among the last 20 that are not finite, in a row or not: half of the data is skipped."""
_OFTEN = 4.0
"""Factor of the run's own share of skipped steps that is too often, if that is more."""
_SKIPS_TOLD = 3
"""Steps that were skipped, of an attempt, of which the journal tells."""
_REARM_STEPS = 3
"""Finite steps before the next non-finite one is a new finding."""


def loss_is_lost(sample: Sample) -> bool:
    """True if the loss is NaN or infinite, or 0.0 beside a NaN gradient norm: a masked NaN.

    A loss that was not reported is not lost.
    """
    if sample.loss is None:
        return False
    masked = sample.loss == 0.0 and math.isnan(sample.grad_norm)
    return masked or not math.isfinite(sample.loss)


@dataclass(slots=True)
class Skips:
    """How often the script, or loss scaling, skips a step: a finite loss follows a lost one."""

    losses: int = 0
    """Losses that were reported."""
    lost: int = 0
    """Losses that were lost without harm."""

    @property
    def share(self) -> float:
        """The share of steps that are skipped."""
        return self.lost / self.losses if self.losses else 0.0


class NonFiniteGuard:
    """Watches one rank for losses and gradient norms that are NaN or infinite.

    A loss of exactly 0.0 beside a NaN gradient norm is a NaN that a trainer has masked
    (`logging_nan_inf_filter` of transformers does), and counts as one. A loss that is finite again
    at the next report was one of a skipped step: it is recorded, and nothing is done. A run that
    is known to skip steps may lose more of them in a row, as many as chance gives.

    Attributes:
        skips: How often steps are skipped; hand it to the guard of the next attempt.
    """

    def __init__(self, skips: Skips | None = None) -> None:
        self.skips = skips or Skips()
        self._seen = 0
        self._lost = 0
        """Lost losses in a row; reports without a loss say nothing of it."""
        self._overflows = 0
        """Steps in a row with a lost loss or a gradient norm that is not finite."""
        self._recent: deque[bool] = deque(maxlen=_RECENT)
        self._first: Sample | None = None
        self._reported = False
        self._clean = 0
        self._skips = 0

    def observe(self, sample: Sample) -> list[Finding]:
        """At most one finding for a stretch of non-finite steps."""
        self._seen += 1
        loss_lost = loss_is_lost(sample)
        if sample.loss is not None:
            self._recent.append(loss_lost)
            self.skips.losses += 1
        if not loss_lost and math.isfinite(sample.grad_norm):
            return self._recover(sample)
        self._clean = 0
        self._overflows += 1
        skipped = [] if loss_lost or sample.loss is None else self._skipped(sample)
        self._lost = self._lost + 1 if loss_lost else (0 if sample.loss is not None else self._lost)
        self._first = self._first or sample
        patience = WARMUP_OVERFLOW_STEPS if self._seen <= _WARMUP_STEPS else OVERFLOW_STEPS
        most = max(_MOST_OF_RECENT, _OFTEN * _RECENT * self.skips.share)
        often = loss_lost and sum(self._recent) >= most
        lost = self._lost >= self._lost_needed
        if self._reported or not (lost or often or self._overflows >= patience):
            return skipped
        self._reported = True
        return [*skipped, self._finding(self._first, sample, loss_lost=loss_lost)]

    @property
    def _lost_needed(self) -> int:
        """Lost losses in a row that skipped steps do not explain."""
        if not self.skips.lost:
            return LOST_REPORTS
        share = min(0.5, max(_LEAST_SHARE, self.skips.share))
        return min(OVERFLOW_STEPS, math.ceil(math.log(_CHANCE) / math.log(share)))

    def _recover(self, sample: Sample) -> list[Finding]:
        """A finite step: the stretch before it is over, unless only a loss can end it."""
        self._overflows = 0
        if self._lost and sample.loss is None:
            return []
        skipped = self._skipped(sample)
        self.skips.lost += self._lost if self._lost <= OVERFLOW_STEPS else 0
        self._lost = 0
        self._clean += 1
        if not self._reported or self._clean >= _REARM_STEPS:
            self._first = None
            self._reported = False
        return skipped

    def _skipped(self, sample: Sample) -> list[Finding]:
        """A finding about a lost loss that came alone; nothing if there was none."""
        if not self._lost or self._reported or self._first is None or self._skips >= _SKIPS_TOLD:
            return []
        self._skips += 1
        finding = self._finding(self._first, sample, loss_lost=True)
        what = f"{_what(self._first)} on rank {sample.rank} at step {self._first.step}"
        reason = f"{what}, and {sample.loss:.4g} at step {sample.step}: the step was skipped"
        update = {"kind": FindingKind.LOSS_BLIP, "severity": Severity.INFO, "reason": reason}
        return [finding.model_copy(update=update)]

    def _finding(self, first: Sample, sample: Sample, *, loss_lost: bool) -> Finding:
        steps = self._overflows
        what = (
            _what(sample) if loss_lost else f"gradient norm is {sample.grad_norm} for {steps} steps"
        )
        return Finding(
            kind=FindingKind.NON_FINITE,
            severity=Severity.CRITICAL,
            attempt=sample.attempt,
            rank=sample.rank,
            onset_step=first.step,
            onset_batch=first.batch,
            detected_step=sample.step,
            onset_time=first.time,
            detected_time=sample.time,
            reason=f"{what} on rank {sample.rank}, since step {first.step}",
            evidence={
                "loss": repr(sample.loss),
                "grad_norm": repr(sample.grad_norm),
                "steps_in_a_row": steps,
            },
        )


def _what(sample: Sample) -> str:
    if sample.loss == 0.0:
        return "loss is 0.0 with a NaN gradient norm: a masked NaN"
    return f"loss is {sample.loss}"
