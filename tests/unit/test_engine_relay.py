"""Reports of an engine's processes, from the driver's thread to the columns of the agent."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

import babysit
from babysit.integrations.engine_relay import HOLD_SECONDS, EngineRelay
from babysit.integrations.relayed_steps import WAIT_SECONDS, Part, RelayedSteps
from babysit.wire import NOTES_FILE
from jobs.agent.note_events import Author, translate
from jobs.agent.rank_reader import RankReader
from jobs.engine_events import EngineFailed, EngineNamed, EngineResumed, EngineSaved
from jobs.events import RankSamples
from monitors.failures import FailureClass
from tests.unit.test_babysit_signs import agent  # noqa: F401  # a fixture

FIELDS = {"id": "01J", "at": "2026-01-01T00:00:00Z", "run": "r", "worker": "w", "attempt": 1}


def part(rank: int, step: int, loss: float | None = 1.0, **fields: Any) -> Part:
    return Part(rank=rank, world_size=2, step=step, time=100.0 + step, loss=loss, **fields)


@pytest.fixture
def relay(agent: Path) -> EngineRelay:  # noqa: F811
    return EngineRelay(babysit.init(), "ray")


def samples(agent: Path) -> RankSamples:  # noqa: F811
    found = RankReader(0, agent, 0.0).samples()
    assert found is not None
    return found


def events(agent: Path) -> list[Any]:  # noqa: F811
    lines = (agent / NOTES_FILE).read_text().splitlines()
    return [translate(line, Author(0, 1), FIELDS) for line in lines]


def test_a_step_is_the_mean_of_the_processes_and_nan_if_one_is() -> None:
    steps = RelayedSteps()
    steps.add(part(0, 1, 1.0, tokens=5.0, grad_norm=2.0), 0.0)
    assert steps.take(0.0) == []
    steps.add(part(1, 1, 3.0, tokens=6.0, grad_norm=1.0), 0.1)
    steps.add(part(0, 2, 1.0), 0.2)
    steps.add(part(1, 2, math.nan), 0.2)
    first, second = steps.take(0.2)
    assert (first.step, first.loss, first.tokens, first.grad_norm) == (1, 2.0, 11.0, 2.0)
    assert second.loss is not None
    assert math.isnan(second.loss)


def test_a_process_that_never_reports_delays_and_loses_nothing() -> None:
    steps = RelayedSteps()
    for step in range(1, 4):
        steps.add(part(0, step), 0.0)
    assert steps.take(WAIT_SECONDS / 2) == []
    assert [p.step for p in steps.take(WAIT_SECONDS)] == [1, 2, 3]


def test_a_script_that_counts_from_zero_has_a_first_step_of_one() -> None:
    steps = RelayedSteps()
    for step in range(3):
        steps.add(part(0, step), 0.0)
    assert [p.step for p in steps.take(0.0, everything=True)] == [1, 2, 3]


def test_steps_that_are_computed_again_are_told_once(relay: EngineRelay, agent: Path) -> None:  # noqa: F811
    for step in range(1, 8):
        for rank in (0, 1):
            relay.step(part(rank, step), 0.0, by_process=True)
    relay.failed([{"rank": 1, "node": "10.0.0.5", "lost": "process", "text": "OOM killer"}], 0.0)
    for step in range(5, 10):
        for rank in (0, 1):
            relay.step(part(rank, step, 2.0), 1.0, by_process=True)
    relay.tick(1.0)
    found = samples(agent)
    assert found.step == list(range(1, 10))
    assert found.loss == [1.0] * 7 + [2.0] * 2
    _, named, failed, resumed = events(agent)
    assert isinstance(named, EngineNamed)
    assert isinstance(failed, EngineFailed)
    assert isinstance(resumed, EngineResumed)
    assert (failed.step, resumed.step) == (7, 5)
    (failure,) = failed.failures
    # The engine's list of what may have killed a process is not searched for words.
    assert (failure.failure.failure_class, failure.node) == (FailureClass.SIGNAL, "10.0.0.5")


def test_metrics_of_the_engine_are_steps_only_if_no_process_reports(
    relay: EngineRelay,
    agent: Path,  # noqa: F811
) -> None:
    relay.step(part(0, 10), 0.0, by_process=False)
    relay.step(part(0, 1), 0.1, by_process=True)
    relay.tick(HOLD_SECONDS)
    assert samples(agent).step == [1]


def test_metrics_of_the_engine_alone_are_steps(relay: EngineRelay, agent: Path) -> None:  # noqa: F811
    for rank in (0, 1):
        relay.step(part(rank, 10, metrics={"accuracy": rank}), 0.0, by_process=False)
    relay.tick(HOLD_SECONDS / 2)
    relay.tick(HOLD_SECONDS)
    found = samples(agent)
    assert (found.step, found.metrics) == ([10], {"accuracy": [0.5]})


def test_a_checkpoint_names_those_that_are_gone(relay: EngineRelay, agent: Path) -> None:  # noqa: F811
    relay.checkpoint(10, "store/a", 5, [])
    relay.checkpoint(20, "store/b", 6, [10])
    *_, saved = events(agent)
    assert isinstance(saved, EngineSaved)
    assert (saved.step, saved.path, saved.bytes, saved.gone) == (20, "store/b", 6, (10,))
    assert dict(relay.saved) == {20: "store/b"}


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("ValueError: bad data", FailureClass.USER_CODE),
        ("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB", "cuda_oom"),
        ("RuntimeError: NCCL error: unhandled system error", FailureClass.NETWORK),
        ("", FailureClass.USER_CODE),
    ],
)
def test_an_exception_has_the_class_of_its_words(
    relay: EngineRelay,
    agent: Path,  # noqa: F811
    text: str,
    kind: str,
) -> None:
    relay.failed([{"rank": 0, "node": "", "lost": "", "text": text}], 0.0)
    failed = events(agent)[-1]
    assert isinstance(failed, EngineFailed)
    assert failed.failures[0].failure.failure_class == kind
