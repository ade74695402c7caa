"""The four dashboards: fleet, run, nodes, scheduler."""

from __future__ import annotations

import functools

from orchestrator.dashboards.board import Board, Note, PanelSpec, Query, Variable
from orchestrator.dashboards.hardware_row import HARDWARE

_OF_RUN = 'run_id=~"$run_id"'
_LIVE = 'state!~"succeeded|failed|cancelled"'
_stat = functools.partial(PanelSpec, kind="stat", width=8, height=5)


def _quantiles(metric: str, by: str = "") -> tuple[Query, ...]:
    """Median and 99th percentile of a histogram over an hour."""
    group = f"le, {by}" if by else "le"
    rate = f"sum by ({group}) (rate({metric}_bucket[1h]))"
    prefix = f"{{{{{by}}}}} " if by else ""
    return (
        Query(f"histogram_quantile(0.5, {rate})", f"{prefix}median"),
        Query(f"histogram_quantile(0.99, {rate})", f"{prefix}99 %"),
    )


FLEET = Board(
    uid="babysit-fleet",
    title="babysit: fleet",
    text="All runs of one control plane: what trains, what waits, what went wrong, what it cost.",
    rows=(
        (
            "Now",
            (
                PanelSpec(
                    "Servers that lead",
                    (Query("sum(babysit_leader)"),),
                    text="1, or nothing decides about failures.",
                    kind="stat",
                    width=4,
                    height=5,
                ),
                _stat("Live runs", (Query(f"sum(babysit_runs{{{_LIVE}}})"),), width=4),
                _stat("Open incidents", (Query("babysit_incidents_open", "{{severity}}"),)),
                PanelSpec(
                    "Nodes", (Query("babysit_nodes", "{{state}}"),), kind="stat", width=8, height=5
                ),
                PanelSpec(
                    "Runs",
                    (Query("babysit_run_info"),),
                    text="Live runs, and those that ended in the last minutes.",
                    kind="table",
                    width=24,
                ),
            ),
        ),
        (
            "Runs and time",
            (
                PanelSpec("Runs by state", (Query(f"babysit_runs{{{_LIVE}}}", "{{state}}"),)),
                PanelSpec(
                    "GPUs by use of their time",
                    (
                        Query(
                            "sum by (bucket) (rate(babysit_gpu_seconds_total[$__rate_interval]))",
                            "{{bucket}}",
                        ),
                    ),
                    text="Queued time is that of the GPUs requested.",
                ),
                PanelSpec(
                    "Productive share of allocated GPU time",
                    (
                        Query(
                            'sum(increase(babysit_gpu_seconds_total{bucket="productive"}[1h]))'
                            " / clamp_min(sum(increase("
                            'babysit_gpu_seconds_total{bucket!="queued"}[1h])), 1)',
                            "fleet",
                        ),
                    ),
                    unit="percentunit",
                    text="Over the last hour.",
                ),
                PanelSpec(
                    "Productive share of each run so far",
                    (Query("babysit_run_ettr_ratio", "{{run}}"),),
                    unit="percentunit",
                ),
            ),
        ),
        (
            "Failures",
            (
                PanelSpec(
                    "Restarts an hour, by cause",
                    (Query("sum by (cause) (increase(babysit_restarts_total[1h]))", "{{cause}}"),),
                ),
                PanelSpec("Time to detection", _quantiles("babysit_detection_seconds"), unit="s"),
                PanelSpec(
                    "Mean time of each phase of a recovery",
                    (
                        Query(
                            "sum by (phase) (rate(babysit_recovery_seconds_sum[1h]))"
                            " / sum by (phase) (rate(babysit_recovery_seconds_count[1h]))",
                            "{{phase}}",
                        ),
                    ),
                    unit="s",
                ),
                PanelSpec("Trouble with storage", (Query("babysit_storage_trouble", "{{kind}}"),)),
            ),
        ),
        (
            "The control plane",
            (
                PanelSpec(
                    "Lag",
                    (
                        Query("babysit_queue_lag_seconds", "{{instance}} queue"),
                        Query("babysit_event_loop_lag_seconds", "{{instance}} event loop"),
                        Query("babysit_lease_age_seconds", "{{instance}} age of the lease"),
                    ),
                    unit="s",
                ),
                PanelSpec(
                    "Notices an hour",
                    (
                        Query(
                            "sum by (channel, result) (increase(babysit_notifications_total[1h]))",
                            "{{channel}} {{result}}",
                        ),
                    ),
                ),
                PanelSpec(
                    "CPU",
                    (
                        Query(
                            'rate(process_cpu_seconds_total{job="babysit"}[$__rate_interval])',
                            "{{instance}}",
                        ),
                    ),
                    unit="percentunit",
                ),
                PanelSpec(
                    "Memory",
                    (Query('process_resident_memory_bytes{job="babysit"}', "{{instance}}"),),
                    unit="bytes",
                ),
            ),
        ),
    ),
)
RUN = Board(
    uid="babysit-run",
    title="babysit: run",
    text="One run: its training, its speed, its checkpoints, and what happened to it.",
    variables=(
        Variable("run", "label_values(babysit_run_info, run)", "Run"),
        Variable(
            "run_id",
            'label_values(babysit_run_info{run="$run"}, run_id)',
            "Id",
        ),
    ),
    tags=("babysit", "run_id:$run_id"),
    notes=(
        Note(
            "Incidents",
            f"babysit_run_incidents_open{{{_OF_RUN}}}"
            f" unless babysit_run_incidents_open{{{_OF_RUN}}} offset 1m"
            # The alert channel grafana makes annotations of its own, which say more.
            ' unless on() babysit_notifications_total{channel="grafana"}',
            "red",
            "{{kind}} ({{severity}})",
        ),
        Note("Restarts", f"delta(babysit_run_restarts{{{_OF_RUN}}}[1m]) > 0", "orange", "restart"),
        Note(
            "Rollbacks", f"delta(babysit_run_rollbacks{{{_OF_RUN}}}[1m]) > 0", "purple", "rollback"
        ),
    ),
    rows=(
        (
            "Training",
            (
                PanelSpec(
                    "Loss",
                    (Query(f"babysit_run_loss{{{_OF_RUN}}}", "{{run}}"),),
                    width=24,
                    from_zero=False,
                ),
                PanelSpec(
                    "Gradient norm", (Query(f"babysit_run_grad_norm{{{_OF_RUN}}}", "{{run}}"),)
                ),
                PanelSpec("Step", (Query(f"babysit_run_step{{{_OF_RUN}}}", "{{run}}"),)),
                PanelSpec(
                    "Other metrics",
                    (Query(f"babysit_run_metric{{{_OF_RUN}}}", "{{name}}"),),
                    from_zero=False,
                ),
                PanelSpec(
                    "Throughput",
                    (
                        Query(
                            f"rate(babysit_run_tokens_total{{{_OF_RUN}}}[$__rate_interval])",
                            "tokens per second",
                        ),
                    ),
                    text="Of all ranks that report tokens; steps that are done again count.",
                ),
            ),
        ),
        (
            "Speed",
            (
                PanelSpec(
                    "Step time, all nodes",
                    (
                        Query(
                            "sum by (le)"
                            f" (rate(babysit_step_seconds_bucket{{{_OF_RUN}}}[$__rate_interval]))",
                            "{{le}}",
                        ),
                    ),
                    unit="s",
                    kind="heatmap",
                ),
                PanelSpec(
                    "Step time by node, 95 %",
                    (
                        Query(
                            "histogram_quantile(0.95, sum by (le, node)"
                            f" (rate(babysit_step_seconds_bucket{{{_OF_RUN}}}"
                            "[$__rate_interval])))",
                            "{{node}}",
                        ),
                    ),
                    unit="s",
                ),
                PanelSpec(
                    "Step time by node, mean",
                    (
                        Query(
                            "sum by (node)"
                            f" (rate(babysit_step_seconds_sum{{{_OF_RUN}}}[$__rate_interval]))"
                            " / sum by (node)"
                            f" (rate(babysit_step_seconds_count{{{_OF_RUN}}}[$__rate_interval]))",
                            "{{node}}",
                        ),
                    ),
                    unit="s",
                    text="A slow node stands out here.",
                ),
                PanelSpec(
                    "Productive share of allocated time",
                    (Query(f"babysit_run_ettr_ratio{{{_OF_RUN}}}", "{{run}}"),),
                    unit="percentunit",
                ),
            ),
        ),
        (
            "Safety",
            (
                PanelSpec(
                    "Age of the newest checkpoint",
                    (Query(f"babysit_checkpoint_age_seconds{{{_OF_RUN}}}", "{{run}}"),),
                    unit="s",
                ),
                PanelSpec(
                    "Restarts and rollbacks so far",
                    (
                        Query(f"babysit_run_restarts{{{_OF_RUN}}}", "restarts"),
                        Query(f"babysit_run_rollbacks{{{_OF_RUN}}}", "rollbacks"),
                    ),
                ),
                PanelSpec(
                    "Open incidents",
                    (Query(f"babysit_run_incidents_open{{{_OF_RUN}}}", "{{kind}} ({{severity}})"),),
                    kind="states",
                ),
                PanelSpec(
                    "State",
                    (Query(f"babysit_run_info{{{_OF_RUN}}}", "{{state}}"),),
                    kind="states",
                ),
            ),
        ),
    ),
)
NODES = Board(
    uid="babysit-nodes",
    title="babysit: nodes",
    text="The hosts: which take work, which fail, which are slow.",
    rows=(
        (
            "Health",
            (
                PanelSpec("Nodes by state", (Query("babysit_nodes > 0", "{{state}}"),)),
                PanelSpec(
                    "Nodes that are not ready", (Query("babysit_node_unready"),), kind="table"
                ),
            ),
        ),
        HARDWARE,
        (
            "Faults",
            (
                PanelSpec(
                    "Failures on record",
                    (Query("topk(20, babysit_node_faults)", "{{node}}"),),
                    text="The twenty nodes with most.",
                ),
                PanelSpec(
                    "Lemon score",
                    (Query("topk(20, babysit_node_lemon_score)", "{{node}}"),),
                    unit="percentunit",
                    text="The chance that a node fails more than three times as often as the"
                    " others, given the time it was there. The twenty nodes with most; without"
                    " failures there are none. Nothing acts on it.",
                ),
            ),
        ),
        (
            "Speed",
            (
                PanelSpec(
                    "The slowest nodes, against the others of their run",
                    (
                        Query(
                            "topk(20, (rate(babysit_step_seconds_sum[5m])"
                            " / rate(babysit_step_seconds_count[5m]))"
                            " / on (run_id) group_left () avg by (run_id)"
                            " (rate(babysit_step_seconds_sum[5m])"
                            " / rate(babysit_step_seconds_count[5m])))",
                            "{{node}}",
                        ),
                    ),
                    unit="percentunit",
                    text="Mean step time of a node, over that of all nodes of the run.",
                    width=24,
                    from_zero=False,
                ),
            ),
        ),
    ),
)
SCHEDULER = Board(
    uid="babysit-scheduler",
    title="babysit: scheduler",
    text="What waits, for what, and who uses which quota.",
    rows=(
        (
            "Waiting",
            (
                PanelSpec(
                    "Runs that wait, by reason",
                    (Query("babysit_scheduler_pending", "{{reason}}"),),
                ),
                PanelSpec(
                    "Queued runs by queue",
                    (Query('babysit_queue_runs{state="queued"}', "{{queue}}"),),
                ),
                PanelSpec(
                    "Active runs by queue",
                    (Query('babysit_queue_runs{state="active"}', "{{queue}}"),),
                ),
                PanelSpec(
                    "GPUs that queued runs ask for",
                    (
                        Query(
                            'rate(babysit_gpu_seconds_total{bucket="queued"}[$__rate_interval])',
                            "GPUs",
                        ),
                    ),
                ),
            ),
        ),
        (
            "Quota",
            (
                PanelSpec(
                    "GPUs in use by queue",
                    (
                        Query("babysit_queue_used_gpus", "{{queue}} used"),
                        Query("babysit_queue_quota_gpus", "{{queue}} quota"),
                    ),
                ),
                PanelSpec(
                    "Share of the quota in use",
                    (
                        Query(
                            "babysit_queue_used_gpus / (babysit_queue_quota_gpus > 0)", "{{queue}}"
                        ),
                    ),
                    unit="percentunit",
                    text="Above 100 %: borrowed from the cohort.",
                ),
            ),
        ),
    ),
)
BOARDS = (FLEET, RUN, NODES, SCHEDULER)
