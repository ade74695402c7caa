"""Decision tables of the recovery policy. Each row is one rule; its comment says which."""

from __future__ import annotations

import datetime as dt
from typing import Any

import pytest

from babysit.wire import Tier
from jobs.spec import RunSpec
from monitors.failures import Cause, Evidence, Failure, FailureClass
from orchestrator.core.model.entities import Anomaly, Budget, Checkpoint, Fault, Node
from orchestrator.core.model.states import Trust
from orchestrator.core.model.vocabulary import Remedy
from orchestrator.core.policy.checkpoint_choice import select_for_deletion, trusted
from orchestrator.core.policy.doubt import Ruling, rule
from orchestrator.core.policy.recovery import NOTHING_LOADED, STUCK, Case, judge
from tests.database_data import NOW, attempt, checkpoint, run

F = FailureClass
GOOD, VERIFIED, COMPLETE, BAD, WRITING = (
    Trust.GOOD,
    Trust.VERIFIED,
    Trust.COMPLETE,
    Trust.BAD,
    Trust.WRITING,
)
HOME = {0: "w1", 1: "w1"}


def failed(failure_class: F, *, signature: str = "same", code: int | None = None) -> Failure:
    return Failure(failure_class=failure_class, reason="it died", signature=signature, code=code)


def saved(name: str, step: int, trust: Trust = Trust.COMPLETE, **more: Any) -> Checkpoint:
    return checkpoint(step, id=name, trust=trust, **more)


def spent(cause: Cause, count: int, *, best_step: int = 100, signature: str = "same") -> Any:
    """Budgets of a run that has failed `count` times; it stands at step 100."""
    return {cause.value: Budget(signature=signature, count=count, best_step=best_step)}


def stuck(count: int) -> Any:
    return {STUCK: Budget(signature=STUCK, count=count, best_step=100)}


def faults(hours_ago: float) -> tuple[Fault, ...]:
    """Three faults of a node, of other runs."""
    at = NOW - dt.timedelta(hours=hours_ago)
    return tuple(Fault(at=at, run=f"r{i}", failure_class=F.NETWORK) for i in range(3))


INFRA, USER = Cause.INFRASTRUCTURE, Cause.USER
NODE, LEMON, OLD_LEMON = (
    Node(id="node-1"),
    Node(id="node-1", faults=faults(1)),
    Node(id="node-1", faults=faults(25)),
)

EVICTED = failed(F.PREEMPTION).model_copy(update={"source": Evidence.CLUSTER})
XID = failed(F.GPU_HARDWARE).model_copy(update={"source": Evidence.DRIVER})
"""What the driver says of a GPU."""

CRASHES = [
    # The first time, whatever it is, the same nodes are tried again at once.
    (failed(F.SIGNAL), {}, NODE, Remedy.RETRY, 0.0, None, None),
    # The same failure without progress: elsewhere, after a pause.
    (failed(F.SIGNAL), spent(INFRA, 1), NODE, Remedy.REPLACE_NODE, 1.0, "node-1", None),
    # … without a node to blame, only the pause.
    (failed(F.SIGNAL), spent(INFRA, 1), None, Remedy.RETRY, 1.0, None, None),
    # Progress since then earns the budget back.
    (failed(F.SIGNAL), spent(INFRA, 9, best_step=99), NODE, Remedy.RETRY, 0.0, None, None),
    # Another signature is another failure.
    (failed(F.SIGNAL), spent(INFRA, 9, signature="else"), NODE, Remedy.RETRY, 0.0, None, None),
    # The pause doubles, up to a minute.
    (failed(F.SIGNAL), spent(INFRA, 3), None, Remedy.RETRY, 4.0, None, None),
    (failed(F.SIGNAL), spent(INFRA, 20), None, Remedy.RETRY, 60.0, None, None),
    # A faulty GPU: the run avoids the node the first time; the driver's word takes it from all.
    (failed(F.GPU_HARDWARE), {}, NODE, Remedy.REPLACE_NODE, 0.0, "node-1", None),
    (XID, {}, NODE, Remedy.REPLACE_NODE, 0.0, "node-1", "node-1"),
    (failed(F.GPU_HARDWARE), {}, None, Remedy.RETRY, 0.0, None, None),
    # A node that failed others three times in a day is avoided the first time, not cordoned.
    (failed(F.NETWORK), {}, LEMON, Remedy.REPLACE_NODE, 0.0, "node-1", None),
    (failed(F.NETWORK), {}, OLD_LEMON, Remedy.RETRY, 0.0, None, None),
    # The user's code says nothing about a node; one retry confirms it.
    (failed(F.USER_CODE), {}, LEMON, Remedy.RETRY, 0.0, None, None),
    (failed(F.USER_CODE), spent(USER, 1), NODE, Remedy.STOP, 0.0, None, None),
    # What nobody can name is the user's if the program ended itself, else the machines'.
    (failed(F.UNKNOWN, code=1), spent(USER, 1), NODE, Remedy.STOP, 0.0, None, None),
    (failed(F.UNKNOWN, code=-9), spent(INFRA, 1), None, Remedy.RETRY, 1.0, None, None),
    # The budget of infrastructure is 50.
    (failed(F.SIGNAL), spent(INFRA, 49), None, Remedy.RETRY, 60.0, None, None),
    (failed(F.SIGNAL), spent(INFRA, 50), None, Remedy.STOP, 0.0, None, None),
    # A crash loop whose signature keeps changing has that many restarts, too.
    (failed(F.SIGNAL), stuck(49), None, Remedy.RETRY, 0.0, None, None),
    (failed(F.SIGNAL), stuck(50), None, Remedy.STOP, 0.0, None, None),
    # A preemption that the cluster confirms is free; one that only a log tells of is charged.
    (EVICTED, spent(Cause.PREEMPTION, 999), None, Remedy.RETRY, 60.0, None, None),
    (failed(F.PREEMPTION), spent(INFRA, 50), None, Remedy.STOP, 0.0, None, None),
    # Nothing loads: eight tries, then people decide rather than the run being given up.
    (
        failed(F.STORAGE, signature=NOTHING_LOADED),
        spent(INFRA, 7, signature=NOTHING_LOADED),
        None,
        Remedy.RETRY,
        60.0,
        None,
        None,
    ),
    (
        failed(F.STORAGE, signature=NOTHING_LOADED),
        spent(INFRA, 8, signature=NOTHING_LOADED),
        None,
        Remedy.HOLD,
        0.0,
        None,
        None,
    ),
]


