"""The truth about a recorded run: the faults in it, and how they are known.

The problem: precision and recall need a truth, and nobody writes one down. The design: an *event*
is a stretch of an attempt about which there is a word, of the strongest that there is:

1. a person's verdict (`incidents judge`): right or wrong;
2. what happened next, in the record: the loss came back by itself, stayed up or was not finite
   again; a silence ended by itself, or a rank was proven stuck;
3. what a person did: a rollback that babysit had not begun is an event that babysit missed.

Where none of these speaks, the truth is unknown, and is counted as that. A rollback hides what
would have come, so an anomaly that was acted on and that nobody judged stays unknown.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from monitors.types import FindingKind
from orchestrator.core.model.vocabulary import Response
from orchestrator.core.policy import remedies
from orchestrator.core.views.models import EventView, IncidentView
from orchestrator.judgement.replay import Curve, Family

BASE_STEPS = 32
"""Reported steps before an onset that say what was normal, and the length of a level after it."""
STAYED_STEPS = 256
"""Reported steps after an onset in which a loss that never came back stayed up."""
NEAR_STEPS = 64
"""Steps between an alarm and an event up to which they are one: onsets are walked back as far."""
_BACK = 0.5
"""Share of a rise that must be gone for the loss to have come back."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something that was wrong with a run, or was not though it looked so."""

    family: Family
    attempt: int
    onset_step: int
    last_step: int
    """Alarms that are detected up to this step may be about it."""
    onset_time: float
    """Unix seconds."""
    true: bool | None
    """True: a remedy was right. False: it was not needed. None: unknown."""
    basis: str
    """How that is known, in a clause."""
    acted_at: float | None = None
    """When a remedy started: of babysit, or of a person; Unix seconds. None: it never did."""
    acted_by: str = ""
    """`babysit`, a person, or empty."""
    incident: str | None = None


LOSS_KINDS = frozenset(
    {
        FindingKind.LOSS_SPIKE,
        FindingKind.NON_FINITE,
        FindingKind.LOSS_BLIP,
        FindingKind.GRAD_NORM_SPIKE,
    }
)
HANG_KINDS = frozenset({FindingKind.HANG, FindingKind.SLOW})


def family_of(kind: str) -> Family | None:
    """The family of an incident's kind; None: it comes from no monitor that can be run again."""
    if kind in LOSS_KINDS:
        return "loss"
    return "hang" if kind in HANG_KINDS else None


def events_of(
    incidents: Iterable[IncidentView],
    curves: Mapping[int, Curve],
    acts: Sequence[EventView],
) -> list[Event]:
    """The events of a run, in the order of attempts and steps."""
    found = [event for each in incidents if (event := _event(each, curves)) is not None]
    found += [
        event for act in acts if (event := _missed(act, found, curves)) is not None
    ]  # one event each: a person may act on what has an incident
    return sorted(found, key=lambda event: (event.attempt, event.onset_step))


def _event(incident: IncidentView, curves: Mapping[int, Curve]) -> Event | None:
    family = family_of(incident.kind)
    if family is None or incident.kind == FindingKind.GRAD_NORM_SPIKE:
        return None
    if incident.kind == FindingKind.SLOW and incident.evidence.get("went_on") is False:
        return None  # an incident of kind `hang` followed, about the same silence
    finding: Mapping[str, Any] = _mapping(incident.evidence.get("finding"))
    onset = incident.onset_step or 0
    acts = not remedies.FINDINGS[FindingKind(incident.kind)].only_recorded
    acted = acts and incident.response == Response.ACTED
    detected = int(finding.get("detected_step", onset))
    curve = curves.get(incident.attempt)
    true, basis = _word(incident, acts=acts, acted=acted, curve=curve)
    opened = incident.opened_at.timestamp()
    return Event(
        family=family,
        attempt=incident.attempt,
        onset_step=onset,
        last_step=detected + (0 if acted else STAYED_STEPS),
        onset_time=float(finding.get("onset_time", opened)),
        true=true,
        basis=basis,
        acted_at=opened if acted else None,
        acted_by="babysit" if acted else "",
        incident=incident.id,
    )


def _word(
    incident: IncidentView, *, acts: bool, acted: bool, curve: Curve | None
) -> tuple[bool | None, str]:
    """True if a remedy was right, and how that is known."""
    if incident.verdict is not None:
        # "Wrong" about something that was only recorded means that a remedy was missing.
        right = incident.verdict == "right"
        return right is acts, f"judged {incident.verdict}"
    if incident.kind in HANG_KINDS:
        return _silence_word(incident)
    if incident.kind == FindingKind.LOSS_BLIP:
        return False, "the loss came back by itself"
    if acted:
        return None, "the rollback hides what would have come, and nobody judged it"
    return outcome(curve, incident.onset_step or 0)


def _silence_word(incident: IncidentView) -> tuple[bool | None, str]:
    if is_proven_hang(incident):
        return True, "the look at the ranks proved it"
    if incident.evidence.get("went_on"):
        return False, "it went on by itself"
    return None, "nobody judged it"


def is_proven_hang(incident: IncidentView) -> bool:
    """True if the look at the ranks convicted the run."""
    finding = _mapping(incident.evidence.get("finding"))
    verdict = _mapping(_mapping(finding.get("evidence")).get("verdict"))
    return incident.kind == FindingKind.HANG and verdict.get("convicted") is True


def outcome(curve: Curve | None, onset: int) -> tuple[bool | None, str]:
    """Say what the loss did after an onset about which nothing was done."""
    if curve is None:
        return None, "no samples of it are stored"
    at = bisect_left(curve.step, onset)
    before = [x for x in curve.loss[max(0, at - BASE_STEPS) : at] if math.isfinite(x)]
    after = list(curve.loss[at : at + STAYED_STEPS])
    lost = sum(not math.isfinite(x) for x in after)
    if lost > len(after) / 2:
        return True, f"{lost} of the next {len(after)} losses are not finite"
    if len(before) < BASE_STEPS // 2 or len(after) < BASE_STEPS:
        return None, "too few samples around it are stored"
    normal = statistics.median(before)
    levels = [
        statistics.median([x for x in after[i : i + BASE_STEPS] if math.isfinite(x)] or [math.inf])
        for i in range(0, len(after) - BASE_STEPS + 1, BASE_STEPS // 2)
    ]
    top = max(x for x in after if math.isfinite(x))
    if min(levels) <= normal + _BACK * max(0.0, top - normal):
        return False, "the loss came back by itself"
    if len(after) >= STAYED_STEPS:
        return True, f"the loss stayed up for {STAYED_STEPS} reported steps"
    return None, "the record ends before it could have come back"


def _missed(act: EventView, known: Sequence[Event], curves: Mapping[int, Curve]) -> Event | None:
    """A rollback that a person began, where babysit had not."""
    if act.name != "rollback_asked" or act.attempt is None:
        return None
    curve = curves.get(act.attempt)
    at = act.at.timestamp()
    if curve is None or not curve.step:
        return None
    last = curve.step[max(0, bisect_right(curve.time, at) - 1)]
    to_step = act.payload.get("to_step")
    onset = int(to_step) if isinstance(to_step, int | float) else curve.step[0]
    if any(e.attempt == act.attempt and e.family == "loss" and e.acted_at for e in known):
        return None
    place = min(bisect_left(curve.step, onset), len(curve.step) - 1)
    return Event(
        family="loss",
        attempt=act.attempt,
        onset_step=onset,
        last_step=last,
        onset_time=curve.time[place],
        true=True,
        basis=f"{act.actor} rolled it back",
        acted_at=at,
        acted_by=act.actor,
    )


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
