"""What the spec and the other ranks say about the death of a rank."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from jobs.spec import Recovery
from monitors.exits import classify
from monitors.failures import Cause, Failure, FailureClass
from orchestrator.core.model.states import RunState
from orchestrator.core.policy.exits import by_ended_peers, by_exit_code
from tests.world import World, spec, trained


def failure(code: int, log: str = "config error\n") -> Failure:
    found = classify(log, code)
    assert found is not None
    return found


# Exit code, what the spec says of codes, whose budget pays, whether the run ends at once.
CODES = [
    (2, {}, Cause.USER, False),
    (2, {"stop_on": [2, 64]}, Cause.USER, True),
    (75, {"retry_on": [75]}, Cause.INFRASTRUCTURE, False),
    (76, {"retry_on": [75]}, Cause.USER, False),
    (255, {}, Cause.USER, False),
    (137, {}, Cause.INFRASTRUCTURE, False),  # 128 + SIGKILL
    (137, {"stop_on": [137]}, Cause.USER, True),
    (-9, {"stop_on": [9]}, Cause.INFRASTRUCTURE, False),  # a signal is not an exit code
]


@pytest.mark.parametrize(("code", "codes", "cause", "final"), CODES)
def test_the_spec_says_what_exit_codes_mean(
    code: int, codes: dict[str, list[int]], cause: Cause, final: bool
) -> None:
    judged = by_exit_code(spec(recovery=codes), code, failure(code))
    assert (judged.cause, judged.final) == (cause, final)


def test_a_code_has_one_meaning() -> None:
    with pytest.raises(ValidationError, match="3 is in both stop_on and retry_on"):
        Recovery(stop_on=[1, 3], retry_on=[3])


def test_a_final_failure_is_not_tried_again() -> None:
    world = trained(15, recovery={"stop_on": [2]})
    world.die(1, by_exit_code(world.run().spec, 2, failure(2)))
    world.settle()
    assert world.run().state is RunState.FAILED
    assert world.attempt().number == 1
    assert "recovery.stop_on" in world.run().reason


LOST = Failure(
    failure_class=FailureClass.CASCADE, reason="Connection closed by peer", signature="c"
)
OWN = Failure(failure_class=FailureClass.USER_CODE, reason="KeyError: 'x'", signature="k")


def test_a_rank_that_lost_its_peer_died_of_the_end_of_that_peer() -> None:
    judged = by_ended_peers(LOST, frozenset({0}), 20)
    assert judged.failure_class is FailureClass.USER_CODE
    assert judged.reason.startswith("rank 0 had ended with exit code 0 while other ranks went on")
    assert LOST.reason in judged.reason
    assert by_ended_peers(LOST, frozenset(), 20) is LOST
    assert by_ended_peers(OWN, frozenset({0}), 20) is OWN


@pytest.mark.parametrize(("code", "stops"), [(137, True), (-9, False)])
def test_a_shells_word_for_a_signal_is_not_believed_for_ever(code: int, stops: bool) -> None:
    """`exit 137` behind a wrapper looks like SIGKILL; at one step again and again it is not."""
    world = trained(15)
    for _ in range(5):
        if world.run().state is RunState.FAILED:
            break
        world.die(1, failure(code, "step 15\n"), last_step=15)
        world.settle()
        world.advance(60)
        world.settle()
    assert (world.run().state is RunState.FAILED) == stops
    assert world.attempt().number == (4 if stops else 6)


def test_a_shells_word_for_a_signal_is_believed_at_one_step_and_another() -> None:
    world = trained(15)
    for step in (15, 12, 15, 13, 15, 12):
        world.die(1, failure(137, "step 15\n"), last_step=step)
        world.settle()
        world.advance(60)
        world.settle()
    assert world.run().state is not RunState.FAILED


def test_nobody_knows_the_step_of_a_script_that_reports_nothing() -> None:
    world = World(joins=False)
    world.submit()
    world.settle()
    for _ in range(6):
        world.advance(3600)
        world.die(1, failure(143, "working\n"))
        world.settle()
        world.advance(60)
        world.settle()
    assert world.run().state is not RunState.FAILED
