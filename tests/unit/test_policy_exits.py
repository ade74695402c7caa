"""What the spec and the other ranks say about the death of a rank."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from jobs.spec import Recovery
from monitors.exits import classify
from monitors.failures import Cause, Failure, FailureClass
from orchestrator.core.model.states import RunState
from orchestrator.core.policy.exits import by_ended_peers, by_exit_code
from tests.world import spec, trained


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
