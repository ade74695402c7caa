"""The decision about a run whose attempt ends: a union, one class for each way to go on.

A decision is made while the attempt may still be alive, and carried out when every process of it is
confirmed dead: two attempts of a run must never write at once. It is kept in the run, so that it
survives a restart of the control plane. `orchestrator.core.supervision.judgement.decide` carries it
out; the next attempt, or the end of the run, clears it.

`Retry`: go on from the newest checkpoint that loads. Made by `supervision.failures.fail_attempt` (a
    death), `supervision.findings` (a hang) and `requests.runs` (a restart that was asked for).
`Rollback`: go on from the newest good checkpoint before an onset. Made by `supervision.findings`
    (an anomaly) and kept by `requests.runs` when someone asks for a restart meanwhile.
`RollbackTo`: go on from the step a person chose, or older. Made by `requests.runs`.
`Vacate`: leave nodes, then go on. Made by `attempts.preemption.ask` (preemption, a drain, growth).
`Finish`: end the run. Made by `requests.runs.end` (cancelled, `max_runtime`).

Combinations that mean nothing cannot be built: only `Retry` and `Rollback` have a failure to judge,
only a rollback names a step or skips batches, only `Vacate` gives nodes back, and a `Finish` never
waits for a back-off.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import itertools
from typing import Annotated, Literal

from pydantic import Field

from monitors.failures import Cause, Failure, FailureClass
from orchestrator.core.model.states import RunState
from orchestrator.core.model.vocabulary import Remedy


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Restart:
    """Why and how one attempt followed another."""

    attempt: int
    """The attempt this led to."""
    cause: Cause
    failure_class: FailureClass
    reason: str
    remedy: Remedy = Remedy.RETRY
    node: str | None = None
    rank: int | None = None
    incident: str | None = None
    failed_at: dt.datetime
    """Last sign of progress before the failure (a crash: the exit)."""
    detected_at: dt.datetime
    stopped_at: dt.datetime | None = None
    placed_at: dt.datetime | None = None
    ready_at: dt.datetime | None = None
    restored_at: dt.datetime | None = None
    recovered_at: dt.datetime | None = None
    """End of the first new step."""
    best_step: int = 0
    """Best step before the failure."""
    resumed_step: int | None = None

    @property
    def lost_steps(self) -> int | None:
        """Steps to compute again."""
        return None if self.resumed_step is None else max(0, self.best_step - self.resumed_step)

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds by phase, as far as known.

        A script that does not call `babysit.init()` says nothing of its imports and its state: that
        time belongs to the phase before, so that the phases add up.
        """
        marks = (
            ("detect", self.failed_at),
            ("stop", self.detected_at),
            ("place", self.stopped_at),
            ("start", self.placed_at),
            ("restore", self.ready_at),
            ("recompute", self.restored_at),
            ("", self.recovered_at),
        )
        known = [(name, at) for name, at in marks if at is not None]
        return {
            name: max(0.0, (end - begin).total_seconds())
            for (name, begin), (_, end) in itertools.pairwise(known)
        }


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Unjudged:
    """The failure is judged once the attempt is dead and no hold applies."""

    stage: Literal["unjudged"] = "unjudged"
    failure: Failure


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Settled:
    """There is nothing (more) to judge; it is carried out once the attempt is dead and not held."""

    stage: Literal["settled"] = "settled"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class CarriedOut:
    """Checkpoints and nodes are prepared: the run wants nodes for its next attempt."""

    stage: Literal["carried_out"] = "carried_out"
    retry_at: dt.datetime | None = None
    """End of the back-off; None: no back-off, or it has ended."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Retry:
    """Go on from the newest checkpoint that every rank can load."""

    kind: Literal["retry"] = "retry"
    restart: Restart
    stage: Annotated[Unjudged | Settled | CarriedOut, Field(discriminator="stage")]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Rollback:
    """Go back to the newest good checkpoint from before the onset of an anomaly."""

    kind: Literal["rollback"] = "rollback"
    restart: Restart
    onset_step: int
    """First step that was off: only good checkpoints before it count."""
    onset_batch: int = 0
    """Batch consumed by the onset step; 0 where batches mean nothing."""
    skip: tuple[int, int] | None = None
    """Batches to quarantine, first and last."""
    stage: Annotated[Unjudged | Settled | CarriedOut, Field(discriminator="stage")]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RollbackTo:
    """Go back to a step that a person chose, or older; 0: begin again."""

    kind: Literal["rollback_to"] = "rollback_to"
    restart: Restart
    step: int
    force: bool = False
    """Try the checkpoint of this step even if it is known to be bad."""
    skip: tuple[int, int] | None = None
    """Batches to quarantine, first and last."""
    stage: Annotated[Settled | CarriedOut, Field(discriminator="stage")] = dataclasses.field(
        default_factory=Settled
    )


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Vacate:
    """Save, leave nodes to other runs (or to maintenance), and go on."""

    kind: Literal["vacate"] = "vacate"
    restart: Restart
    nodes: tuple[str, ...] = ()
    """Nodes that are left; empty when the run keeps them all, as when it grows."""
    stage: Annotated[Settled | CarriedOut, Field(discriminator="stage")] = dataclasses.field(
        default_factory=Settled
    )


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Finish:
    """End the run. The restart says who asked, when and why; no attempt follows."""

    kind: Literal["finish"] = "finish"
    restart: Restart
    state: Literal[RunState.FAILED, RunState.CANCELLED]


Onward = Retry | Rollback | RollbackTo | Vacate
"""Decisions after which another attempt follows."""
Decision = Annotated[
    Retry | Rollback | RollbackTo | Vacate | Finish,
    Field(discriminator="kind"),
]


def awaits_attempt(decision: Decision | None) -> bool:
    """True if no decision keeps the run from its next attempt."""
    if decision is None:
        return True
    if isinstance(decision, Finish) or not isinstance(decision.stage, CarriedOut):
        return False
    return decision.stage.retry_at is None


def back_off_ends(decision: Decision | None) -> dt.datetime | None:
    """When the back-off before the next attempt ends; None when there is none."""
    if decision is None or isinstance(decision, Finish):
        return None
    return decision.stage.retry_at if isinstance(decision.stage, CarriedOut) else None
