"""Guard 0: losses and gradient norms that are NaN or infinite."""

from __future__ import annotations

import math
from collections import deque

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
_RECENT = 20
_MOST_OF_RECENT = 10
"""Losses among the last 20 that are not finite, in a row or not: half of the data is skipped."""
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


class NonFiniteGuard:
    """Watches one rank for losses and gradient norms that are NaN or infinite.

    A loss of exactly 0.0 beside a NaN gradient norm is a NaN that a trainer has masked
    (`logging_nan_inf_filter` of transformers does), and counts as one. A loss that is finite again
    at the next report was one of a skipped step: it is recorded, and nothing is done.
    """

    def __init__(self) -> None:
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
        if not loss_lost and math.isfinite(sample.grad_norm):
            return self._recover(sample)
        self._clean = 0
        self._overflows += 1
        skipped = [] if loss_lost or sample.loss is None else self._skipped(sample)
        self._lost = self._lost + 1 if loss_lost else (0 if sample.loss is not None else self._lost)
        self._first = self._first or sample
        patience = WARMUP_OVERFLOW_STEPS if self._seen <= _WARMUP_STEPS else OVERFLOW_STEPS
        often = loss_lost and sum(self._recent) >= _MOST_OF_RECENT
        if self._reported or not (
            self._lost >= LOST_REPORTS or often or self._overflows >= patience
        ):
            return skipped
        self._reported = True
        return [*skipped, self._finding(self._first, sample, loss_lost=loss_lost)]

    def _recover(self, sample: Sample) -> list[Finding]:
        """A finite step: the stretch before it is over, unless only a loss can end it."""
        self._overflows = 0
        if self._lost and sample.loss is None:
            return []
        skipped = self._skipped(sample)
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
