"""The remedy table: a row for each kind, and what the rows have to agree on."""

from __future__ import annotations

import pytest

from jobs.spec import Action, RunSpec
from monitors.failures import CAUSE_OF, Cause, FailureClass
from monitors.types import FindingKind
from orchestrator.core.model.vocabulary import Remedy
from orchestrator.core.policy import remedies
from tests.world import spec


@pytest.mark.parametrize("kind", FindingKind)
def test_each_finding_has_a_row(kind: FindingKind) -> None:
    """Else it would be acted on as something that it is not."""
    rule = remedies.FINDINGS[kind]
    # A run waits until it is found to be a hang; a swap is no failure that is judged.
    waits = rule.remedy in {Remedy.WAIT, Remedy.SWAP_NODE}
    assert (rule.only_recorded or waits) == (rule.failure_class is None)
    assert rule.only_recorded or waits or rule.setting, "a person must be able to say `observe`"


@pytest.mark.parametrize("failure_class", FailureClass)
def test_each_failure_class_has_a_row_and_a_cause(failure_class: FailureClass) -> None:
    rule = remedies.FAILURES[failure_class]
    assert rule.failure_class is failure_class
    assert rule.cause is CAUSE_OF[failure_class]
    assert rule.remedy in {Remedy.RETRY, Remedy.REPLACE_NODE}


@pytest.mark.parametrize("cause", Cause)
def test_each_cause_has_a_budget_or_is_free(cause: Cause) -> None:
    free = {Cause.PREEMPTION, Cause.OPERATOR}
    assert (remedies.budget_of(spec(), cause) == float("inf")) == (cause in free)


def test_only_an_anomaly_goes_back_before_its_onset() -> None:
    """A remedy that rolls back and a doubt about what was saved belong together."""
    rolls_back = {k for k, rule in remedies.FINDINGS.items() if rule.remedy is Remedy.ROLL_BACK}
    anomalies = {FindingKind.LOSS_SPIKE, FindingKind.NON_FINITE, FindingKind.CORRUPTION}
    assert rolls_back == remedies.SPOILING == anomalies


def test_a_node_is_only_blamed_for_what_machines_can_cause() -> None:
    for rule in remedies.FAILURES.values():
        if rule.remedy is Remedy.REPLACE_NODE or rule.trips_breaker:
            assert rule.cause is Cause.INFRASTRUCTURE


@pytest.mark.parametrize("action", Action)
def test_each_setting_is_one_of_the_spec(action: Action) -> None:
    """The paths in the table are read from the spec: hangs have a setting of their own."""
    plain = spec().model_dump(mode="json")
    plain["monitors"]["hang"]["action"] = action.value
    changed = RunSpec.model_validate(plain)
    assert remedies.action_of(changed, FindingKind.HANG) is action
    assert remedies.action_of(changed, FindingKind.NON_FINITE) is Action.ACT
    assert remedies.action_of(changed, FindingKind.LOSS_BLIP) is Action.ACT


def test_a_proposal_names_the_step() -> None:
    assert remedies.in_words(Remedy.ROLL_BACK, 12) == "roll back to before step 12"
    assert remedies.in_words(Remedy.RESTART, 12) == "restart"
