"""Named metrics and announced changes, from the script to the columns of the agent."""

from __future__ import annotations

import json
import logging
import math
from pathlib import Path

import pytest

import babysit
from babysit.ring import METRICS, RingReader
from babysit.wire import NOTES_FILE, RING_FILE
from jobs.agent.note_events import Author, translate
from jobs.agent.outbox import _joined
from jobs.agent.rank_reader import RankReader
from jobs.events import ChangeAnnounced, RankSamples
from tests.unit.test_babysit_signs import agent  # noqa: F401  # a fixture

numpy = pytest.importorskip("numpy")


@pytest.fixture
def run(agent: Path) -> babysit.run.Run:  # noqa: F811
    return babysit.init()


def read(directory: Path) -> RankSamples:
    samples = RankReader(0, directory, 0.0).samples()
    assert samples is not None
    return samples


def test_metrics_and_unknown_keywords_arrive_by_name(run: babysit.run.Run, agent: Path) -> None:  # noqa: F811
    run.report(1.5, step=1)
    run.report(loss=1.4, step=2, metrics={"accuracy": 0.9}, reward=numpy.float32(3.0))
    run.report(loss=1.3, step=3, metrics={"accuracy": None, "größe": 2}, lr_head=0.1)
    found = read(agent)
    assert found.loss == [1.5, 1.4, 1.3]
    nan = pytest.approx(math.nan, nan_ok=True)
    assert found.metrics == {
        "accuracy": [nan, 0.9, nan],
        "reward": [nan, 3.0, nan],
        "größe": [nan, nan, 2.0],
        "lr_head": [nan, nan, 0.1],
    }


@pytest.mark.parametrize(
    "metrics", [{"a": "many"}, {"a": object()}, 7, ["a"], {None: 1.0}, {"": 1.0}, {"a" * 500: 1.0}]
)
def test_a_strange_metric_never_stops_training(
    run: babysit.run.Run,
    agent: Path,  # noqa: F811
    metrics: object,
) -> None:
    run.report(loss=1.0, step=1, metrics=metrics, fine=2.0)
    found = read(agent)
    assert found.loss == [1.0]
    assert found.metrics["fine"] == [2.0]


def test_names_beyond_the_places_are_left_out_and_named(
    run: babysit.run.Run,
    agent: Path,  # noqa: F811
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.WARNING, "babysit"):
        for step in (1, 2):
            run.report(loss=1.0, step=step, metrics={f"m{i}": float(i) for i in range(METRICS + 2)})
    assert list(read(agent).metrics) == [f"m{i}" for i in range(METRICS)]
    left_out = [f"m{METRICS}", f"m{METRICS + 1}"]
    assert [name for name in left_out if f"the metric {name!r} is left out" in caplog.text] == (
        left_out
    )
    assert len(caplog.records) == 2


def test_a_report_without_metrics_writes_none(run: babysit.run.Run, agent: Path) -> None:  # noqa: F811
    run.report(loss=1.0, step=1)
    assert read(agent).metrics == {}
    assert read(agent).expected_until == []
    assert RingReader(agent / RING_FILE).names() == []


def test_an_announced_change_is_in_the_reports_of_its_steps(
    run: babysit.run.Run,
    agent: Path,  # noqa: F811
) -> None:
    for step, _ in run.steps(range(8), total=8):
        if step == 4:
            run.expect("new data mix", steps=3)
        run.report(loss=1.0)
    run.expect("nonsense", steps="soon")  # never raises
    assert read(agent).expected_until == [0, 0, 0, 6, 6, 6, 0, 0]
    lines = (agent / NOTES_FILE).read_text().splitlines()
    note = next(line for line in lines if json.loads(line)["kind"] == "change")
    fields = {
        "id": "01J",
        "at": "2026-01-01T00:00:00Z",
        "run": "r",
        "worker": "w",
        "attempt": 1,
    }
    event = translate(note, Author(0, 1), fields)
    assert isinstance(event, ChangeAnnounced)
    assert (event.change, event.step, event.until_step) == ("new data mix", 3, 6)


class _Lost:
    """A number on a GPU that was lost: neither its value nor its text can be had."""

    def __float__(self) -> float:
        raise RuntimeError("CUDA error: device-side assert triggered")

    __int__ = __repr__ = __float__  # type: ignore[assignment]


def test_a_value_that_cannot_be_shown_is_left_out(
    run: babysit.run.Run,
    agent: Path,  # noqa: F811
    caplog: pytest.LogCaptureFixture,
) -> None:
    run.report(1.0, step=1)
    with caplog.at_level(logging.WARNING):
        run.report(_Lost(), step=_Lost())
        run.expect("nonsense", steps=_Lost())
    assert read(agent).step == [1, 1]
    assert "step=a _Lost is not a step" in caplog.text
    assert "expect(steps=a _Lost) is left out" in caplog.text


class _MuteError(Exception):
    """An error, or a name, of which not even the text can be had."""

    def __str__(self) -> str:
        raise RuntimeError("no text")

    __repr__ = __str__


class _Unsayable:
    def __float__(self) -> float:
        raise _MuteError

    __int__ = __float__  # type: ignore[assignment]


def test_errors_and_names_without_a_text_end_no_training(
    run: babysit.run.Run,
    agent: Path,  # noqa: F811
) -> None:
    run.report(1.0, step=1)
    run.report(_Unsayable(), step=_Unsayable(), metrics={_MuteError(): _Unsayable(), "b": 2.0})
    run.report(1.0, step=3, metrics={_MuteError(): 1.0})
    run.expect(_MuteError(), steps=_Unsayable())  # type: ignore[arg-type]
    assert read(agent).step == [1, 1, 3]


def test_columns_of_two_reads_are_joined_with_gaps() -> None:
    def part(step: int, **fields: object) -> RankSamples:
        return RankSamples.model_validate(
            {
                "rank": 0,
                "step": [step],
                "batch": [step],
                "time": [1.0],
                "loss": [1.0],
                "grad_norm": [1.0],
                "tokens": [1.0],
                "seconds": [1.0],
                "blocked_seconds": [0.0],
                "learning_rate": [0.1],
                **fields,
            }
        )

    whole = _joined(
        _joined(part(1, metrics={"a": [1.0]}), part(2)),
        part(3, metrics={"b": [3.0]}, expected_until=[9]),
    )
    nan = pytest.approx(math.nan, nan_ok=True)
    assert whole.step == [1, 2, 3]
    assert whole.metrics == {"a": [1.0, nan, nan], "b": [nan, nan, 3.0]}
    assert whole.expected_until == [0, 0, 9]
