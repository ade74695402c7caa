"""A scrape of the server that leads: its state in memory as metrics.

The problem: a scrape must stay cheap with a thousand live runs and ten thousand nodes, and must not
disturb the event loop in which failures are detected.

The design: one pass over the live runs, over the nodes, and over the open incidents, without
views and without the database; the past comes from the counters.
"""

from __future__ import annotations

import datetime as dt
import itertools
from collections import Counter
from collections.abc import Iterable, Iterator

import numpy as np

from monitors.failures import Cause
from monitors.types import Severity
from orchestrator.controller.live_numbers import STEP_BOUNDS, LiveNumbers, Newest
from orchestrator.core.model import time_ledger
from orchestrator.core.model.entities import Run
from orchestrator.core.model.state import State
from orchestrator.core.model.states import IncidentState, NodeState, RunState
from orchestrator.core.scheduling import Pending
from orchestrator.core.scheduling.types import accounted_gpus
from orchestrator.core.views.build import newest_sound
from orchestrator.core.views.phases import PHASES
from orchestrator.server.metrics.catalogue import METRICS, RECENT_SECONDS
from orchestrator.server.metrics.counters import BOUNDS, Tally
from orchestrator.server.metrics.exposition import (
    Page,
    histogram_template,
    label,
    labels_text,
)

Rows = list[tuple[str, Run, Newest]]
"""Live runs: the text of the labels of each, the run, and its newest numbers."""
_NOTHING = Newest()


class NodeText:
    """The lines of all step times: one template, as long as runs and nodes are the same."""

    def __init__(self) -> None:
        self._places: list[tuple[str, str]] = []
        self._template = b""

    def lines(self, numbers: LiveNumbers) -> bytes:
        """The lines of every run and each of its nodes."""
        runs = numbers.runs.items()
        places = [(run, node) for run, newest in runs for node in newest.nodes]
        if places != self._places:
            self._places = places
            self._template = b"".join(map(_node_template, places))
        if not places:
            return b""
        steps = [steps for newest in numbers.runs.values() for steps in newest.nodes.values()]
        # A row for each: counts up to each bound, the last of them again, and the sum. To format
        # all rows at once takes half the time of a row at a time.
        flat = itertools.chain.from_iterable(each.counts for each in steps)
        counts = np.fromiter(flat, np.int64).reshape(len(steps), -1).cumsum(axis=1)
        values = np.empty((len(steps), counts.shape[1] + 2), dtype=object)
        values[:, :-2], values[:, -2] = counts, counts[:, -1]
        values[:, -1] = [each.sum for each in steps]
        return self._template % tuple(values.ravel().tolist())


def _node_template(place: tuple[str, str]) -> bytes:
    labels = labels_text(METRICS["babysit_step_seconds"].labels, place)
    return histogram_template("babysit_step_seconds", labels, STEP_BOUNDS)


