"""The step at which a drill strikes: the monitor that is to find the fault must be warm."""

from __future__ import annotations

import random

import pytest

from monitors.loss import LossMonitor, LossSettings
from monitors.types import FindingKind, Sample
from orchestrator.cli.drill import first_step
from orchestrator.judgement.faults import FAULTS
from tests.world import spec

GUESS = 5.5
"""Loss of a model that has lost what it has learnt, as the drill's flipped bit leaves it."""


def losses(steps: int, seed: int) -> list[float]:
    """A loss that falls from that of a guess, quickly at first, with noise."""
    noise = random.Random(seed)
    return [2.5 + 3.0 * 0.93**step + noise.gauss(0.0, 0.2) for step in range(steps)]


def found(calm: list[float]) -> bool:
    monitor = LossMonitor(LossSettings())
    findings = [
        finding
        for step, loss in enumerate([*calm, *[GUESS] * 30], 1)
        for finding in monitor.observe(
            Sample(attempt=1, rank=0, step=step, batch=step, time=float(step), loss=loss)
        )
    ]
    return any(finding.kind is FindingKind.LOSS_SPIKE for finding in findings)


@pytest.mark.parametrize("seed", range(20))
def test_a_strike_at_that_step_is_found_whatever_the_noise(seed: int) -> None:
    step = first_step(FAULTS["spike"], spec())
    assert found(losses(step - 1, seed))


def test_a_strike_while_the_first_fall_is_in_the_window_may_be_missed() -> None:
    assert not all(found(losses(32, seed)) for seed in range(20))


def test_a_checkpoint_is_destroyed_only_once_an_older_one_is_good() -> None:
    saves = {"directory": "/checkpoints", "every_steps": 20, "good_after_steps": 10}
    assert first_step(FAULTS["corrupt"], spec(checkpoint=saves)) == 50


def test_the_step_follows_the_settings_of_the_run() -> None:
    assert first_step(FAULTS["spike"], spec()) == 84
    slower = spec(monitors={"loss_spike": {"warmup_steps": 200}})
    assert first_step(FAULTS["spike"], slower) == 264
    own = {"spike", "corrupt"}
    assert {first_step(fault, spec()) for name, fault in FAULTS.items() if name not in own} == {0}
