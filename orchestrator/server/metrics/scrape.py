"""A scrape of the server that leads: its state in memory as metrics.

The problem: a scrape must stay cheap with a thousand live runs and ten thousand nodes, and must not
disturb the event loop in which failures are detected.

The design: one pass over the live runs, over the nodes, and over the open incidents, without
views and without the database; the past comes from the counters. What is made of an entity that is
still the same is kept from the last scrape.
"""

from __future__ import annotations

import datetime as dt
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from monitors.failures import Cause
from monitors.types import Severity
from orchestrator.controller.live_numbers import LiveNumbers, Newest
from orchestrator.core.model import time_ledger
from orchestrator.core.model.entities import Checkpoint, Node, Run
from orchestrator.core.model.state import State
from orchestrator.core.model.states import IncidentState, NodeState, RunState
from orchestrator.core.policy.lemons import lemons
from orchestrator.core.scheduling import Pending
from orchestrator.core.scheduling.types import accounted_gpus
from orchestrator.core.views.build import newest_sound
from orchestrator.core.views.phases import PHASES
from orchestrator.server.metrics.catalogue import METRICS, RECENT_SECONDS
from orchestrator.server.metrics.counters import BOUNDS, Tally
from orchestrator.server.metrics.exposition import Page, Templates, label, labels_text
from orchestrator.server.metrics.step_times import StepText

Rows = list[tuple[str, Run, Newest]]
"""Live runs: the text of the labels of each, the run, and its newest numbers."""
_NOTHING = Newest()
_SCORED_FOR = dt.timedelta(minutes=1)
"""Node-days grow slowly, and to add them up takes as long as the states of all nodes."""


class _RunText(NamedTuple):
    """The text and the numbers of a run in a scrape, as long as the run is the same."""

    run: Run
    labels: str
    info: str
    """Labels of `babysit_run_info`."""
    queue: str
    gpus: int
    """Of a worker, as they are accounted."""
    rollbacks: int
    share: time_ledger.Share


class Memory:
    """Text and answers that hold from scrape to scrape.

    Entities are never changed, only replaced: what was made of one holds while it is the same.
    """

    def __init__(self) -> None:
        self.templates = Templates()
        self.steps = StepText()
        self._runs: dict[str, _RunText] = {}
        self._sound: dict[str, tuple[list[Checkpoint], Checkpoint | None]] = {}
        """By run: its checkpoints, and the newest that it could load."""
        self._suspects: list[Node] = []
        self._scores: dict[str, float] = {}
        self._scored_at: dt.datetime | None = None

    def live(self, runs: Iterable[Run]) -> list[_RunText]:
        """The text of live runs; that of all others is forgotten."""
        before = self._runs
        self._runs = {run.id: _same(before.get(run.id), run) for run in runs}
        self._sound = {run: known for run, known in self._sound.items() if run in self._runs}
        return list(self._runs.values())

    def newest_sound(self, state: State, run: str) -> Checkpoint | None:
        """The newest checkpoint that a run could load."""
        checkpoints = state.checkpoints_of(run)
        known = self._sound.get(run)
        # A checkpoint is rarely compared field by field: the same object is equal.
        if known is None or known[0] != checkpoints:
            known = checkpoints, newest_sound(checkpoints)
            self._sound[run] = known
        return known[1]

    def lemon_scores(self, state: State, now: dt.datetime) -> dict[str, float]:
        """The lemon score of each node that has failed; without new failures, of a minute ago."""
        suspects = [node for node, _ in state.suspects()]
        at = self._scored_at
        if suspects != self._suspects or at is None or not at <= now <= at + _SCORED_FOR:
            found = lemons(state.nodes.values(), now) if suspects else {}
            self._scores = {node: lemon.score for node, lemon in found.items()}
            self._suspects, self._scored_at = suspects, now
        return self._scores


def _same(known: _RunText | None, run: Run) -> _RunText:
    if known is not None and known.run is run:
        return known
    return _RunText(
        run=run,
        labels=_of(run),
        info=_info(run),
        queue=run.spec.queue,
        gpus=accounted_gpus(run.spec.resources),
        rollbacks=sum(anomaly.count for anomaly in run.anomalies),
        share=time_ledger.share(run.ledger),
    )


class Scrape:
    """Writes the metrics of the fleet."""

    def __init__(
        self, memory: Memory, state: State, numbers: LiveNumbers, now: dt.datetime, page: Page
    ) -> None:
        self._page, self._state, self._numbers, self._now = page, state, numbers, now
        self._memory = memory
        self._live = memory.live(state.live_runs())
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
        waiting = Counter(live.run.pending for live in self._live if live.run.pending)
        self._page.by_label("babysit_scheduler_pending", {p.value: waiting[p] for p in Pending})

    def queues(self) -> None:
        """Live runs, GPUs and quota by queue."""
        names = {"default", *self._state.queues, *(live.queue for live in self._live)}
        queued: Counter[str] = Counter()
        active: Counter[str] = Counter()
        used: Counter[str] = Counter()
        for live in self._live:
            (queued if live.run.state is RunState.QUEUED else active)[live.queue] += 1
            used[live.queue] += self._state.worker_count(live.run.id) * live.gpus
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

    def nodes(self) -> None:
        """Nodes by state, those that are not well by name, and step times by node."""
        unready = [n for n in self._state.nodes.values() if n.state is not NodeState.READY]
        states = Counter(node.state for node in unready)
        states[NodeState.READY] = len(self._state.nodes) - len(unready)
        self._page.by_label("babysit_nodes", {state.value: states[state] for state in NodeState})
        self._page.series(
            "babysit_node_unready",
            [(labels_text(("node", "state"), (n.id, n.state.value)), 1) for n in unready],
        )
        faults = {node.id: float(len(node.faults)) for node, _ in self._state.suspects()}
        self._page.by_label(
            "babysit_node_faults", {n: count for n, count in faults.items() if count}
        )
        self._page.by_label(
            "babysit_node_lemon_score", self._memory.lemon_scores(self._state, self._now)
        )
        self._page.header("babysit_step_seconds")
        self._page.lines(self._memory.steps.lines(self._numbers))

    def runs(self, recent: Iterable[Run]) -> None:
        """Live runs, and the state of those that ended lately."""
        since = self._now - dt.timedelta(seconds=RECENT_SECONDS)
        ended = [run for run in recent if run.ended_at is not None and run.ended_at >= since]
        ids = {live.run.id for live in self._live}
        infos = [*(live.info for live in self._live), *(_info(e) for e in ended if e.id not in ids)]
        self._page.series("babysit_run_info", [(info, 1) for info in infos])
        numbers = self._numbers.runs
        rows = [(live.labels, live.run, numbers.get(live.run.id, _NOTHING)) for live in self._live]
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
        ratios = [(live.labels, live.share.at(now)) for live in self._live]
        series("babysit_run_ettr_ratio", [(of, each) for of, each in ratios if each is not None])
        series("babysit_run_restarts", [(of, max(0, run.attempt - 1)) for of, run, _ in rows])
        series(
            "babysit_run_rollbacks",
            [(live.labels, live.rollbacks) for live in self._live],
        )
        newest = [(of, self._memory.newest_sound(state, run.id)) for of, run, _ in rows]
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
