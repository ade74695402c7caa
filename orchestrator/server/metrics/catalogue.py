"""Every metric of `/metrics`: name, type, labels and meaning.

The one list: a scrape takes its headers from here, `python -m orchestrator.server.metrics.page >
docs/metrics.md` makes the page of it, and tests hold both, the alert rules and the dashboards to
it. Names are in base units, counters end in `_total`. No label is without a bound: runs are those
that are live (and, for `babysit_run_info`, that ended within the last minutes), nodes those of the
cluster, queues those that exist. Nothing is labelled by rank.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Literal

from orchestrator.core.policy.lemons import FACTOR, WINDOW_DAYS

Kind = Literal["gauge", "counter", "histogram"]


@dataclasses.dataclass(frozen=True, slots=True)
class Metric:
    """One metric."""

    name: str
    kind: Kind
    text: str
    """The meaning, in a sentence or two."""
    labels: tuple[str, ...] = ()
    each: bool = False
    """True if every server has its own value; otherwise only the leader has one."""


_RUN = ("run", "run_id")
RECENT_SECONDS = 900.0
"""Time after its end for which a run is in `babysit_run_info`: alerts can name it."""
RECENT_RUNS = 100
"""Ended runs in `babysit_run_info` at most."""

SERVER = (
    Metric("babysit_leader", "gauge", "1 on the server that decides, else 0.", each=True),
    Metric("babysit_build_info", "gauge", "1; the version of the server.", ("version",), each=True),
    Metric(
        "babysit_lease_age_seconds",
        "gauge",
        "Time since any server last renewed the lease, by this server's clock; above "
        "`BABYSIT_LEASE_SECONDS` nobody leads. Absent before the first lease and while the "
        "database does not answer.",
        each=True,
    ),
    Metric(
        "babysit_queue_lag_seconds",
        "gauge",
        "How long the oldest report or request waits for its transaction, or for the one under "
        "way. 0 on a server that does not lead.",
        each=True,
    ),
    Metric(
        "babysit_event_loop_lag_seconds",
        "gauge",
        "Longest delay of the event loop in the last minute. 0 on a server that does not lead.",
        each=True,
    ),
    Metric(
        "babysit_notifications_total",
        "counter",
        "Notices that this server has sent since it started, by result: `delivered`, `failed`, or "
        "the code of an error of the channel that a person must mend, such as `token_revoked`.",
        ("channel", "result"),
        each=True,
    ),
    Metric(
        "babysit_events_set_aside_total",
        "counter",
        "Events over which babysit failed twice, since this server started: a defect. The run is "
        "held, and each pages. Absent while there are none.",
        ("kind",),
        each=True,
    ),
)
FLEET = (
    Metric("babysit_runs", "gauge", "Runs by state, past ones included.", ("state",)),
    Metric(
        "babysit_restarts_total",
        "counter",
        "Restarts of all runs, by the cause whose budget pays.",
        ("cause",),
    ),
    Metric(
        "babysit_gpu_seconds_total",
        "counter",
        "GPU time of all runs by its use, as in `babysit show`; while queued, of the GPUs "
        "requested. An elastic run counts with its fewest nodes, a run without GPUs does not "
        "count. Time in training counts up to the newest step.",
        ("bucket",),
    ),
    Metric(
        "babysit_detection_seconds",
        "histogram",
        "Time from the last sign of progress to the detection of a failure, of each restart that "
        "neither a person nor the scheduler requested.",
    ),
    Metric("babysit_recovery_seconds", "histogram", "Restarts of runs, by phase.", ("phase",)),
    Metric(
        "babysit_incidents_open", "gauge", "Incidents not resolved, by severity.", ("severity",)
    ),
    Metric(
        "babysit_storage_trouble",
        "gauge",
        "Open incidents of storage by kind; `database_full` and `database_unavailable` are 1 "
        "while nothing can be stored.",
        ("kind",),
        each=True,
    ),
)
RUNS = (
    Metric(
        "babysit_run_info",
        "gauge",
        f"1 for each run that is live or ended in the last {RECENT_SECONDS / 60:g} minutes "
        f"({RECENT_RUNS} ended runs at most), with its state.",
        (*_RUN, "project", "queue", "state"),
    ),
    Metric("babysit_run_step", "gauge", "Newest step of a live run.", _RUN),
    Metric(
        "babysit_run_loss",
        "gauge",
        "Newest loss of a live run, of the rank whose loss curve is shown. Absent before the "
        "first.",
        _RUN,
    ),
    Metric(
        "babysit_run_grad_norm",
        "gauge",
        "Newest norm of the gradient of a live run, of the same rank. Absent if the script does "
        "not report it.",
        _RUN,
    ),
    Metric(
        "babysit_run_tokens_total",
        "counter",
        "Tokens that all ranks of a live run have reported since this server began to lead; its "
        "rate is the throughput, with the steps that are done again.",
        _RUN,
    ),
    Metric(
        "babysit_run_metric",
        "gauge",
        "Newest value of a metric that the script of a live run reports by name.",
        (*_RUN, "name"),
    ),
    Metric(
        "babysit_run_ettr_ratio",
        "gauge",
        "Productive / allocated time of a live run, 0 to 1. Absent before it has nodes.",
        _RUN,
    ),
    Metric(
        "babysit_run_restarts",
        "gauge",
        "Restarts of a live run so far. A gauge, since it ends with the run.",
        _RUN,
    ),
    Metric(
        "babysit_run_rollbacks",
        "gauge",
        "Rollbacks of a live run over anomalies so far.",
        _RUN,
    ),
    Metric(
        "babysit_run_incidents_open",
        "gauge",
        "Incidents of a live run that are not resolved. Absent while there are none.",
        (*_RUN, "kind", "severity"),
    ),
    Metric(
        "babysit_checkpoint_age_seconds",
        "gauge",
        "Age of the newest checkpoint that a live run could load. Absent before the first.",
        _RUN,
    ),
)
NODES = (
    Metric("babysit_nodes", "gauge", "Nodes by state.", ("state",)),
    Metric(
        "babysit_source_blind",
        "gauge",
        "Nodes on which a hardware source sees nothing, by source; `monitor` is the node monitor "
        "itself, which has not reported for a minute. `babysit nodes show` says why.",
        ("source",),
    ),
    Metric(
        "babysit_node_reports_total",
        "counter",
        "Reports of node monitors that this server has taken since it started.",
    ),
    Metric(
        "babysit_node_unready",
        "gauge",
        "1 for each node in a state other than `ready`.",
        ("node", "state"),
    ),
    Metric(
        "babysit_node_faults",
        "gauge",
        "Failures on the record of a node. Absent while there are none.",
        ("node",),
    ),
    Metric(
        "babysit_node_lemon_score",
        "gauge",
        f"Probability, 0 to 1, that a node fails more than {FACTOR:g} times as often as the "
        f"others, by its failures and node-days in the last {WINDOW_DAYS:g} days "
        "(`core/policy/lemons.py`). Nothing acts on it. Absent for a node without a failure in "
        "that time, whose score is 0.05 or less: a healthy fleet has no series.",
        ("node",),
    ),
    Metric(
        "babysit_step_seconds",
        "histogram",
        "Step times of all ranks of a live run on a node, since this server began to lead.",
        ("run_id", "node"),
    ),
)
SCHEDULER = (
    Metric(
        "babysit_scheduler_pending",
        "gauge",
        "Runs that wait for nodes, by the scheduler's reason.",
        ("reason",),
    ),
    Metric(
        "babysit_queue_runs",
        "gauge",
        "Live runs of a queue: `queued`, or `active` with nodes or on the way to them.",
        ("queue", "state"),
    ),
    Metric(
        "babysit_queue_used_gpus", "gauge", "GPUs of the workers of a queue's runs.", ("queue",)
    ),
    Metric(
        "babysit_queue_quota_gpus",
        "gauge",
        "Nominal quota of a queue. Absent for a queue without one.",
        ("queue",),
    ),
)
PROCESS = (
    Metric("process_cpu_seconds_total", "counter", "CPU time of the server.", each=True),
    Metric("process_resident_memory_bytes", "gauge", "Memory of the server.", each=True),
    Metric("process_virtual_memory_bytes", "gauge", "Address space of the server.", each=True),
    Metric("process_open_fds", "gauge", "Open file descriptors of the server.", each=True),
    Metric("process_max_fds", "gauge", "Limit of open file descriptors.", each=True),
    Metric(
        "process_start_time_seconds", "gauge", "When the server started, Unix seconds.", each=True
    ),
)
GROUPS: Mapping[str, tuple[Metric, ...]] = {
    "The server": SERVER,
    "The fleet": FLEET,
    "Runs": RUNS,
    "Nodes": NODES,
    "The scheduler": SCHEDULER,
    "The process": PROCESS,
}
METRICS: Mapping[str, Metric] = {
    metric.name: metric for group in GROUPS.values() for metric in group
}
