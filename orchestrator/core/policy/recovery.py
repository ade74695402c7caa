"""The recovery policy: what a failure means and what is done about it. Pure.

`judge` looks at what died and at the run's history, and returns a Verdict; the state machine
carries it out.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
from collections.abc import Mapping, Sequence

from monitors.failures import Advice, Cause, Failure, FailureClass, Proof
from orchestrator.core.model.derived import is_reporting
from orchestrator.core.model.entities import Anomaly, Attempt, Budget, Node, Run
from orchestrator.core.model.vocabulary import Remedy
from orchestrator.core.policy import doubt, remedies, siblings

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
SAME_WINDOW_BATCHES = 20
"""Batches: onsets closer than this (or than `skip_batches`, if more) are the same anomaly."""
NAN_AFTER_LOAD_STEPS = 3
"""An anomaly this soon after a load, twice in one place, casts doubt on what was loaded (row 22).
"""
SAME_STEP_DEATHS = 3
"""Deaths in a row after the same step that are the program's own doing, where nothing but an exit
code of the command tells of a signal: `exit 137` in a script looks like one."""
FOLLOWED_NODES = 2
"""Nodes on which one signature strikes without progress: it follows the run, and is the run's."""


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
    acquitted: tuple[str, ...] = ()
    """Nodes on which the failure struck that are not to blame for it: it follows the run."""
    cordon: ProvenFault | None = None
    distrust: str | None = None
    """The checkpoint that an anomaly casts doubt on."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A case to judge: a failure and, for an anomaly, its onset.

    Without `onset_step` the failure is a crash or a hang; with it, only checkpoints from before the
    onset are safe. `node` is None where no node can be blamed.
    """

    failure: Failure
    node: str | None = None
    host: str | None = None
    """The machine that the node is, or is a part of."""
    ruling: doubt.Ruling = doubt.NOTHING
    """The evidence of the death about the checkpoint that was loaded."""
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
    failure, cause = case.failure, case.failure.cause
    if case.onset_step is not None and failure.failure_class is not FailureClass.SILENT_CORRUPTION:
        return _judge_anomaly(run, attempt, case, case.onset_step)
    step = attempt.step if is_reporting(run) else None  # else nobody knows how far it had come
    budgets, count = charge(run, failure, case.node, case.host, step)
    paid = budgets[cause.value]
    follows = _follows_the_run(failure, paid)
    elsewhere = follows and len(paid.hosts) >= FOLLOWED_NODES and remedies.is_own_making(failure)
    if elsewhere or (paid.at_step >= SAME_STEP_DEATHS and _is_the_run_s(failure, attempt)):
        cause = Cause.USER
        budgets, count = _charge(run, budgets, cause.value, failure.signature)
    limit = remedies.budget_of(run.spec, cause)
    verdict = Verdict(
        remedy=Remedy.RETRY,
        reason=failure.reason,
        cause=cause,
        failure_class=failure.failure_class,
        budgets=budgets,
        anomalies=run.anomalies,
        acquitted=paid.nodes if follows else (),
    )
    if failure.final:
        return dataclasses.replace(
            verdict, remedy=Remedy.STOP, reason=f"{failure.reason}; not started again for that"
        )
    if failure.signature == NOTHING_LOADED and count > min(limit, LOAD_TRIES):
        reason = f"{failure.reason} ({count} times)"
        return dataclasses.replace(verdict, remedy=Remedy.HOLD, reason=reason)
    if count > limit or budgets[STUCK].count > max(limit, run.spec.recovery.infrastructure):
        reason = _stop_reason(verdict, count)
        return dataclasses.replace(verdict, remedy=Remedy.STOP, reason=reason)
    avoid, cordon = (None, None) if follows else _blame(case, node, count, now)
    return dataclasses.replace(
        verdict,
        remedy=_remedy(case, avoid),
        reason=_retry_reason(verdict, count, limit, avoid),
        delay=_back_off(count),
        avoid=avoid,
        cordon=cordon,
    )


def with_lesson(verdict: Verdict, failure: Failure, known: Sequence[str], run: Run) -> Verdict:
    """The verdict with what earlier runs of the program tell of this error.

    It is said in the reason. Only `recovery.stop_known` lets it end the run, which has met the
    error itself by now: the confirmation would only cost another start.

    Args:
        verdict: The verdict by the run's own history.
        failure: What failed.
        known: Names of earlier runs that this error ended.
        run: The run.
    """
    if not known:
        return verdict
    least, who = run.spec.recovery.stop_known, siblings.named(known)
    if verdict.remedy is Remedy.RETRY and 0 < least <= len(known):
        why = f"{failure.reason}; it has ended {who} before, so it is not confirmed here"
        reason = f"{why} (recovery.stop_known is {least})"
        return dataclasses.replace(verdict, remedy=Remedy.STOP, reason=reason)
    return dataclasses.replace(verdict, reason=f"{verdict.reason}; it has ended {who} before")


def _remedy(case: Case, avoid: str | None) -> Remedy:
    """The remedy of what is tried again: an onset says how far the run goes back."""
    if case.onset_step is not None:
        return Remedy.ROLL_BACK
    return Remedy.REPLACE_NODE if avoid else Remedy.RETRY


