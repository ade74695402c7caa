"""The metrics of /metrics: their page, their text, and the numbers of live runs and nodes."""

from __future__ import annotations

import asyncio
import math
import re
import subprocess
from pathlib import Path
from typing import Any, ClassVar

import pytest
from prometheus_client.parser import text_string_to_metric_families

from jobs.clock import ManualClock
from jobs.events import RankSamples, Report
from orchestrator.controller.attention import Lag
from orchestrator.controller.database_trouble import DatabaseTrouble
from orchestrator.controller.live_numbers import STEP_BOUNDS, LiveNumbers, Newest
from orchestrator.core.model.state import State
from orchestrator.core.model.states import RunState
from orchestrator.database.memory_store import MemoryStore
from orchestrator.server.context import Context
from orchestrator.server.metrics.catalogue import METRICS
from orchestrator.server.metrics.exposition import Page, labels_text
from orchestrator.server.metrics.page import page
from orchestrator.server.metrics.routes import Metrics
from orchestrator.server.metrics.step_times import StepText
from orchestrator.settings import Settings
from tests.plane import START, finished_run
from tests.prometheus import find_program

ROOT = Path(__file__).parents[2]
"""Labels that a scrape may hold once for each run, node or queue; all others are words of ours."""
BOUNDED = {"run", "run_id", "node", "queue", "project"}
WORDS = {
    "bucket",
    "cause",
    "channel",
    "kind",
    "phase",
    "reason",
    "result",
    "severity",
    "source",
    "state",
}
NAMED_BY_SCRIPTS = {"name"}
"""Bounded by the ring: a rank may have 16 names."""


def samples(rank: int, *steps: int, **columns: Any) -> RankSamples:
    count = len(steps)
    return RankSamples(
        **{
            "rank": rank,
            "step": list(steps),
            "batch": list(steps),
            "time": [100.0 + step for step in steps],
            "loss": [None] * count,
            "grad_norm": [0.0] * count,
            "tokens": [0.0] * count,
            "seconds": [1.5] * count,
            "blocked_seconds": [0.0] * count,
            "learning_rate": [0.0] * count,
            **columns,
        }
    )


def test_the_page_is_as_generated() -> None:
    text = (ROOT / "docs" / "metrics.md").read_text()
    assert text == page(), "python -m orchestrator.server.metrics.page > docs/metrics.md"


def test_names_and_labels_are_as_prometheus_wants_them() -> None:
    for name, metric in METRICS.items():
        assert re.fullmatch(r"[a-z][a-z_]+", name)
        assert name.endswith("_total") == (metric.kind == "counter")
        assert metric.kind != "histogram" or name.endswith("_seconds")
        assert metric.text.endswith(".")
        assert set(metric.labels) <= BOUNDED | WORDS | NAMED_BY_SCRIPTS | {"version"}
        assert "rank" not in metric.labels


@pytest.mark.parametrize("value", ['a"b', "a\\b", "a\nb", "50% {x}", "ä", ""])
def test_labels_are_escaped(value: str) -> None:
    numbers, text = LiveNumbers(), Page()
    numbers.take("r", value, Report(sequence=1, attempt=1, samples=(samples(0, 1),)))
    text.header("babysit_step_seconds")
    text.lines(StepText().lines(numbers))
    text.series("babysit_queue_used_gpus", [(labels_text(["queue"], [value]), 8)])
    steps, gpus = text_string_to_metric_families(text.encode().decode())
    assert {sample.labels["node"] for sample in steps.samples} == {value}
    assert gpus.samples[0].labels == {"queue": value}


@pytest.mark.parametrize("value", [0, 3, 0.1, 1e-9, 1e300, math.inf, -math.inf, math.nan])
def test_values_are_read_back(value: float) -> None:
    text = Page()
    text.one("babysit_queue_lag_seconds", value)
    (family,) = text_string_to_metric_families(text.encode().decode())
    assert family.samples[0].value == pytest.approx(value, nan_ok=True)


def test_step_times_are_a_histogram_of_all_ranks_on_a_node() -> None:
    numbers, nodes = LiveNumbers(), StepText()
    first = (samples(0, 1, 2, seconds=[0.05, 7.0]), samples(1, 1, 2, seconds=[0.0, 99.0]))
    for sequence, ranks in enumerate((first, (samples(0, 3, seconds=[7.0]),))):
        numbers.take("r", "n1", Report(sequence=sequence, attempt=1, samples=ranks))
        text = Page()
        text.header("babysit_step_seconds")
        text.lines(nodes.lines(numbers))
    (family,) = text_string_to_metric_families(text.encode().decode())
    found = {s.labels.get("le", s.name.rpartition("_")[2]): s.value for s in family.samples}
    assert list(found)[: len(STEP_BOUNDS)] == [f"{bound:g}" for bound in STEP_BOUNDS]
    # Four steps: the one of which the start is not known does not count.
    assert (found["0.1"], found["5"], found["10"], found["30"], found["+Inf"]) == (1, 1, 3, 3, 4)
    assert (found["count"], found["sum"]) == (4, pytest.approx(113.05))
    numbers.forget("r")
    assert bytes(nodes.lines(numbers)) == b""


