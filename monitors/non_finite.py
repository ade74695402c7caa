"""Guard 0: numbers that are none."""

from __future__ import annotations

import math

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


class NonFiniteGuard:
    """Watches one rank for losses and gradient norms that are NaN or infinite.

    A loss of exactly 0.0 beside a NaN gradient norm is a NaN that a trainer has masked
    (`logging_nan_inf_filter` of transformers does), and counts as one.
    """

    def __init__(self) -> None:
        self._seen = 0
        self._in_a_row = 0
        self._first: Sample | None = None
        self._reported = False
        self._clean = 0

    def observe(self, sample: Sample) -> list[Finding]:
        """At most one finding for a stretch of non-finite steps."""
        self._seen += 1
        loss_lost = loss_is_lost(sample)
        if not loss_lost and math.isfinite(sample.grad_norm):
            self._recover()
            return []
        self._clean = 0
        self._in_a_row += 1
        self._first = self._first or sample
        patience = WARMUP_OVERFLOW_STEPS if self._seen <= _WARMUP_STEPS else OVERFLOW_STEPS
        if self._reported or not (loss_lost or self._in_a_row >= patience):
            return []
        self._reported = True
        return [self._finding(self._first, sample, loss_lost=loss_lost)]

    def _recover(self) -> None:
        self._in_a_row = 0
        self._clean += 1
        if not self._reported or self._clean >= _REARM_STEPS:
            self._first = None
            self._reported = False

    def _finding(self, first: Sample, sample: Sample, *, loss_lost: bool) -> Finding:
        if not loss_lost:
            what = f"gradient norm is {sample.grad_norm} for {self._in_a_row} steps"
        elif sample.loss == 0.0:
            what = "loss is 0.0 with a NaN gradient norm: a masked NaN"
        else:
            what = f"loss is {sample.loss}"
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
                "steps_in_a_row": self._in_a_row,
            },
        )
