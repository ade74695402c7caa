"""Findings about replicas, in words."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from monitors.replica_memory import Case, Split, Verdict
from monitors.types import Finding, FindingKind, Severity

DIVERGED = "diverged"
"""Form of a finding that no machine is suspected of."""
_NAMED = 8


class Place(NamedTuple):
    """Where a comparison took place."""

    attempt: int
    step: int
    batch: int
    time: float
    """Unix seconds."""


def accusation(place: Place, agreed: int, splits: Sequence[Split]) -> Finding:
    """Replicas differ: the odd ranks by majority, or all of them as suspects."""
    odd = sorted(frozenset().union(*(each.odd for each in splits)))
    everyone = sorted(_all_ranks(splits))
    parts = _in_words(dict.fromkeys(each.part.partition(":")[0] for each in splits))
    since = f"at step {place.step}; step {agreed} is the last at which they were equal"
    if odd:
        holds = "holds" if len(odd) == 1 else "hold"
        reason = (
            f"{_ranks(odd)} {holds} other {parts} than the majority of {len(everyone)} replicas"
            f" {since}"
        )
    else:
        reason = (
            f"{_ranks(everyone)} hold different {parts} {since}: without a majority all of them"
            " are suspects, until the steps are computed again"
        )
    return Finding(
        kind=FindingKind.CORRUPTION,
        severity=Severity.CRITICAL,
        attempt=place.attempt,
        rank=odd[0] if len(odd) == 1 else None,
        onset_step=agreed + 1,
        detected_step=place.step,
        onset_time=place.time,
        detected_time=place.time,
        reason=reason,
        evidence={
            "agreed_step": agreed,
            "odd": odd,
            "suspects": odd or everyone,
            "digests": {
                each.part: {digest: sorted(ranks)[:64] for digest, ranks in each.digests.items()}
                for each in splits
            },
        },
    )


def diverged(place: Place, splits: Sequence[Split]) -> Finding:
    """Replicas all differ: a script that does not share its weights any more."""
    parts = _in_words(dict.fromkeys(each.part.partition(":")[0] for each in splits))
    return Finding(
        kind=FindingKind.CORRUPTION,
        severity=Severity.INFO,
        attempt=place.attempt,
        onset_step=place.step,
        detected_step=place.step,
        onset_time=place.time,
        detected_time=place.time,
        reason=f"{_ranks(sorted(_all_ranks(splits)))} all hold different {parts} at step"
        f" {place.step}: the script does not share them any more, and they are not compared again",
        evidence={"form": DIVERGED},
    )


def replayed(case: Case, verdict: Verdict, place: Place) -> Finding:
    """The steps of a disagreement were computed again."""
    return _replay((case.attempt, case.onset_step, case.step), verdict, place)


def computed_again(spike: Finding, verdict: Verdict, place: Place) -> Finding:
    """The steps of a spike were computed again."""
    found = _replay((spike.attempt, spike.onset_step, spike.detected_step), verdict, place)
    return found.model_copy(update={"evidence": {**found.evidence, "of_kind": spike.kind.value}})


def _replay(of: tuple[int, int, int], verdict: Verdict, place: Place) -> Finding:
    attempt, onset, step = of
    named = f": {_ranks(verdict.ranks)}" if verdict.ranks else ""
    return Finding(
        kind=FindingKind.REPLAY,
        severity=Severity.INFO,
        attempt=place.attempt,
        rank=None,
        onset_step=onset,
        detected_step=place.step,
        onset_time=place.time,
        detected_time=place.time,
        reason=f"step {step} was computed again: {verdict.outcome}{named} ({verdict.why})",
        evidence={
            "outcome": verdict.outcome.value,
            "ranks": list(verdict.ranks),
            "of_attempt": attempt,
            "of_step": step,
        },
    )


def _all_ranks(splits: Iterable[Split]) -> frozenset[int]:
    return frozenset(r for each in splits for ranks in each.digests.values() for r in ranks)


def _ranks(ranks: Sequence[int]) -> str:
    named = ", ".join(map(str, ranks[:_NAMED]))
    more = f" and {len(ranks) - _NAMED} more" if len(ranks) > _NAMED else ""
    return f"{'rank' if len(ranks) == 1 else 'ranks'} {named}{more}"


def _in_words(parts: Iterable[str]) -> str:
    """`weights and optimizer state`."""
    named = ["optimizer state" if part == "optimizer" else part for part in parts]
    if len(named) < 2:
        return "".join(named)
    return f"{', '.join(named[:-1])} and {named[-1]}"
