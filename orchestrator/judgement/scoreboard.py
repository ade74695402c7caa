"""The scoreboard of a drill: found and recovered, against the targets. Pure."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from orchestrator.judgement.faults import RECOVERY_SECONDS, Fault


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """The end of one fault."""

    fault: Fault
    found_as: str | None = None
    """Class of the restart or kind of the incident; None: it was not found in time."""
    found_after: float | None = None
    """Seconds from the fault, or steps from its onset; None: not found."""
    recovered_after: float | None = None
    """Seconds from the fault to the right end; None: it did not come in time."""
    trouble: str = ""
    """The reason why it could not be provoked, or what happened instead; empty: nothing."""


@dataclasses.dataclass(frozen=True, slots=True)
class Targets:
    """The most that may pass, by fault; the catalogue's where nothing else is said."""

    found: Mapping[str, float] = dataclasses.field(default_factory=dict)
    recovered: float = RECOVERY_SECONDS

    def of(self, fault: Fault) -> float:
        """Seconds, or steps, until a fault must be found."""
        return self.found.get(fault.name, fault.target)


def misses(outcome: Outcome, targets: Targets) -> list[str]:
    """The targets that were missed, in words."""
    found: list[str] = []
    unit = "steps" if outcome.fault.in_steps else "s"
    limit = targets.of(outcome.fault)
    if outcome.found_after is None:
        found.append(outcome.trouble or "not found")
    elif outcome.found_after > limit:
        found.append(f"found after {outcome.found_after:.1f} {unit}, target {limit:g} {unit}")
    if outcome.found_after is not None and outcome.recovered_after is None:
        found.append(outcome.trouble or f"it was found, and the run never {_never(outcome)}")
    elif (outcome.recovered_after or 0.0) > targets.recovered:
        found.append(f"over after {outcome.recovered_after:.1f} s, target {targets.recovered:g} s")
    return found


def _never(outcome: Outcome) -> str:
    return {"recovers": "recovered", "goes on": "went on", "stops": "stopped"}[outcome.fault.ending]


def rows(outcomes: Sequence[Outcome], targets: Targets) -> list[dict[str, Any]]:
    """One row per fault, for people and programs."""
    return [
        {
            "fault": each.fault.name,
            "class": each.fault.row,
            "what": each.fault.what,
            "found_as": each.found_as,
            "found_after": each.found_after,
            "unit": "steps" if each.fault.in_steps else "seconds",
            "target": targets.of(each.fault),
            "reference": each.fault.reference,
            "ending": each.fault.ending,
            "recovered_after": each.recovered_after,
            "recovery_target": targets.recovered,
            "action": each.fault.action,
            "ok": not misses(each, targets),
            "missed": "; ".join(misses(each, targets)),
        }
        for each in outcomes
    ]
