"""The recovery policy: what a failure means and what is done about it. Pure.

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
"""Most nodes that a run avoids, the latest ones: over weeks it would come to avoid every spare."""
LEMON_FAULTS, LEMON_WINDOW = 3, dt.timedelta(hours=24)
"""A node with this many faults within this window is avoided (lemon nodes, Meta's study)."""
LAUNCH = "launch"
"""Budget key of agents that do not start."""
LAUNCH_TRIES = 5
"""Launches that may fail without progress before the run stops (FAILURES.md row 24 has 2)."""
STUCK = "stuck"
"""Budget key that counts restarts without progress, whatever the cause (FAILURES.md row 26)."""
PATIENCE = 2
"""Restarts without progress after which a run is scheduled like a new one and preempts nobody: a
crash loop must not keep others from working."""
NOTHING_LOADED = "nothing could be loaded"
"""Signature of an attempt that could load none of the checkpoints offered to it."""
LOAD_TRIES = 8
"""Attempts in a row that load nothing before the run is held: three minutes of back-off."""
LARGE_LOSS_SECONDS = 3600.0
"""Seconds of work that are never thrown away unasked: the run is held, and people are paged."""
SAME_WINDOW_BATCHES = 20
"""Batches: onsets closer than this (or than `skip_batches`, if more) are the same anomaly."""
NAN_AFTER_LOAD_STEPS = 3
"""Steps: an anomaly this soon after a load, twice, marks the checkpoint bad (row 22)."""


@dataclasses.dataclass(frozen=True, slots=True)
class ProvenFault:
    """A node to take from every run, and the word of a machine that says so."""

    node: str
    proof: Proof


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """The verdict about a failure: the remedy, and the failure as the run remembers it.

    `remedy` decides what follows: `stop` ends the run as failed, `hold` waits for a person, any
    other starts another attempt after `delay`.
    """

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
    """A case to judge: a failure and, for an anomaly, its onset.

    Without `onset_step` the failure is a crash or a hang; with it, only checkpoints from before the
    onset are safe. `node` is None where no node can be blamed.
    """

    failure: Failure
    node: str | None = None
    onset_step: int | None = None
    onset_batch: int = 0


def judge(run: Run, attempt: Attempt, case: Case, node: Node | None, now: dt.datetime) -> Verdict:
    """Decide what is done about a failure, once every process of the attempt is dead.

    Budgets count failures with one signature and no progress in between: a step beyond the best one
    resets them, and so does another signature. Nothing is changed here; the caller carries the
    verdict out and stores its budgets.

    Args:
        run: The run, with the budgets that it has spent so far.
        attempt: The attempt that ended.
        case: What failed.
        node: The node that may be to blame, with this fault on record; None: no node is.
        now: The time, for the window of the node's faults.
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
    if failure.final:
        return dataclasses.replace(
            verdict, remedy=Remedy.STOP, reason=f"{failure.reason}; not started again for that"
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
    """Charge the budget of the cause and the counter of restarts without progress.

    Returns the new budgets, and how often this signature has failed without progress, this time
    included. Preemptions and requests do not count as restarts without progress.
    """
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
    """Restarts since the run last reached a new step; 0 if it has since."""
    stuck = run.budgets.get(STUCK)
    return stuck.count if stuck is not None and run.best_step <= stuck.best_step else 0


def avoiding(run: Run, node: str | None) -> tuple[str, ...]:
    """The nodes that the run avoids, with one more at the end; None: the same nodes."""
    if node is None or node in run.avoid:
        return run.avoid
    return (*run.avoid, node)[-AVOIDED:]


def charge_launch(run: Run, reason: str) -> tuple[dict[str, Budget], int]:
    """Charge an agent that did not start, on whichever node; return budgets and the new count."""
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
        return f"{failure.reason}; tried once more, to confirm that the code is the cause"
    tail = f"; {avoid} is avoided" if avoid else ""
    again = f" (time {count} without progress, of {limit:.0f})" if count > 1 else ""
    return f"{failure.reason}{again}{tail}"


def _back_off(count: int) -> float:
    """Seconds before the next attempt: none the first time, then 1, 2, 4 … 60."""
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
    """The checkpoint that is not loaded again; None: none is in doubt.

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
    """Anomalies since the run last reached a new step, wherever they began, with this one.

    A run that diverges at ever new places would otherwise roll back for ever.
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
    """The checkpoints that are safe to load, in the order in which they are tried.

    Whether they can be read is not promised: ranks check sizes and hashes, and fall back along the
    list.

    Args:
        checkpoints: All that is known of the run.
        run: Its `excluded` ones are passed over.
        before_step: Onset of an anomaly: only good ones from before it are safe. None: a crash, for
            which the newest complete one will do, memory before directory at the same step.
        to_step: Step that a person chose: this one or older. None: no choice.
        homes: Worker of each rank of the next attempt: a memory checkpoint is of use only where its
            shards are.
        world_size: Ranks of the next attempt: memory cannot be resharded.
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
    """True if a start from step 0 would throw work away that nobody decided to give up.

    That is so where the last attempt loaded or saved checkpoints that turned out bad. After a
    rollback, by a person or for an anomaly, it is decided already.
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
    """Directory checkpoints that retention may delete, bad and unfinished ones first.

    Retention never selects the newest `keep` sound ones, the newest good or verified one, a pinned
    one, or one in `in_use`. Bad and unfinished ones do not count among the kept; those newer than
    every sound one stay, since an unfinished one may still become whole.
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
