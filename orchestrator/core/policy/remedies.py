"""The remedy table: what babysit does about each kind of finding and each class of failure.

Monitors say what they found and classifiers say what a rank died of; neither knows a remedy. This
table does, in one place, so that a kind without a row cannot inherit the remedy of another one by
accident: every lookup raises KeyError, and a test demands a row for each member of both enums.

Supervision reads it to act on findings, recovery to judge failures, checkpoints to know which
incidents cast doubt on what was saved, node faults to trip the breaker. Budgets are counted in
:mod:`orchestrator.core.policy.recovery`.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from operator import attrgetter
from typing import cast

from jobs.spec import Action, RunSpec
from monitors.failures import CAUSE_OF, Cause, Failure, FailureClass
from monitors.loss_findings import AWAITED
from monitors.types import FindingKind
from orchestrator.core.model.entities import Incident
from orchestrator.core.model.states import IncidentState
from orchestrator.core.model.vocabulary import Remedy


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """One row: what is done about a finding or a failure."""

    remedy: Remedy
    """The first remedy. A budget that is spent turns it into `stop`."""
    failure_class: FailureClass | None
    """The class it is judged as; None: it is only recorded, and never judged."""
    setting: str | None = None
    """Path in the run spec of the action (act, ask or observe); None: babysit always acts."""
    spoils_checkpoints: bool = False
    """True for an anomaly: what was saved from the onset on cannot be trusted, so the run goes back
    to before it, and no later step counts as clean while the incident is open."""
    suspects_checkpoint: bool = False
    """True if the same failure, again before the first new step after a load, may be the fault of
    the checkpoint that was loaded (FAILURES.md row 22)."""
    blames_node: bool = True
    """False if the failure alone says nothing about the machine: it is held against no node, unless
    the kernel, the driver or the cluster says so."""
    shadow: str | None = None
    """Path in the run spec of the switch by which people do not hear of the incident. One that has
    such a switch is open until a finding says that it is over."""
    trips_breaker: bool = False
    """True if a shared cause (network, storage, babysit itself) shows as this failure on many nodes
    at once: the circuit breaker counts these."""

    @property
    def cause(self) -> Cause | None:
        """The budget that pays; None: nothing is charged."""
        return None if self.failure_class is None else CAUSE_OF[self.failure_class]

    @property
    def only_recorded(self) -> bool:
        """True if nothing but an incident follows."""
        return self.remedy is Remedy.RECORD


def _slowdown(kind: FindingKind) -> Rule:
    return Rule(remedy=Remedy.RECORD, failure_class=None, shadow=f"monitors.{kind}.shadow")


_RECORDED = Rule(remedy=Remedy.RECORD, failure_class=None)
_ANOMALY = Rule(
    remedy=Remedy.ROLL_BACK,
    failure_class=FailureClass.NUMERICS,
    setting="monitors.loss_spike.action",
    spoils_checkpoints=True,
)

FINDINGS: Mapping[FindingKind, Rule] = {
    FindingKind.HANG: Rule(
        remedy=Remedy.RESTART, failure_class=FailureClass.HANG, setting="monitors.hang.action"
    ),
    # The core's own word for a silent run without proof that it cannot go on.
    FindingKind.SLOW: Rule(remedy=Remedy.WAIT, failure_class=None),
    # A gradient that is NaN reaches every weight with the next step, as a lasting spike does.
    FindingKind.NON_FINITE: _ANOMALY,
    FindingKind.LOSS_SPIKE: _ANOMALY,
    # A blip is over when it is noticed; the others are warnings that alone prove nothing.
    FindingKind.LOSS_BLIP: _RECORDED,
    FindingKind.GRAD_NORM_SPIKE: _RECORDED,
    # Nothing failed: the run saves and moves, which costs no budget (`supervision.swaps`).
    FindingKind.STRAGGLER: Rule(
        remedy=Remedy.SWAP_NODE, failure_class=None, setting="monitors.straggler.action"
    ),
    # The run is healthy and only slow: people look, since no restart makes storage faster.
    FindingKind.DATA_STALL: _slowdown(FindingKind.DATA_STALL),
    FindingKind.CHECKPOINT_STALL: _slowdown(FindingKind.CHECKPOINT_STALL),
    FindingKind.STARTUP_STALL: _slowdown(FindingKind.STARTUP_STALL),
    FindingKind.THROUGHPUT_DROP: _slowdown(FindingKind.THROUGHPUT_DROP),
    # What was saved after the last agreement may be wrong; the node of the odd rank is left.
    FindingKind.CORRUPTION: Rule(
        remedy=Remedy.ROLL_BACK,
        failure_class=FailureClass.SILENT_CORRUPTION,
        setting="monitors.corruption.action",
        spoils_checkpoints=True,
    ),
    FindingKind.REPLAY: _RECORDED,  # its verdict goes into the incident that it is about
}
"""Rules for the findings of monitors."""


def _retry(
    failure_class: FailureClass,
    *,
    suspects_checkpoint: bool = False,
    blames_node: bool = True,
    trips_breaker: bool = False,
) -> Rule:
    return Rule(
        remedy=Remedy.RETRY,
        failure_class=failure_class,
        suspects_checkpoint=suspects_checkpoint,
        blames_node=blames_node,
        trips_breaker=trips_breaker,
    )


def _replace(failure_class: FailureClass) -> Rule:
    return Rule(remedy=Remedy.REPLACE_NODE, failure_class=failure_class, trips_breaker=True)


FAILURES: Mapping[FailureClass, Rule] = {
    rule.failure_class: rule
    for rule in (
        # The device is at fault: the node is avoided the first time, and cordoned where a machine
        # says so (FAILURES.md rows 1, 3, 4). All others are tried again before a node is blamed.
        _replace(FailureClass.GPU_HARDWARE),
        _replace(FailureClass.GPU_INTERCONNECT),
        Rule(remedy=Remedy.REPLACE_NODE, failure_class=FailureClass.SILENT_CORRUPTION),
        _retry(FailureClass.NETWORK, trips_breaker=True),
        _retry(FailureClass.STORAGE, trips_breaker=True),
        _retry(FailureClass.WORKER_LOST, trips_breaker=True),
        _retry(FailureClass.COLLECTIVE_TIMEOUT),
        _retry(FailureClass.RENDEZVOUS),
        # A lock of the user's hangs on any node, and a victim says nothing about its own.
        _retry(FailureClass.HANG, blames_node=False),
        _retry(FailureClass.CASCADE, blames_node=False),
        # A state that was saved broken kills every attempt that loads it, in one of these ways.
        _retry(FailureClass.SIGNAL, suspects_checkpoint=True),
        _retry(FailureClass.UNKNOWN, suspects_checkpoint=True, blames_node=False),
        _retry(FailureClass.CHECKPOINT_CORRUPT, suspects_checkpoint=True),
        # A rank that dies of numerics before a step names no onset to go back before.
        _retry(FailureClass.NUMERICS, suspects_checkpoint=True),
        # One retry confirms that it is the code; then the budget of the user is spent.
        _retry(FailureClass.USER_CODE),
        _retry(FailureClass.DATA_LOADER),
        _retry(FailureClass.CUDA_OOM),
        _retry(FailureClass.CUDA_USER_BUG),
        _retry(FailureClass.HOST_OOM),
        _retry(FailureClass.DRIVER_OR_SETUP),
        _retry(FailureClass.PREEMPTION),
    )
    if rule.failure_class is not None
}
"""Rules for the deaths of ranks and agents."""

BUDGETS: Mapping[Cause, str | None] = {
    Cause.INFRASTRUCTURE: "recovery.infrastructure",
    Cause.USER: "recovery.user",
    Cause.ANOMALY: "recovery.anomaly",
    Cause.PREEMPTION: None,
    Cause.OPERATOR: None,
}
"""Path in the run spec of each cause's budget; None: such restarts are free."""