@pytest.mark.parametrize(
    ("failure", "budgets", "node", "remedy", "delay", "avoid", "cordon"), CRASHES
)
def test_what_is_done_about_a_crash(
    failure: Failure,
    budgets: dict[str, Budget],
    node: Node | None,
    remedy: Remedy,
    delay: float,
    avoid: str | None,
    cordon: str | None,
) -> None:
    case = Case(failure=failure, node=node.id if node else None)
    verdict = judge(run(best_step=100, budgets=budgets), attempt(), case, node, NOW)
    assert (verdict.remedy, verdict.delay) == (remedy, delay)
    cordoned = verdict.cordon.node if verdict.cordon else None
    assert (verdict.avoid, cordoned) == (avoid, cordon)


@pytest.mark.parametrize(
    ("failure", "deaths", "stepped", "doubted"),
    [
        # Here, here again, elsewhere: then it may be what was loaded.
        (failed(F.SIGNAL), 2, False, "c40"),
        (failed(F.CHECKPOINT_CORRUPT), 2, False, "c40"),
        (failed(F.UNKNOWN), 2, False, "c40"),
        # Twice is no pattern: it was not tried elsewhere.
        (failed(F.SIGNAL), 1, False, None),
        # A new step was computed from it, so it loads.
        (failed(F.SIGNAL), 2, True, None),
        # A network or a full disk fails whatever is loaded.
        (failed(F.NETWORK), 2, False, None),
        (failed(F.STORAGE), 2, False, None),
        # The program ended itself: its code is to blame. (It has its own budget of one retry.)
        (failed(F.UNKNOWN, code=1), 2, False, None),
    ],
)
def test_which_failures_cast_doubt_on_the_checkpoint(
    failure: Failure, deaths: int, stepped: bool, doubted: str | None
) -> None:
    last = attempt(restored="c40", start_step=40, first_step_at=NOW if stepped else None)
    known = [checkpoint(40, id="c40", deaths=deaths, trust=GOOD), saved("c30", 30)]
    assert rule(last, failure, known).doubt == doubted


NEWER = {"id": "c40", "trust": Trust.GOOD, "deaths": 2}
RULINGS: list[tuple[list[Checkpoint], Ruling]] = [
    # No older one can be loaded instead: the only one is never doubted.
    ([checkpoint(40, **NEWER)], Ruling(loaded="c40", deaths=3)),
    (
        [checkpoint(40, **NEWER), checkpoint(30, trust=Trust.GOOD, superseded=True)],
        Ruling(loaded="c40", deaths=3),
    ),
    # It was acquitted before: the older one had died alike.
    (
        [checkpoint(40, **NEWER, acquitted=True), checkpoint(30, trust=Trust.GOOD)],
        Ruling(loaded="c40", deaths=3),
    ),
    # It is the older one, and dies alike.
    (
        [checkpoint(40, **NEWER), checkpoint(50, id="c50", trust=Trust.GOOD, doubted=True)],
        Ruling(loaded="c40", deaths=3, acquit=("c50",)),
    ),
]


