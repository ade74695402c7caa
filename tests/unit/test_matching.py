"""The partial matcher that tests of the core use for instructions."""

from __future__ import annotations

import pytest

from jobs.commands import StartAttempt, StopAttempt
from monitors.types import Severity
from orchestrator.core.messages.instructions import Notify, SendCommand
from tests.matching import command, match


def sent(worker: str, grace: float) -> SendCommand:
    order = StopAttempt(id="i", attempt=2, grace_seconds=grace, reason="drained")
    return SendCommand(id="i", cause="e", run="r", reason="x", worker=worker, command=order)


def test_only_the_named_fields_count() -> None:
    carried = [sent("w1", 30.0)]
    assert command(StopAttempt, grace_seconds=30.0) in carried
    assert command(StopAttempt, worker="w1") in carried
    assert command(StopAttempt, worker="w2") not in carried
    assert command(StopAttempt, attempt=3) not in carried
    assert command(StartAttempt) not in carried
    assert match(Notify) not in carried


def test_a_field_that_the_kind_does_not_have_is_an_error() -> None:
    """It could never match, so that every `not in` would hold."""
    with pytest.raises(TypeError, match="Notify has no field severty"):
        match(Notify, severty=Severity.CRITICAL)
