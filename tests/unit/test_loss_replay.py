"""The verdict on a spike whose steps were computed again."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from monitors.run_monitors import RunMonitors
from monitors.types import Finding, FindingKind, Sample

ONSET, DETECTED, BACK, NAN = 81, 96, 60, float("nan")
RANKS = 4


def loss(step: int, rank: int) -> float:
    """Noise, the same in each attempt."""
    return 2.0 + 0.01 * ((step * 7919 + 5 * rank) % 13 - 6)


def spiking(step: int, rank: int) -> float:
    return loss(step, rank) + (7.0 if step >= ONSET else 0.0)


def sample(attempt: int, step: int, rank: int, value: float, batch: int | None = None) -> Sample:
    at = {"attempt": attempt, "rank": rank, "step": step, "batch": step if batch is None else batch}
    return Sample.model_validate({**at, "time": 1e9 + step, "loss": value, "seconds": 0.1})


def fed(
    watch: RunMonitors, attempt: int, steps: range, value: Callable[[int, int], float]
) -> list[Finding]:
    found = []
    for step in steps:
        for rank in range(RANKS):
            found += watch.observe([sample(attempt, step, rank, value(step, rank))])
    return found


def after_a_spike() -> tuple[RunMonitors, int]:
    """A watch that has found a spike in attempt 1, and the step at which it did."""
    watch = RunMonitors()
    found = fed(watch, 1, range(1, 110), spiking)
    (spike,) = [each for each in found if each.kind is FindingKind.LOSS_SPIKE]
    assert spike.onset_step == ONSET
    watch.restart(2, BACK)
    return watch, spike.detected_step


def wrong(step_: int, rank_: int | None) -> Callable[[int, int], float]:
    """What comes out the second time where the first was wrong at a step, on one rank or on all."""

    def value(step: int, rank: int) -> float:
        differs = step == step_ and rank_ in {rank, None}
        return loss(step, rank) + (0.001 if differs or step > step_ else 0.0)

    return value


@pytest.mark.parametrize(
    ("value", "outcome", "ranks", "why"),
    [
        # All came back, the spike too: batches and weights make it, whatever the machine.
        (spiking, "data or optimisation", [], "steps came back bit for bit, the spike too"),
        # The weights of all ranks were wrong from a step on: somebody's gradient, perhaps.
        (loss, "hardware", [], "that of step 81 did not"),
        # One of four computed another loss from the same weights.
        (wrong(75, 2), "hardware", [2], "that of step 75 did not"),
        # A sum in another order from the second step on: nothing repeats, so nothing is proven.
        (wrong(BACK + 2, None), "unknown", [], "did not come back bit for bit"),
    ],
)
def test_the_verdict(
    value: Callable[[int, int], float], outcome: str, ranks: list[int], why: str
) -> None:
    watch, detected = after_a_spike()
    found = fed(watch, 2, range(BACK + 1, detected + 1), value)
    (replay,) = [each for each in found if each.kind is FindingKind.REPLAY]
    assert (replay.evidence["outcome"], replay.evidence["ranks"]) == (outcome, ranks)
    assert (replay.evidence["of_attempt"], replay.detected_step) == (1, detected)
    assert replay.evidence["of_kind"] == "loss_spike"
    assert why in replay.reason


def test_a_spike_whose_own_steps_were_not_compared_is_not_said_to_have_come_back() -> None:
    """Their samples may be lost; or the script reports each tenth step from where it resumed."""
    watch, detected = after_a_spike()
    steps = [*range(BACK + 1, ONSET), detected + 1]
    found = [
        each
        for step in steps
        for rank in range(RANKS)
        for each in watch.observe([sample(2, step, rank, loss(step, rank))])
    ]
    (replay,) = [each for each in found if each.kind is FindingKind.REPLAY]
    assert replay.evidence["outcome"] == "unknown"
    assert "20 steps came back bit for bit; that of the spike is not known" in replay.reason


def test_a_spike_that_comes_again_is_judged_before_it_is_found_again() -> None:
    """Its finding rolls the run back once more, and the verdict would never come."""
    watch, _ = after_a_spike()
    kinds = [each.kind for each in fed(watch, 2, range(BACK + 1, 110), spiking)]
    assert kinds == [FindingKind.REPLAY, FindingKind.LOSS_SPIKE]


def test_a_loss_that_is_not_a_number_comes_back_as_one() -> None:
    watch = RunMonitors()
    fed(watch, 1, range(1, 40), lambda step, rank: NAN if step >= 30 else loss(step, rank))
    watch.restart(2, 10)
    found = fed(watch, 2, range(11, 40), lambda step, rank: NAN if step >= 30 else loss(step, rank))
    assert [each.evidence["outcome"] for each in found if each.kind is FindingKind.REPLAY] == [
        "data or optimisation"
    ]


def test_other_batches_say_nothing() -> None:
    """They are skipped where a spike has come twice."""
    watch, detected = after_a_spike()
    found = []
    for step in range(BACK + 1, detected + 1):
        batch = step + 50 if step >= ONSET else step
        found += watch.observe([sample(2, step, 0, loss(step, 0), batch)])
    assert not found


@pytest.mark.parametrize("back", [ONSET, 0], ids=["not before it", "a few steps are left"])
def test_what_is_not_computed_again_or_hardly_says_nothing(back: int) -> None:
    """From the onset on there is no step before the spike to go by."""
    watch = RunMonitors()
    fed(watch, 1, range(1, 110), spiking)
    watch.restart(2, back)
    first = back + 1 if back else ONSET - 3
    found = fed(watch, 2, range(first, ONSET + 1), spiking)
    assert not [each for each in found if each.kind is FindingKind.REPLAY]


def test_an_attempt_without_a_spike_is_not_judged() -> None:
    watch = RunMonitors()
    fed(watch, 1, range(1, 110), loss)
    watch.restart(2, BACK)
    assert not fed(watch, 2, range(BACK + 1, 140), loss)