def charge(
    run: Run,
    failure: Failure,
    node: str | None = None,
    host: str | None = None,
    step: int | None = None,
) -> tuple[dict[str, Budget], int]:
    """Charge the cause's budget and the stuck counter; the new count of this signature.

    `node` and `host` say where the failure struck, and `step` after which step; None: not known.
    """
    key = failure.cause.value
    budgets, count = _charge(run, run.budgets, key, failure.signature, node=node, host=host)
    before, budget = run.budgets.get(key), budgets[key]
    again = before is not None and count > 1 and step is not None and before.step == step
    at_step = before.at_step + 1 if before is not None and again else 1
    budgets[key] = dataclasses.replace(budget, step=step, at_step=at_step)
    if failure.cause in {Cause.PREEMPTION, Cause.OPERATOR}:
        budgets.setdefault(STUCK, Budget(signature=STUCK, count=0, best_step=run.best_step))
    else:
        budgets, _ = _charge(run, budgets, STUCK, STUCK)
    return budgets, count


def _charge(
    run: Run,
    before: Mapping[str, Budget],
    key: str,
    signature: str,
    *,
    node: str | None = None,
    host: str | None = None,
) -> tuple[dict[str, Budget], int]:
    """Budgets with one more failure under `key`, and the count there."""
    old = before.get(key)
    if old is None or old.signature != signature or run.best_step > old.best_step:
        old = Budget(signature=signature, count=0, best_step=run.best_step)
    budget = Budget(
        signature=signature,
        count=old.count + 1,
        best_step=run.best_step,
        nodes=_with(old.nodes, node),
        hosts=_with(old.hosts, host),
    )
    return {**before, key: budget}, budget.count


def _with(names: tuple[str, ...], name: str | None) -> tuple[str, ...]:
    return names if name is None or name in names else (*names, name)


def _is_the_run_s(failure: Failure, attempt: Attempt) -> bool:
    """True for a failure that is the program's own if it strikes after the same step every time.

    A crash before the first new step may be of a storage or a node that is down for a while: only
    one that comes after steps of the attempt's own is tied to its step.
    """
    if remedies.is_hearsay(failure):
        return True
    return remedies.is_own_making(failure) and attempt.step > attempt.start_step


def _follows_the_run(failure: Failure, paid: Budget) -> bool:
    """True if the same failure struck on several nodes, and no machine says that it is theirs."""
    return (
        failure.cause is Cause.INFRASTRUCTURE
        and failure.proof is None
        and len(paid.nodes) >= FOLLOWED_NODES
    )


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


def _stop_reason(verdict: Verdict, count: int) -> str:
    if verdict.cause is Cause.USER:
        return f"{verdict.reason}{_follows(verdict)}"
    return f"{verdict.reason} ({count} times without progress: the budget is spent)"


def _retry_reason(verdict: Verdict, count: int, limit: float, avoid: str | None) -> str:
    follows = _follows(verdict)
    if verdict.cause is Cause.USER:
        return f"{verdict.reason}{follows}; tried once more, to confirm that the code is the cause"
    tail = f"; {avoid} is avoided" if avoid else follows
    again = f" (time {count} without progress, of {limit:.0f})" if count > 1 else ""
    return f"{verdict.reason}{again}{tail}"


def _follows(verdict: Verdict) -> str:
    nodes = verdict.acquitted
    return f"; it follows the run ({', '.join(nodes[:3])}): no node is to blame" if nodes else ""


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
    failure, ruling = case.failure, case.ruling
    if node is not None and ruling.elsewhere and not ruling.doubt:
        return node.id, None
    if node is None or failure.cause is not Cause.INFRASTRUCTURE:
        return None, None
    if _replaces_node(failure):
        proof = failure.proof
        return node.id, None if proof is None else ProvenFault(node.id, proof)
    recent = [f for f in node.faults if now - f.at <= LEMON_WINDOW and not f.acquitted]
    again = count > 1 and ruling.loaded is None  # else the ruling says when to go elsewhere
    if again or len(recent) >= LEMON_FAULTS:
        return node.id, None
    return None, None


def _replaces_node(failure: Failure) -> bool:
    if failure.advice is not None:  # a rule for logs says so
        return failure.advice is Advice.REPLACE_NODE
    return remedies.FAILURES[failure.failure_class].remedy is Remedy.REPLACE_NODE


def _judge_anomaly(run: Run, attempt: Attempt, case: Case, onset_step: int) -> Verdict:
    """Roll back before the onset.

    Replay first, and skip the batches when it comes back (PaLM, GLM-130B). An earlier anomaly is
    over when the run has trained past its onset, by more than onsets of one anomaly differ.
    """
    spike = run.spec.monitors.loss_spike
    window = max(SAME_WINDOW_BATCHES, spike.skip_batches)
    pending = [a for a in run.anomalies if onset_step - a.onset_step <= SAME_WINDOW_BATCHES]
    earlier = [a for a in pending if _apart(a, onset_step, case.onset_batch) <= window]
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
        anomalies=(*(a for a in pending if a not in earlier), seen),
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


def _apart(earlier: Anomaly, onset_step: int, onset_batch: int) -> int:
    """Batches between two onsets; or steps, where the batch of one is not known (0)."""
    if earlier.onset_batch > 0 and onset_batch > 0:
        return abs(earlier.onset_batch - onset_batch)
    return abs(earlier.onset_step - onset_step)


def _without_progress(run: Run) -> int:
    """Anomalies since the run last reached a new step, wherever they began, with this one.

    A run that diverges at ever new places would otherwise roll back for ever.
    """
    old = run.budgets.get(Cause.ANOMALY.value)
    return old.count + 1 if old is not None and run.best_step <= old.best_step else 1