@pytest.mark.parametrize(("known", "ruling"), RULINGS)
def test_what_a_death_says_of_checkpoints(known: list[Checkpoint], ruling: Ruling) -> None:
    last = attempt(restored="c40", start_step=40, first_step_at=None)
    assert rule(last, failed(F.SIGNAL), known) == ruling


def seen(count: int, batch: int) -> tuple[Anomaly, ...]:
    return (Anomaly(onset_step=batch, onset_batch=batch, count=count),)


ANOMALY = Cause.ANOMALY
ANOMALIES = [
    # First time: the same data again. Most spikes do not return.
    ((), 0, 20, 211, Remedy.ROLL_BACK, None),
    # It comes back at the same data: the batches from the onset on are quarantined.
    (seen(1, 211), 1, 20, 211, Remedy.ROLL_BACK_AND_SKIP, (211, 230)),
    # … and 20 batches off is still the same data; 21 is not.
    (seen(1, 191), 1, 20, 211, Remedy.ROLL_BACK_AND_SKIP, (211, 230)),
    (seen(1, 190), 1, 20, 211, Remedy.ROLL_BACK, None),
    # The third time the range begins a quarter of it earlier.
    (seen(2, 211), 2, 20, 211, Remedy.ROLL_BACK_AND_SKIP, (206, 230)),
    # … but never before the first batch.
    (seen(2, 3), 2, 20, 3, Remedy.ROLL_BACK_AND_SKIP, (1, 22)),
    # The spec says that nothing is skipped.
    (seen(1, 211), 1, 0, 211, Remedy.ROLL_BACK, None),
    # The script draws its batches elsewhere: nothing can be skipped.
    (seen(1, 0), 1, 20, 0, Remedy.ROLL_BACK, None),
    # The budget of three at one place is spent.
    (seen(3, 211), 3, 20, 211, Remedy.STOP, None),
    # Three rollbacks at ever new places without a new step: it diverges.
    ((), 3, 20, 211, Remedy.STOP, None),
]


@pytest.mark.parametrize(
    ("anomalies", "charged", "skip_batches", "batch", "remedy", "skip"), ANOMALIES
)
def test_what_is_done_about_an_anomaly(
    anomalies: tuple[Anomaly, ...],
    charged: int,
    skip_batches: int,
    batch: int,
    remedy: Remedy,
    skip: tuple[int, int] | None,
) -> None:
    spec = RunSpec(
        name="tiny",
        command=("x",),
        monitors={"loss_spike": {"skip_batches": skip_batches}},
        recovery={"anomaly": 3},
    )
    budgets = spent(ANOMALY, charged, signature="loss_spike") if charged else {}
    one = run(best_step=100, budgets=budgets, anomalies=anomalies, spec=spec)
    found = failed(F.NUMERICS, signature="loss_spike")
    case = Case(failure=found, onset_step=max(1, batch), onset_batch=batch)
    verdict = judge(one, attempt(start_step=0), case, None, NOW)
    assert (verdict.remedy, verdict.skip) == (remedy, skip)


@pytest.mark.parametrize(
    ("onset", "times", "distrusted"),
    [
        # Twice within three steps of a load: it may be the checkpoint.
        (43, 1, "c40"),
        # Once may be the data.
        (43, 0, None),
        # Four steps later it is not the checkpoint.
        (44, 1, None),
    ],
)
def test_an_anomaly_soon_after_a_load_casts_doubt_on_the_checkpoint(
    onset: int, times: int, distrusted: str | None
) -> None:
    anomalies = (Anomaly(onset_step=onset, onset_batch=onset, count=1),) * times
    case = Case(failure=failed(F.NUMERICS), onset_step=onset, onset_batch=onset)
    last = attempt(restored="c40", start_step=40)
    verdict = judge(run(best_step=100, anomalies=anomalies), last, case, None, NOW)
    assert verdict.distrust == distrusted


