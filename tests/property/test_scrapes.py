"""What a scrape keeps from the last one never shows: each page is as one made from nothing."""

from __future__ import annotations

import dataclasses
import datetime as dt
import itertools
import math
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from babysit.wire import Tier
from jobs.events import RankSamples, Report
from monitors.types import FindingKind, Severity
from orchestrator.controller.live_numbers import STEP_BOUNDS, LiveNumbers
from orchestrator.core.model.entities import Checkpoint, Incident, Node, Run
from orchestrator.core.model.state import State
from orchestrator.core.model.states import NodeState, RunState, Trust
from orchestrator.core.model.time_ledger import Bucket, switch
from orchestrator.server.metrics.exposition import Page
from orchestrator.server.metrics.scrape import Memory, Scrape
from tests.plane import START, finished_run

RUNS = {"1": "a", "2": 'b"\\%s', "3": "c"}
"""Names by id."""
NODES = ("n1", "n2", "a node with a long name", "n4")
SECONDS = st.one_of(
    st.sampled_from([0.0, *STEP_BOUNDS, 1e15, math.inf]),
    st.floats(0, 1e5),
    st.integers(0, 10**7).map(float),
)
NUMBERS = st.one_of(st.floats(), st.integers(-5, 5).map(float))
REPORTS = st.tuples(
    st.just("report"),
    st.sampled_from(list(RUNS)),
    st.sampled_from(NODES),
    st.lists(SECONDS, min_size=1, max_size=30),
    NUMBERS,
)
CHANGES = st.one_of(
    st.tuples(st.just("run"), st.sampled_from(list(RUNS)), st.sampled_from(list(Bucket))),
    st.tuples(st.just("end"), st.sampled_from(list(RUNS))),
    st.tuples(st.just("checkpoint"), st.sampled_from(list(RUNS)), st.sampled_from(list(Trust))),
    st.tuples(
        st.just("incident"),
        st.sampled_from(list(RUNS)),
        st.sampled_from([FindingKind.HANG, FindingKind.SLOW]),
    ),
    st.tuples(st.just("node"), st.sampled_from(NODES), st.sampled_from(list(NodeState))),
)
STEPS = st.lists(st.lists(st.one_of(REPORTS, REPORTS, CHANGES), max_size=6), max_size=6)


class Fleet:
    """A state and live numbers, changed as an operation says."""

    def __init__(self) -> None:
        self.state = State(Node(id=node) for node in NODES)
        self.numbers = LiveNumbers()
        self._count = itertools.count(1)

    def report(self, run: str, node: str, seconds: list[float], number: float) -> None:
        size = len(seconds)
        ranks = RankSamples(
            rank=0,
            step=list(range(size)),
            batch=list(range(size)),
            time=[100.0] * size,
            loss=[number] * size,
            grad_norm=[number] * size,
            tokens=[8.0] * size,
            seconds=seconds,
            blocked_seconds=[0.0] * size,
            learning_rate=[0.0] * size,
            metrics={"accuracy": [number] * size},
        )
        report = Report(sequence=next(self._count), attempt=1, samples=(ranks,))
        self.numbers.take(run, node, report)

    def run(self, run: str, bucket: Bucket) -> None:
        known = self.state.runs.get(run) or self._new(run)
        at = START + dt.timedelta(seconds=next(self._count))
        ledger = switch(known.ledger, bucket, at)
        self.state.put(dataclasses.replace(known, ledger=ledger, attempt=known.attempt + 1))

    def end(self, run: str) -> None:
        if run in self.state.runs:
            ended = self.state.runs[run]
            self.state.put(dataclasses.replace(ended, state=RunState.FAILED, ended_at=START))
            self.state.forget()
        self.numbers.forget(run)

    def checkpoint(self, run: str, trust: Trust) -> None:
        number = next(self._count) % 4
        checkpoint = Checkpoint(
            id=f"{run}/{number}",
            run=run,
            attempt=1,
            step=number,
            tier=Tier.DIRECTORY,
            world_size=1,
            path="/c",
            trust=trust,
            created_at=START - dt.timedelta(seconds=next(self._count)),
        )
        self.state.put(checkpoint)

    def incident(self, run: str, kind: FindingKind) -> None:
        id_ = f"incident-{next(self._count)}"
        self.state.put(
            Incident(
                id=id_,
                run=run,
                attempt=1,
                kind=kind,
                severity=Severity.WARNING,
                reason="a reason",
                opened_at=START,
            )
        )

    def node(self, node: str, state: NodeState) -> None:
        self.state.put(dataclasses.replace(self.state.nodes[node], state=state))

    @staticmethod
    def _new(run: str) -> Run:
        return finished_run(id=run, name=RUNS[run], state=RunState.RUNNING, ended_at=None)

    def page(self, memory: Memory) -> str:
        now = START + dt.timedelta(seconds=next(self._count))
        self._write(memory, now)
        page = self._write(memory, now)  # finds everything as it was
        fresh = self._write(Memory(), now)
        text = page.encode().decode()
        assert text == fresh.encode().decode()
        return text

    def _write(self, memory: Memory, now: dt.datetime) -> Page:
        page = Page(memory.templates)
        scrape = Scrape(memory, self.state, self.numbers, now, page)
        scrape.fleet()
        scrape.queues()
        scrape.runs([])
        scrape.nodes()
        return page

    def step_counts(self) -> dict[tuple[str, str, str], float]:
        """By run, node and bound, counted plainly."""
        found = {}
        for run, newest in self.numbers.runs.items():
            for node, steps in newest.nodes.items():
                bounds = [*(f"{bound:g}" for bound in STEP_BOUNDS), "+Inf"]
                for bound, count in zip(bounds, itertools.accumulate(steps.counts), strict=True):
                    found[run, node, bound] = float(count)
        return found


@given(STEPS)
def test_a_scrape_with_the_memory_of_others_is_as_one_without(
    steps: list[list[tuple[Any, ...]]],
) -> None:
    fleet, memory = Fleet(), Memory()
    for operations in steps:
        for name, *arguments in operations:
            getattr(fleet, name)(*arguments)
        text = fleet.page(memory)
        families = {each.name: each for each in text_string_to_metric_families(text)}
        times = families["babysit_step_seconds"].samples
        labels = [(s.labels["run_id"], s.labels["node"], s.labels.get("le", "")) for s in times]
        found = {of: s.value for of, s in zip(labels, times, strict=True) if of[2]}
        assert found == fleet.step_counts()
        for sample in (sample for sample in times if sample.name.endswith("_sum")):
            there = fleet.numbers.runs[sample.labels["run_id"]].nodes[sample.labels["node"]]
            assert math.isclose(sample.value, min(there.sum, 9e12), abs_tol=1e-6)
