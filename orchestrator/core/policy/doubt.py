"""Doubt and acquittal: the evidence of deaths right after loading a checkpoint. Pure.

A checkpoint whose hashes are right may hold a state that kills every rank that loads it, but a
node, the storage or an outage kills in the same way. So no checkpoint is blamed without a control:
the run tries the same node again, then another node, then the older checkpoint. If the older one
dies alike, the newer one is acquitted and loaded again, and its deaths are the run's own.

Limits: at most one checkpoint of each run is doubted by deaths at a time, and only where an older
one can be loaded instead. Doubt is a mark beside trust: it is lifted by evidence, or by a person.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence

from monitors.failures import Cause, Failure
from orchestrator.core.model.entities import Attempt, Checkpoint
from orchestrator.core.model.states import Trust
from orchestrator.core.policy import remedies

ELSEWHERE_AFTER = 2
"""Deaths right after loading one checkpoint before the run tries another node."""
DOUBTED_AFTER = 3
"""Deaths right after loading one checkpoint, the last one elsewhere, before it is doubted."""

SPLIT = "restore mismatch"
"""Signature of an attempt whose ranks loaded different steps. It doubts what they loaded by itself,
and shows nothing of the state in it: no rank died of that."""

_LOADABLE = frozenset({Trust.COMPLETE, Trust.VERIFIED, Trust.GOOD})


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Ruling:
    """The evidence of a death about the checkpoints of its run."""

    loaded: str | None = None
    """The checkpoint that was loaded right before the death; None: the death says nothing."""
    deaths: int = 0
    """Deaths right after loading it, this one included."""
    doubt: str | None = None
    acquit: tuple[str, ...] = ()

    @property
    def elsewhere(self) -> bool:
        """True if the next attempt should try another node with the same checkpoint."""
        return self.deaths >= ELSEWHERE_AFTER and not self.acquit


NOTHING = Ruling()
"""The ruling on a death that says nothing of any checkpoint."""


def rule(attempt: Attempt, failure: Failure, checkpoints: Sequence[Checkpoint]) -> Ruling:
    """Judge the checkpoint that an attempt loaded by the failure that ended the attempt.

    Says nothing of failures that no checkpoint can cause, of the user's own errors, of ranks that
    loaded different steps, and of attempts that computed a step. Deleted checkpoints do not count.
    """
    suspect = remedies.FAILURES[failure.failure_class].suspects_checkpoint
    suspect = suspect and failure.signature != SPLIT and failure.cause is not Cause.USER
    there = [c for c in checkpoints if c.deleted_at is None]
    loaded = next((c for c in there if c.id == attempt.restored), None)
    if loaded is None or stepped(attempt) or not suspect:
        return NOTHING
    deaths = loaded.deaths + 1
    newer = tuple(c.id for c in there if c.doubted and c.step >= loaded.step)
    if newer:  # the older one dies alike: it was not the newer one's fault
        return Ruling(loaded=loaded.id, deaths=deaths, acquit=newer)
    doubted = (
        deaths >= DOUBTED_AFTER
        and not loaded.acquitted
        and has_older(loaded, there, only_good=False)
    )
    return Ruling(loaded=loaded.id, deaths=deaths, doubt=loaded.id if doubted else None)


def stepped(attempt: Attempt) -> bool:
    """True if the attempt ended a step after it loaded."""
    return attempt.first_step_at is not None


def has_older(loaded: Checkpoint, checkpoints: Iterable[Checkpoint], *, only_good: bool) -> bool:
    """True if another checkpoint of an older step can be loaded in place of `loaded`."""
    allowed = {Trust.GOOD} if only_good else _LOADABLE
    return any(
        c.step < loaded.step and c.trust in allowed and may_load(c)
        for c in checkpoints
        if c.id != loaded.id
    )


def may_load(checkpoint: Checkpoint) -> bool:
    """True if a restart may load the checkpoint unasked: whole, there, and without a mark.

    False for one of another engine, which alone loads it.
    """
    return (
        not checkpoint.keeper
        and checkpoint.trust in _LOADABLE
        and checkpoint.deleted_at is None
        and not checkpoint.doubted
        and not checkpoint.superseded
    )