MEMORY = {"tier": Tier.MEMORY, "homes": HOME}
TRUSTED: list[tuple[list[Checkpoint], dict[str, Any], str]] = [
    # A crash takes the newest, whether or not it was read back.
    ([saved("a", 10, Trust.GOOD), saved("b", 20, Trust.VERIFIED), saved("c", 30)], {}, "c b a"),
    # Half-written and bad ones are never loaded, and neither are deleted or marked ones.
    ([saved("a", 10, Trust.WRITING), saved("b", 20, Trust.BAD)], {}, ""),
    ([saved("a", 10, deleted_at=NOW), saved("b", 5)], {}, "b"),
    ([saved("a", 20, doubted=True), saved("b", 10, superseded=True), saved("c", 5)], {}, "c"),
    # Only a person may try a bad one, by its step; nothing makes a half-written one whole.
    (
        [saved("a", 20, Trust.BAD), saved("b", 10, Trust.BAD), saved("c", 5)],
        {"to_step": 20, "forced": True},
        "a c",
    ),
    ([saved("a", 20, Trust.WRITING), saved("c", 5)], {"to_step": 20, "forced": True}, "c"),
    # An anomaly takes good ones from before its onset: at the onset it is too late.
    (
        [saved("a", 10, Trust.GOOD), saved("b", 20, Trust.VERIFIED), saved("c", 30, Trust.GOOD)],
        {"before_step": 30},
        "a",
    ),
    # An operator's step, or older.
    ([saved("a", 10), saved("b", 20), saved("c", 30)], {"to_step": 20}, "b a"),
    # Memory before directory at the same step, but no older step before a newer one.
    ([saved("a", 30), saved("m", 30, **MEMORY), saved("n", 20, **MEMORY)], {}, "m a n"),
    # Of one step saved twice, the later attempt's.
    ([saved("a", 30, attempt=1), saved("b", 30, attempt=2)], {}, "b a"),
    # Memory is where its ranks are, or it is nowhere.
    ([saved("m", 30, tier=Tier.MEMORY, homes={0: "w1", 1: "w2"})], {}, ""),
    ([saved("m", 30, **MEMORY, world_size=4)], {}, ""),
]


@pytest.mark.parametrize(("known", "cause", "order"), TRUSTED)
def test_which_checkpoints_may_be_loaded(
    known: list[Checkpoint], cause: dict[str, Any], order: str
) -> None:
    asked = {"before_step": None, "to_step": None, **cause}
    found = trusted(known, homes=HOME, world_size=2, **asked)
    assert " ".join(each.id for each in found) == order


RETENTION: list[tuple[list[Checkpoint], int, str]] = [
    # The newest `keep` stay.
    ([saved("a", 10, GOOD), saved("b", 20, GOOD), saved("c", 30, GOOD)], 2, "a"),
    # … and the newest good and the newest verified one, however old.
    ([saved("a", 10, GOOD), saved("b", 20, VERIFIED), saved("c", 30)], 1, ""),
    # An older good one is expendable.
    ([saved("a", 10, GOOD), saved("b", 20, GOOD), saved("c", 30)], 1, "a"),
    # What is pinned, or may be loaded just now, stays.
    ([saved("a", 10, GOOD, pinned=True), saved("b", 20, GOOD)], 1, ""),
    ([saved("used", 10, GOOD), saved("b", 20, GOOD)], 1, ""),
    # Bad and half-written ones go first and take the place of none.
    ([saved("a", 10, BAD), saved("b", 20, WRITING), saved("c", 30, GOOD)], 1, "b a"),
    # … unless they are newer than every sound one: one may still become whole.
    ([saved("a", 10, GOOD), saved("b", 20, WRITING), saved("c", 30, BAD)], 1, ""),
    # Without a sound one no damaged one is deleted: somebody may want to mend it.
    ([saved("a", 10, BAD), saved("b", 20, WRITING)], 1, ""),
    # Half-written ones that nobody writes any more go, or a full disk stays full …
    ([saved(name, step, WRITING) for name, step in (("a", 1), ("b", 2), ("c", 3))], 1, "a"),
    # … at once when their attempt is over.
    ([saved("a", 10, GOOD), saved("b", 20, WRITING, attempt=0)], 1, "b"),
    # Superseded ones count among nothing that is kept; they go when a newer step is saved …
    ([saved("a", 10, GOOD), saved("s", 20, GOOD, superseded=True), saved("c", 30)], 2, "s"),
    # … or when there are more than `keep` of them.
    (
        [
            saved("a", 10, GOOD),
            saved("s", 20, GOOD, superseded=True),
            saved("t", 30, GOOD, superseded=True),
        ],
        1,
        "s",
    ),
    # … and never while nothing else is sound. A doubted one stays: it may be acquitted.
    ([saved("s", 20, GOOD, superseded=True), saved("t", 30, GOOD, superseded=True)], 1, ""),
    ([saved("a", 10, GOOD), saved("d", 20, GOOD, doubted=True), saved("c", 30, GOOD)], 1, "a"),
    # The tier `memory` and what is deleted already are not retention's.
    ([saved("m", 10, tier=Tier.MEMORY), saved("d", 11, deleted_at=NOW), saved("c", 30)], 1, ""),
]


@pytest.mark.parametrize(("known", "keep", "deleted"), RETENTION)
def test_what_retention_deletes(known: list[Checkpoint], keep: int, deleted: str) -> None:
    found = select_for_deletion(known, keep, in_use=("used",), attempt=1)
    assert " ".join(each.id for each in found) == deleted
