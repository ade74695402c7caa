"""The action that a label of a collected log names, derived from the one remedy table.

People labelled the logs with what they would do: retry, replace the node, stop, roll back. babysit
has no such word for a failure; the row of its class, its budget and the advice of a rule together
say the same.
"""

from __future__ import annotations

from monitors.failures import Advice, Cause, Failure, FailureClass
from orchestrator.core.model.vocabulary import Remedy
from orchestrator.core.policy import remedies


def advice_of(failure: Failure) -> Advice:
    """The action for a failure: that of the rule which named it, or else that of its class.

    A failure at the user's cost is `stop`: one retry confirms it, and then the run ends.
    """
    if failure.advice is not None:
        return failure.advice
    return Advice.STOP if failure.cause is Cause.USER else advice_of_class(failure.failure_class)


def advice_of_class(failure_class: FailureClass) -> Advice:
    """The action for a class by its row in the table."""
    rule = remedies.FAILURES[failure_class]
    if rule.cause is Cause.USER:
        return Advice.STOP
    if rule.remedy is Remedy.REPLACE_NODE:
        return Advice.REPLACE_NODE
    # A corrupt checkpoint is passed over at the next load, and an anomaly goes back before its
    # onset: to people, both are a rollback.
    if rule.cause is Cause.ANOMALY or failure_class is FailureClass.CHECKPOINT_CORRUPT:
        return Advice.ROLLBACK
    return Advice.RETRY
