"""The numbers for Prometheus, read from the run database when they are asked for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from fastapi import APIRouter, Request, Response
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from monitors.failures import Cause
from monitors.types import Severity
from orchestrator.core.entities import Run
from orchestrator.core.showing import newest_checkpoint, open_incidents
from orchestrator.core.states import TERMINAL_RUN_STATES, NodeState, RunState
from orchestrator.core.views import RunView
from orchestrator.server.context import Context, HasContext
from orchestrator.server.reading import LIVE, line
from orchestrator.server.routes.system import package_version

router = APIRouter(tags=["health"])
_ALL = 100_000
"""Runs looked at; more than one control plane sees in its life."""


class RestartTally:
    """Restarts by cause over all runs. What is over is counted once and remembered."""

    def __init__(self) -> None:
        self._over: Counter[str] = Counter()
        self._seen: set[str] = set()

    async def count(self, here: Context, runs: Sequence[Run]) -> Counter[str]:
        """Restarts by cause so far; never less than the last time."""
        total: Counter[str] = Counter()
        for run in runs:
            if run.id in self._seen or run.attempt < 2:
                continue
            attempts = await here.store.attempts(run.id)
            causes = Counter(a.restart.cause.value for a in attempts if a.restart is not None)
            if run.state in TERMINAL_RUN_STATES:
                self._over += causes
                self._seen.add(run.id)
            else:
                total += causes
        return total + self._over


def _by_label(
    name: str, text: str, label: str, counts: Counter[str], values: Sequence[str]
) -> GaugeMetricFamily:
    family = GaugeMetricFamily(name, text, labels=[label])
    for value in values:
        family.add_metric([value], counts[value])
    return family


class _Collected:
    """What a registry collects: families that are ready."""

    def __init__(self, families: Sequence[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterator[Metric]:
        return iter(self._families)


async def _of_live_runs(here: Context, runs: Sequence[Run]) -> list[Metric]:
    labels = ["run", "run_id"]
    step = GaugeMetricFamily("babysit_run_step", "Newest step of a live run.", labels=labels)
    loss = GaugeMetricFamily("babysit_run_loss", "Newest loss of a live run.", labels=labels)
    ettr = GaugeMetricFamily(
        "babysit_run_ettr_ratio", "Productive / allocated time of a live run.", labels=labels
    )
    age = GaugeMetricFamily(
        "babysit_checkpoint_age_seconds",
        "Age of the newest checkpoint a live run could load.",
        labels=labels,
    )
    for run in runs:
        view: RunView = await line(here, run)
        key = [view.name, view.id]
        step.add_metric(key, view.step)
        if view.loss is not None:
            loss.add_metric(key, view.loss)
        if view.ettr is not None:
            ettr.add_metric(key, view.ettr)
        newest = newest_checkpoint(await here.store.checkpoints(run.id), here.clock.now())
        if newest is not None:
            age.add_metric(key, newest.age_seconds)
    return [step, loss, ettr, age]


async def _families(here: Context, tally: RestartTally) -> list[Metric]:
    runs = await here.store.runs(limit=_ALL)
    nodes = await here.store.nodes()
    incidents = await here.store.incidents(open_only=True, limit=10_000)
    causes = await tally.count(here, runs)
    restarts = CounterMetricFamily(
        "babysit_restarts_total", "Restarts of runs, by who pays for them.", labels=["cause"]
    )
    for cause in Cause:
        restarts.add_metric([cause.value], causes[cause.value])
    leader = GaugeMetricFamily("babysit_leader", "1 on the server that decides, else 0.")
    leader.add_metric([], float(here.controller.is_leader))
    build = InfoMetricFamily("babysit_build", "What runs here.")
    build.add_metric([], {"version": package_version()})
    run_states = Counter(run.state.value for run in runs)
    node_states = Counter(node.state.value for node in nodes)
    severities = open_incidents(incidents)
    return [
        _by_label("babysit_runs", "Runs by state.", "state", run_states, list(RunState)),
        *await _of_live_runs(here, [run for run in runs if run.state in LIVE]),
        restarts,
        _by_label("babysit_nodes", "Nodes by state.", "state", node_states, list(NodeState)),
        _by_label(
            "babysit_incidents_open",
            "Incidents not resolved, by severity.",
            "severity",
            severities,
            list(Severity),
        ),
        leader,
        build,
    ]


@router.get("/metrics", response_class=Response)
async def metrics(request: Request, here: HasContext) -> Response:
    """Prometheus text format. Needs no token: it names runs, and nothing else of them."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Collected(await _families(here, request.app.state.restarts)))
    return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)
