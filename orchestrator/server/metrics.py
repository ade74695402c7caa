"""The numbers for Prometheus, read from the run database when they are asked for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from fastapi import APIRouter, Request, Response
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from monitors.failures import Cause
from monitors.types import Severity
from orchestrator.core.model.entities import Incident, Run
from orchestrator.core.model.states import NodeState, RunState
from orchestrator.core.model.time_ledger import Bucket
from orchestrator.core.model.vocabulary import SaveTrouble
from orchestrator.core.scheduling import Pending
from orchestrator.core.views.build import newest_checkpoint, open_incidents
from orchestrator.core.views.phases import PHASES
from orchestrator.server.context import AnywhereViewer, Context, HasContext
from orchestrator.server.counters import Histogram, Tallies, Tally
from orchestrator.server.run_queries import LIVE, lines, newest_metrics
from orchestrator.version import package_version

router = APIRouter(tags=["health"])
_ALL = 100_000
"""Runs looked at; more than one control plane sees in its life."""


def _by_label(
    name: str, text: str, label: str, counts: Counter[str], values: Sequence[str]
) -> GaugeMetricFamily:
    family = GaugeMetricFamily(name, text, labels=[label])
    for value in values:
        family.add_metric([value], counts[value])
    return family


class _Collected:
    """A collector of metric families that are ready."""

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
    named = GaugeMetricFamily(
        "babysit_run_metric",
        "Newest value of a metric that the script of a live run reports by name.",
        labels=[*labels, "name"],
    )
    for run, view in zip(runs, await lines(here, runs), strict=True):
        key = [view.name, view.id]
        step.add_metric(key, view.step)
        if view.loss is not None:
            loss.add_metric(key, view.loss)
        if view.ettr is not None:
            ettr.add_metric(key, view.ettr)
        newest = newest_checkpoint(await here.store.checkpoints(run.id), here.clock.now())
        if newest is not None:
            age.add_metric(key, newest.age_seconds)
        for name, value in (await newest_metrics(here, run)).items():
            named.add_metric([*key, name], value)
    return [step, loss, ettr, age, named]


def _counted(tally: Tally) -> list[Metric]:
    restarts = CounterMetricFamily(
        "babysit_restarts_total",
        "Restarts of runs, by the budget that pays.",
        labels=["cause"],
    )
    for cause in Cause:
        restarts.add_metric([cause.value], tally.restarts[cause.value])
    gpus = CounterMetricFamily(
        "babysit_gpu_seconds_total",
        "GPU time of all runs by use; while queued, of the GPUs requested.",
        labels=["bucket"],
    )
    for bucket in Bucket:
        gpus.add_metric([bucket.value], tally.gpu_seconds[bucket.value])
    detection = HistogramMetricFamily(
        "babysit_detection_seconds",
        "Time from the last sign of progress to the detection of a failure.",
    )
    _fill(detection, [], tally.detection)
    recovery = HistogramMetricFamily(
        "babysit_recovery_seconds", "Restarts of runs, phase by phase.", labels=["phase"]
    )
    for phase in PHASES:
        _fill(recovery, [phase], tally.recovery[phase])
    return [restarts, gpus, detection, recovery]


def _fill(family: HistogramMetricFamily, labels: Sequence[str], histogram: Histogram) -> None:
    family.add_metric(labels, buckets=histogram.buckets, sum_value=histogram.sum)


def _notifications(here: Context) -> CounterMetricFamily:
    family = CounterMetricFamily(
        "babysit_notifications_total",
        "Notices that this server has sent since it started.",
        labels=["channel", "result"],
    )
    for (channel, result), count in sorted(here.controller.notices.items()):
        family.add_metric([channel, result], count)
    return family


def _set_aside(here: Context) -> CounterMetricFamily:
    family = CounterMetricFamily(
        "babysit_events_set_aside_total",
        "Events over which babysit failed twice, since this server started; each pages.",
        labels=["kind"],
    )
    for kind, count in sorted(here.controller.set_aside.items()):
        family.add_metric([kind], count)
    return family


def _storage(here: Context, incidents: Sequence[Incident]) -> GaugeMetricFamily:
    """Trouble with storage by kind, and with the database, which cannot hold its own incident."""
    counts = Counter(str(incident.kind) for incident in incidents)
    if here.controller.database.reason:
        kind = "database_full" if here.controller.database.full else "database_unavailable"
        counts[kind] += 1
    return _by_label(
        "babysit_storage_trouble",
        "Open incidents of storage by kind; 1 while the database takes no writes.",
        "kind",
        counts,
        [*map(str, SaveTrouble), "database_full", "database_unavailable"],
    )


def _lag(here: Context) -> list[Metric]:
    lag = here.controller.lag
    queue = GaugeMetricFamily(
        "babysit_queue_lag_seconds",
        "How long the oldest report or request waits for its transaction.",
    )
    queue.add_metric([], lag.queue)
    loop = GaugeMetricFamily(
        "babysit_event_loop_lag_seconds", "Longest delay of the event loop in the last minute."
    )
    loop.add_metric([], lag.loop)
    return [queue, loop]


async def _lease_age(here: Context) -> GaugeMetricFamily:
    """By this server's clock: on PostgreSQL the lease goes by the database's."""
    family = GaugeMetricFamily(
        "babysit_lease_age_seconds",
        "Time since any server last renewed the lease; above the life of a lease nobody leads.",
    )
    lease = await here.store.leader()
    if lease is not None:
        left = (lease.expires_at - here.clock.now()).total_seconds()
        family.add_metric([], max(0.0, here.settings.lease_seconds - left))
    return family


async def _families(here: Context, tallies: Tallies) -> list[Metric]:
    runs = await here.store.runs(limit=_ALL)
    nodes = await here.store.nodes()
    incidents = await here.store.incidents(open_only=True, limit=10_000)
    leader = GaugeMetricFamily("babysit_leader", "1 on the server that leads, else 0.")
    leader.add_metric([], float(here.controller.is_leader))
    build = InfoMetricFamily("babysit_build", "What runs here.")
    build.add_metric([], {"version": package_version()})
    run_states = Counter(run.state.value for run in runs)
    waiting = Counter(run.pending.value for run in runs if run.pending and run.state in LIVE)
    node_states = Counter(node.state.value for node in nodes)
    severities = open_incidents(incidents)
    return [
        _by_label("babysit_runs", "Runs by state.", "state", run_states, list(RunState)),
        *await _of_live_runs(here, [run for run in runs if run.state in LIVE]),
        *_counted(await tallies.count(here, runs)),
        _by_label(
            "babysit_scheduler_pending",
            "Runs that wait for nodes, by the scheduler's reason.",
            "reason",
            waiting,
            list(Pending),
        ),
        _notifications(here),
        _set_aside(here),
        _by_label("babysit_nodes", "Nodes by state.", "state", node_states, list(NodeState)),
        _by_label(
            "babysit_incidents_open",
            "Incidents not resolved, by severity.",
            "severity",
            severities,
            list(Severity),
        ),
        leader,
        *_lag(here),
        _storage(here, incidents),
        await _lease_age(here),
        build,
    ]


@router.get("/metrics", response_class=Response)
async def metrics(request: Request, here: HasContext, _: AnywhereViewer) -> Response:
    """Prometheus text format. Needs a token of any role, without a scope: it names every run."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Collected(await _families(here, request.app.state.tallies)))
    return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)