class Scrape:
    """Writes the metrics of the fleet."""

    def __init__(self, page: Page, state: State, numbers: LiveNumbers, now: dt.datetime) -> None:
        self._page, self._state, self._numbers, self._now = page, state, numbers, now
        self._live = list(state.live_runs())
        self._incidents = [
            incident
            for incident in state.incidents.values()
            if incident.state is not IncidentState.RESOLVED
        ]

    def counted(self, tally: Tally) -> None:
        """Counts over all runs."""
        page = self._page
        page.by_label("babysit_runs", {s.value: tally.states[s] for s in RunState})
        page.by_label(
            "babysit_restarts_total", {cause.value: tally.restarts[cause.value] for cause in Cause}
        )
        page.by_label(
            "babysit_gpu_seconds_total", {str(k): v for k, v in tally.gpu_seconds.items()}
        )
        detection = tally.detection
        page.histograms(
            "babysit_detection_seconds", BOUNDS, [("", detection.counts, detection.sum)]
        )
        phases = ((f'phase="{phase}"', tally.recovery[phase]) for phase in PHASES)
        page.histograms(
            "babysit_recovery_seconds",
            BOUNDS,
            [(labels, histogram.counts, histogram.sum) for labels, histogram in phases],
        )

    def fleet(self) -> None:
        """Incidents, and what waits for the scheduler."""
        severities = Counter(incident.severity for incident in self._incidents)
        self._page.by_label("babysit_incidents_open", {s.value: severities[s] for s in Severity})
        waiting = Counter(run.pending for run in self._live if run.pending)
        self._page.by_label("babysit_scheduler_pending", {p.value: waiting[p] for p in Pending})

    def queues(self) -> None:
        """Live runs, GPUs and quota by queue."""
        names = {"default", *self._state.queues, *(run.spec.queue for run in self._live)}
        queued: Counter[str] = Counter()
        active: Counter[str] = Counter()
        used: Counter[str] = Counter()
        for run in self._live:
            name = run.spec.queue
            (queued if run.state is RunState.QUEUED else active)[name] += 1
            used[name] += self._state.worker_count(run.id) * accounted_gpus(run.spec.resources)
        counts = (("queued", queued), ("active", active))
        pairs = [
            (labels_text(("queue", "state"), (name, state)), counter[name])
            for name in sorted(names)
            for state, counter in counts
        ]
        self._page.series("babysit_queue_runs", pairs)
        self._page.by_label("babysit_queue_used_gpus", {name: used[name] for name in sorted(names)})
        quota = {q.name: float(q.gpus) for q in self._state.queues.values() if q.gpus is not None}
        self._page.by_label("babysit_queue_quota_gpus", quota)

    def nodes(self, text: NodeText) -> None:
        """Nodes by state, those that are not well by name, and step times by node."""
        nodes = self._state.nodes
        unready = [node for node in nodes.values() if node.state is not NodeState.READY]
        states = Counter(node.state for node in unready)
        states[NodeState.READY] = len(nodes) - len(unready)
        self._page.by_label("babysit_nodes", {state.value: states[state] for state in NodeState})
        self._page.series(
            "babysit_node_unready",
            [(labels_text(("node", "state"), (n.id, n.state.value)), 1) for n in unready],
        )
        faults = {node.id: float(len(node.faults)) for node, _ in self._state.suspects()}
        self._page.by_label(
            "babysit_node_faults", {n: count for n, count in faults.items() if count}
        )
        self._page.header("babysit_step_seconds")
        self._page.lines(text.lines(self._numbers))

    def runs(self, recent: Iterable[Run]) -> None:
        """Live runs, and the state of those that ended lately."""
        since = self._now - dt.timedelta(seconds=RECENT_SECONDS)
        ended = [run for run in recent if run.ended_at is not None and run.ended_at >= since]
        live = {run.id for run in self._live}
        self._page.series(
            "babysit_run_info",
            [(_info(r), 1.0) for r in [*self._live, *(e for e in ended if e.id not in live)]],
        )
        numbers = self._numbers.runs
        rows = [(_of(run), run, numbers.get(run.id, _NOTHING)) for run in self._live]
        self._training(rows)
        self._progress(rows)
        self._page.series("babysit_run_incidents_open", self._open_incidents())

    def _training(self, rows: Rows) -> None:
        """Numbers that the ranks report."""
        series = self._page.series
        series(
            "babysit_run_step",
            [(of, run.best_step if new.step is None else new.step) for of, run, new in rows],
        )
        series("babysit_run_loss", [(of, n.loss) for of, _, n in rows if n.loss is not None])
        norms = [(of, n.grad_norm) for of, _, n in rows if n.grad_norm is not None]
        series("babysit_run_grad_norm", norms)
        series("babysit_run_tokens_total", [(of, newest.tokens) for of, _, newest in rows])
        named = [
            (f'{of},name="{label(name)}"', value)
            for of, _, newest in rows
            for name, value in newest.metrics.items()
        ]
        series("babysit_run_metric", named)

    def _progress(self, rows: Rows) -> None:
        """How far the runs have come, at what cost, and what a failure would lose."""
        series, now, state = self._page.series, self._now, self._state
        ratios = [(of, time_ledger.ettr(run.ledger, now)) for of, run, _ in rows]
        series("babysit_run_ettr_ratio", [(of, each) for of, each in ratios if each is not None])
        series("babysit_run_restarts", [(of, max(0, run.attempt - 1)) for of, run, _ in rows])
        series(
            "babysit_run_rollbacks",
            [(of, sum(anomaly.count for anomaly in run.anomalies)) for of, run, _ in rows],
        )
        newest = [(of, newest_sound(state.checkpoints_of(run.id))) for of, run, _ in rows]
        series(
            "babysit_checkpoint_age_seconds",
            [
                (of, max(0.0, (now - sound.created_at).total_seconds()))
                for of, sound in newest
                if sound is not None
            ],
        )

    def _open_incidents(self) -> Iterator[tuple[str, float]]:
        names = METRICS["babysit_run_incidents_open"].labels
        kinds = Counter((i.run, str(i.kind), i.severity.value) for i in self._incidents)
        for (id_, kind, severity), count in kinds.items():
            run = self._state.runs.get(id_)
            if run is not None:
                yield labels_text(names, (run.name, run.id, kind, severity)), count


def _of(run: Run) -> str:
    """The labels of a run."""
    return f'run="{label(run.name)}",run_id="{run.id}"'


def _info(run: Run) -> str:
    project, queue = label(run.spec.project), label(run.spec.queue)
    return f'{_of(run)},project="{project}",queue="{queue}",state="{run.state.value}"'