_SLOWDOWNS: frozenset[str] = frozenset(
    kind for kind, rule in FINDINGS.items() if rule.shadow is not None
)
SPOILING: frozenset[str] = frozenset(
    kind for kind, rule in FINDINGS.items() if rule.spoils_checkpoints
)
"""Kinds of incident that cast doubt on every step from their onset on."""


def is_awaited(incident: Incident) -> bool:
    """True while a rise of the loss has time to come back by itself."""
    return incident.state is IncidentState.OPEN and incident.evidence.get("form") == AWAITED


_OWN_SIGNALS = re.compile(
    r"\bSIG(?:SEGV|BUS|ILL|FPE|ABRT|TRAP|SYS)\b|^Fatal Python error: "
    r"|\b(?:Segmentation fault|Bus error|Aborted|Illegal instruction|Floating point exception)\b"
)
"""Signals that a program earns by what it does, also in the words of a shell or of Python's
faulthandler; others are sent to it."""


def is_own_making(failure: Failure) -> bool:
    """True if a program most likely ended itself by a signal, and no machine says otherwise."""
    signal = failure.failure_class is FailureClass.SIGNAL and failure.proof is None
    return signal and _OWN_SIGNALS.search(failure.reason) is not None


def is_hearsay(failure: Failure) -> bool:
    """True for a signal that only an exit code of the command tells of, such as 137."""
    signal = failure.failure_class is FailureClass.SIGNAL and failure.proof is None
    return signal and (failure.code or 0) > 0


def blames_node(failure: Failure) -> bool:
    """True if a failure is held against the node on which it struck."""
    if failure.cause is not Cause.INFRASTRUCTURE:
        return False
    rule = FAILURES[failure.failure_class]
    return failure.proof is not None or (rule.blames_node and not is_own_making(failure))


def action_of(spec: RunSpec, kind: FindingKind) -> Action:
    """The action that the spec wants for a finding; `act` where no setting governs it."""
    setting = FINDINGS[kind].setting
    return Action.ACT if setting is None else cast("Action", attrgetter(setting)(spec))


def is_slowdown(kind: str) -> bool:
    """True for the kind of a slowdown of a whole run."""
    return kind in _SLOWDOWNS


def is_slow(incident: Incident) -> bool:
    """True while the slowdown of an incident lasts."""
    return is_slowdown(incident.kind) and incident.state is not IncidentState.RESOLVED


def in_shadow(spec: RunSpec, kind: FindingKind) -> bool:
    """True if the spec says that people do not hear of such a slowdown."""
    switch = FINDINGS[kind].shadow
    return switch is not None and bool(attrgetter(switch)(spec))


def budget_of(spec: RunSpec, cause: Cause) -> float:
    """Restarts without progress that a cause may spend; infinite for those that are free."""
    setting = BUDGETS[cause]
    return float("inf") if setting is None else float(attrgetter(setting)(spec))


def in_words(remedy: Remedy, onset_step: int | None, to_step: int | None = None) -> str:
    """The remedy of a finding as it is proposed to people: `roll back to before step 40`.

    With the step that would be loaded, it is `roll back to step 30`, or `restart from step 30`.
    """
    if remedy is Remedy.ROLL_BACK and to_step is not None:
        return f"roll back to step {to_step}"
    if remedy is Remedy.RESTART and to_step is not None:
        return f"restart from step {to_step}"
    if remedy is Remedy.ROLL_BACK and onset_step is not None:
        return f"roll back to before step {onset_step}"
    return remedy.value
