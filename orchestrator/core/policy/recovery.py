"""The recovery policy (DESIGN section 7): what a failure means and what to do about it. Pure.

`judge` looks at what died and at the run's history, and returns a Verdict; the state machine
carries it out.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
from collections.abc import Mapping, Sequence

from babysit.wire import Tier
from monitors.failures import Advice, Cause, Failure, FailureClass, Proof
from orchestrator.core.model.decisions import Rollback, RollbackTo
from orchestrator.core.model.entities import Anomaly, Attempt, Budget, Checkpoint, Node, Run
from orchestrator.core.model.states import Trust
from orchestrator.core.model.vocabulary import Remedy
from orchestrator.core.policy import remedies

AVOIDED = 16
"""Nodes a run avoids at most, the latest: over weeks it would come to avoid every spare."""
LEMON_FAULTS, LEMON_WINDOW = 3, dt.timedelta(hours=24)
"""A node with so many faults in so long is avoided (lemon score, Meta's reliability study)."""
LAUNCH = "launch"
"""Budget key of agents that do not come up."""
LAUNCH_TRIES = 5
"""Agents that do not come up, without progress, before the run stops (row 24 has 2)."""
STUCK = "stuck"
"""Budget key that counts restarts without progress, whatever they died of (row 26)."""
PATIENCE = 2
"""A run that has restarted so often without progress neither goes ahead of others nor has them
evicted: a crash loop may not keep others from working."""
NOTHING_LOADED = "nothing could be loaded"
"""Signature of an attempt that could load none of the checkpoints offered to it."""
LOAD_TRIES = 8
"""Such attempts in a row before the run is held and people are paged: after three minutes."""
LARGE_LOSS_SECONDS = 3600.0
"""So much work is not begun again unasked: the run is held, and people are paged."""
SAME_WINDOW_BATCHES = 20
"""Onsets closer than this (or skip_batches, if more) are the same anomaly."""
NAN_AFTER_LOAD_STEPS = 3
"""An anomaly this soon after a load, twice from one checkpoint, condemns it (row 22)."""


@dataclasses.dataclass(frozen=True, slots=True)
class ProvenFault:
    """A node to take from every run, and the word of a machine that says so."""

    node: str
    proof: Proof


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What to do, and what to remember."""

    remedy: Remedy
    reason: str
    cause: Cause
    failure_class: FailureClass
    delay: float = 0.0
    """Seconds to wait before the next attempt."""
    budgets: Mapping[str, Budget]
    anomalies: tuple[Anomaly, ...] = ()
    skip: tuple[int, int] | None = None
    """Batches to quarantine, inclusive."""
    avoid: str | None = None
    cordon: ProvenFault | None = None
    distrust: str | None = None
    """A checkpoint that must not be loaded again."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """What died."""

    failure: Failure
    node: str | None = None
    onset_step: int | None = None
    onset_batch: int = 0


def judge(run: Run, attempt: Attempt, case: Case, node: Node | None, now: dt.datetime) -> Verdict:
    """Decide on a failure.

    Budgets count the same signature without progress; progress earns them back.
    """
    if case.onset_step is not None:
        return _judge_anomaly(run, attempt, case, case.onset_step)
    failure = case.failure
    budgets, count = charge(run, failure)
    limit = remedies.budget_of(run.spec, failure.cause)
    verdict = Verdict(
        remedy=Remedy.RETRY,
        reason=failure.reason,
        cause=failure.cause,
        failure_class=failure.failure_class,
        budgets=budgets,
        anomalies=run.anomalies,
    )
    if failure.signature == NOTHING_LOADED and count > min(limit, LOAD_TRIES):
        reason = f"{failure.reason} ({count} times)"
        return dataclasses.replace(verdict, remedy=Remedy.HOLD, reason=reason)
    if count > limit or budgets[STUCK].count > max(limit, run.spec.recovery.infrastructure):
        reason = _stop_reason(failure, count)
        return dataclasses.replace(verdict, remedy=Remedy.STOP, reason=reason)
    avoid, cordon = _blame(case, node, count, now)
    return dataclasses.replace(
        verdict,
        remedy=Remedy.REPLACE_NODE if avoid else Remedy.RETRY,
        reason=_retry_reason(failure, count, limit, avoid),
        delay=_back_off(count),
        avoid=avoid,
        cordon=cordon,
        distrust=_doubt(attempt, failure, count),
    )


def charge(run: Run, failure: Failure) -> tuple[dict[str, Budget], int]:
    """Charge the cause's budget and the stuck counter; the new count of this signature."""
    budgets = dict(run.budgets)
    for key, signature in ((failure.cause.value, failure.signature), (STUCK, STUCK)):
        if key == STUCK and failure.cause in {Cause.PREEMPTION, Cause.OPERATOR}:
            budgets.setdefault(STUCK, Budget(signature=STUCK, count=0, best_step=run.best_step))
            continue
        old = budgets.get(key)
        same = old and old.signature == signature and run.best_step <= old.best_step
        count = old.count + 1 if old and same else 1
        budgets[key] = Budget(signature=signature, count=count, best_step=run.best_step)
    return budgets, budgets[failure.cause.value].count


def restarts_in_vain(run: Run) -> int:
    """Restarts since the run last got further than before."""
    stuck = run.budgets.get(STUCK)
    return stuck.count if stuck is not None and run.best_step <= stuck.best_step else 0


def charge_launch(run: Run, reason: str) -> tuple[dict[str, Budget], int]:
    """Charge an agent that did not come up, wherever it was; the count without progress."""
    old = run.budgets.get(LAUNCH)
    count = old.count + 1 if old is not None and run.best_step <= old.best_step else 1
    budget = Budget(signature=reason, count=count, best_step=run.best_step)
    return {**run.budgets, LAUNCH: budget}, count


def _stop_reason(failure: Failure, count: int) -> str:
    if failure.cause is Cause.USER:
        return failure.reason
    return f"{failure.reason} ({count} times without progress: the budget is spent)"


def _retry_reason(failure: Failure, count: int, limit: float, avoid: str | None) -> str:
    if failure.cause is Cause.USER:
        return f"{failure.reason}; trying once more, to confirm that it is the code"
    tail = f"; away from {avoid}" if avoid else ""
    again = f" (time {count} without progress, of {limit:.0f})" if count > 1 else ""
    return f"{failure.reason}{again}{tail}"


def _back_off(count: int) -> float:
    """Nothing the first time, then 1, 2, 4 … 60 seconds."""
    return 0.0 if count <= 1 else min(60.0, 2.0 ** (count - 2))


def _blame(
    case: Case, node: Node | None, count: int, now: dt.datetime
) -> tuple[str | None, ProvenFault | None]:
    """The node to avoid and the node to cordon.

    A suspect is tried again once before it is avoided. What a rank printed may send this run
    elsewhere; only the word of the kernel, the driver or the cluster takes a node from every run.
    """
    failure = case.failure
    if node is None or failure.cause is not Cause.INFRASTRUCTURE:
        return None, None
    if _replaces_node(failure):
        proof = failure.proof
        return node.id, None if proof is None else ProvenFault(node.id, proof)
    recent = [fault for fault in node.faults if now - fault.at <= LEMON_WINDOW]
    if count > 1 or len(recent) >= LEMON_FAULTS:
        return node.id, None
    return None, None


def _replaces_node(failure: Failure) -> bool:
    if failure.advice is not None:  # a rule for logs says so
        return failure.advice is Advice.REPLACE_NODE
    return remedies.FAILURES[failure.failure_class].remedy is Remedy.REPLACE_NODE


def _doubt(attempt: Attempt, failure: Failure, count: int) -> str | None:
    """The checkpoint to leave out.

    It was loaded, and the same failure came back before any new step.
    """
    stepped = attempt.first_step_at is not None
    rule = remedies.FAILURES[failure.failure_class]
    suspect = rule.suspects_checkpoint and failure.cause is not Cause.USER
    if count > 1 and not stepped and suspect:
        return attempt.restored
    return None


def _judge_anomaly(run: Run, attempt: Attempt, case: Case, onset_step: int) -> Verdict:
    """Roll back before the onset.

    Replay first, and skip the batches when it comes back (PaLM, GLM-130B).
    """
    spike = run.spec.monitors.loss_spike
    window = max(SAME_WINDOW_BATCHES, spike.skip_batches)
    earlier = [a for a in run.anomalies if abs(a.onset_batch - case.onset_batch) <= window]
    count = 1 + max((a.count for a in earlier), default=0)
    seen = Anomaly(onset_step=onset_step, onset_batch=case.onset_batch, count=count)
    signature = case.failure.signature
    charged = max(count, _without_progress(run))
    budget = Budget(signature=signature, count=charged, best_step=run.best_step)
    soon = onset_step <= attempt.start_step + NAN_AFTER_LOAD_STEPS
    verdict = Verdict(
        remedy=Remedy.ROLL_BACK,
        reason=case.failure.reason,
        cause=Cause.ANOMALY,
        failure_class=FailureClass.NUMERICS,
        budgets={**run.budgets, Cause.ANOMALY.value: budget},
        anomalies=(*(a for a in run.anomalies if a not in earlier), seen),
        distrust=attempt.restored if soon and count > 1 else None,
    )
    if charged > run.spec.recovery.anomaly:
        what = "it came back" if charged == count else "no new step was reached"
        why = f"{what} after {charged - 1} rollbacks: the model or its data must change"
        reason = f"{case.failure.reason}; {why}"
        return dataclasses.replace(verdict, remedy=Remedy.STOP, reason=reason)
    if count == 1 or spike.skip_batches == 0 or case.onset_batch <= 0:
        return verdict
    margin = (count - 2) * spike.skip_batches // 4
    skip = (max(1, case.onset_batch - margin), case.onset_batch + spike.skip_batches - 1)
    why = f"it came back after a rollback, so batches {skip[0]} to {skip[1]} are quarantined"
    reason = f"{case.failure.reason}; {why}"
    return dataclasses.replace(verdict, remedy=Remedy.ROLL_BACK_AND_SKIP, reason=reason, skip=skip)


def _without_progress(run: Run) -> int:
    """Anomalies, wherever they began, since the run last got further than before: this one too.

    A run that diverges in ever new places would otherwise roll back for ever.
    """
    old = run.budgets.get(Cause.ANOMALY.value)
    return old.count + 1 if old is not None and run.best_step <= old.best_step else 1


def trusted(
    checkpoints: Sequence[Checkpoint],
    *,
    run: Run,
    before_step: int | None,
    to_step: int | None,
    homes: Mapping[int, str],
    world_size: int,
) -> list[Checkpoint]:
    """The checkpoints that may be loaded for the cause at hand, in the order to try.

    A crash takes the newest complete one, memory before directory at the same step. An anomaly
    (`before_step`, its onset) takes
    good ones from before it only. `to_step` is an operator's choice: that step or older. `homes`
    says which worker each
    rank of the new attempt runs on: a memory checkpoint is usable only where its shards are.
    """

    def usable(checkpoint: Checkpoint) -> bool:
        if checkpoint.id in run.excluded or checkpoint.deleted_at is not None:
            return False
        if checkpoint.trust in {Trust.WRITING, Trust.BAD}:
            return False
        if to_step is not None and checkpoint.step > to_step:
            return False
        if before_step is not None and (
            checkpoint.trust is not Trust.GOOD or checkpoint.step >= before_step
        ):
            return False
        if checkpoint.tier is Tier.MEMORY:
            return checkpoint.world_size == world_size and dict(checkpoint.homes) == dict(homes)
        return True

    return sorted(
        filter(usable, checkpoints),
        key=lambda c: (-c.step, c.tier is not Tier.MEMORY, -c.attempt),
    )


def has_lost_its_past(run: Run, before: Attempt | None, checkpoints: Sequence[Checkpoint]) -> bool:
    """Whether to begin again would throw a past away that nobody has decided to give up.

    That is so where the last attempt went on from checkpoints, or saved some, that turned out bad.
    """
    if before is None or isinstance(run.decision, Rollback | RollbackTo):
        return False
    return any(
        checkpoint.tier is Tier.DIRECTORY
        and checkpoint.trust is Trust.BAD
        and (checkpoint.attempt == before.number or checkpoint.id in before.candidates)
        for checkpoint in checkpoints
    )


def select_for_deletion(
    checkpoints: Sequence[Checkpoint], keep: int, in_use: Sequence[str]
) -> list[Checkpoint]:
    """Directory checkpoints that retention may delete.

    Never the newest `keep`, the newest good one, a pinned one, or one in use.

    Bad and half-written ones older than the newest trusted one go first; they never count among
    the kept.
    """
    directory = sorted(
        (c for c in checkpoints if c.tier is Tier.DIRECTORY and c.deleted_at is None),
        key=lambda c: (c.step, c.attempt),
        reverse=True,
    )
    sound = [c for c in directory if c.trust in {Trust.COMPLETE, Trust.VERIFIED, Trust.GOOD}]
    if not sound:
        return []
    newest_good = next((c for c in sound if c.trust is Trust.GOOD), None)
    verified = next((c for c in sound if c.trust in {Trust.VERIFIED, Trust.GOOD}), None)
    kept = {c.id for c in (*sound[:keep], newest_good, verified) if c is not None} | set(in_use)
    spent = [
        c for c in directory if c.trust in {Trust.BAD, Trust.WRITING} and c.step < sound[0].step
    ]
    return [c for c in (*spent, *sound) if c.id not in kept and not c.pinned]
