"""The findings of slowdowns of a whole run: what was seen, since when, and what it costs."""

from __future__ import annotations

from typing import Any

from monitors.own_past import Reading
from monitors.types import Finding, FindingKind, Severity

OVER = "over"
"""`form` in the evidence of a finding that says that a slowdown has ended."""


def begun(
    kind: FindingKind,
    attempt: int,
    readings: tuple[Reading, Reading],
    seen: str,
    cost: float | None,
    *,
    severity: Severity = Severity.WARNING,
    **evidence: Any,
) -> Finding:
    """A slowdown has lasted for long enough.

    Args:
        kind: Its kind.
        attempt: The attempt.
        readings: Its first and its newest reading. The first step is 0 for a start.
        seen: What was seen, as a clause.
        cost: Seconds an hour that the run loses; None: the clause says what it costs.
        severity: `INFO`: a healthy run may look so too.
        evidence: Further figures.
    """
    first, newest = readings
    reason = f"since step {first.first_step}, {seen}" if first.first_step else seen
    if cost is not None:
        reason += f"; it costs {cost:.0f} s an hour"
        evidence["cost_seconds_an_hour"] = round(cost, 1)
    return Finding(
        kind=kind,
        severity=severity,
        attempt=attempt,
        onset_step=first.first_step,
        detected_step=newest.step,
        onset_time=first.begun,
        detected_time=newest.ended,
        reason=reason,
        evidence=evidence,
    )


def over(
    kind: FindingKind, attempt: int, newest: Reading, seen: str, lost: float | None
) -> Finding:
    """A slowdown has ended by itself; `lost`: seconds that it has cost."""
    cost = "" if lost is None else f"; it has cost {lost:.0f} s"
    return Finding(
        kind=kind,
        severity=Severity.INFO,
        attempt=attempt,
        onset_step=newest.first_step,
        detected_step=newest.step,
        onset_time=newest.begun,
        detected_time=newest.ended,
        reason=f"{seen}, at step {newest.step}{cost}",
        evidence={"form": OVER} | ({} if lost is None else {"lost_seconds": round(lost, 1)}),
    )


def in_words(seconds: float) -> str:
    """Seconds with their unit: `12 ms`, `3.4 s`."""
    return f"{seconds * 1e3:.3g} ms" if seconds < 1 else f"{seconds:.3g} s"