def test_lines_that_are_being_sent_do_not_change() -> None:
    numbers, nodes = LiveNumbers(), StepText()
    numbers.take("r", "n1", Report(sequence=1, attempt=1, samples=(samples(0, 1),)))
    being_sent = nodes.lines(numbers)[10:]
    before = bytes(being_sent)
    numbers.take("r", "n1", Report(sequence=2, attempt=1, samples=(samples(0, 2),)))
    assert bytes(nodes.lines(numbers)[10:]) != before
    assert bytes(being_sent) == before


def test_the_lowest_rank_with_a_loss_speaks_for_a_run() -> None:
    newest = Newest()
    newest.take(1, [samples(0, 5)])
    assert (newest.step, newest.loss) == (5, None)
    newest.take(1, [samples(3, 5, loss=[2.5], grad_norm=[1.25])])
    newest.take(1, [samples(0, 6)])
    newest.take(1, [samples(7, 6, loss=[9.0])])
    assert (newest.step, newest.loss, newest.grad_norm) == (5, 2.5, 1.25)
    newest.take(1, [samples(3, 6, 7, loss=[2.4, math.nan])])
    assert newest.step == 7
    assert newest.loss is not None
    assert math.isnan(newest.loss)
    newest.take(1, [samples(3, 8, loss=[math.nan])])
    assert newest.step == 8, "a loss that has become NaN is a loss"


def test_a_new_attempt_may_speak_through_another_rank_and_an_old_one_is_ignored() -> None:
    newest = Newest()
    newest.take(1, [samples(0, 50, loss=[2.0])])
    newest.take(2, [samples(4, 41, loss=[2.1])])
    newest.take(1, [samples(0, 51, loss=[1.9])])
    assert (newest.attempt, newest.step, newest.loss) == (2, 41, 2.1)


def test_tokens_of_all_ranks_add_up_and_stored_samples_are_not_counted_again() -> None:
    numbers = LiveNumbers()
    numbers.rebuild("r", [(1, samples(0, 9, loss=[3.0], tokens=[100.0]))])
    assert (numbers.runs["r"].step, numbers.runs["r"].tokens) == (9, 0)
    ranks = tuple(samples(rank, 10, 11, tokens=[100.0, 50.0]) for rank in (0, 1))
    numbers.take("r", "n1", Report(sequence=1, attempt=1, samples=ranks))
    assert numbers.runs["r"].tokens == 300


def test_named_metrics_keep_their_newest_finite_value() -> None:
    newest = Newest()
    newest.take(1, [samples(0, 1, 2, metrics={"accuracy": [0.5, math.nan], "x": [math.nan] * 2})])
    newest.take(1, [samples(1, 2, metrics={"accuracy": [0.1]})])
    newest.take(1, [samples(0, 3, metrics={"reward": [7.0]})])
    assert newest.metrics == {"accuracy": 0.5, "reward": 7.0}


async def test_a_server_that_does_not_lead_says_nothing_about_the_fleet() -> None:
    class Plane:
        store = MemoryStore()
        state, numbers, lag, database = State(), LiveNumbers(), Lag(), DatabaseTrouble()
        notices: ClassVar[dict[tuple[str, str], int]] = {("log", "delivered"): 2}
        set_aside: ClassVar[dict[str, int]] = {}
        is_leader = runs_here = True

    plane: Any = Plane()
    found = Metrics(Context(plane, ManualClock(START), Settings(home=Path("/nowhere"))))

    async def names() -> set[str]:
        return set(
            re.findall(r"^# TYPE (\S+)", (await found.scrape()).encode().decode(), re.MULTILINE)
        )

    leading = await names()
    plane.is_leader = False
    each = {name for name, metric in METRICS.items() if metric.each}
    assert await names() == each - {"babysit_lease_age_seconds"}
    assert leading == set(METRICS) - {"babysit_lease_age_seconds"}


def test_promtool_finds_nothing_to_say_about_a_scrape() -> None:
    class Plane:
        store = MemoryStore()
        state, numbers, lag, database = State(), LiveNumbers(), Lag(), DatabaseTrouble()
        notices: ClassVar[dict[tuple[str, str], int]] = {("log", "delivered"): 2}
        set_aside: ClassVar[dict[str, int]] = {"rank_exited": 1}
        is_leader = runs_here = True

    plane: Any = Plane()
    state = finished_run(state=RunState.RUNNING, ended_at=None)
    plane.state.put(state)
    ranks = (samples(0, 1, loss=[math.nan], metrics={"accuracy": [0.5]}),)
    plane.numbers.take(state.id, "node-1", Report(sequence=1, attempt=2, samples=ranks))
    found = Metrics(Context(plane, ManualClock(START), Settings(home=Path("/nowhere"))))
    text = asyncio.run(found.scrape()).encode()
    done = subprocess.run(
        [find_program("promtool"), "check", "metrics"], input=text, capture_output=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
