"""What the API shows of entities."""

from __future__ import annotations

import dataclasses
import datetime as dt
import json
import math

from monitors.failures import FailureClass
from orchestrator.core.model.entities import Fault, Node, Queue, Worker
from orchestrator.core.model.states import NodeState, RunState, Trust, WorkerState
from orchestrator.core.model.time_ledger import Bucket, Ledger
from orchestrator.core.policy.lemons import judge
from orchestrator.core.views.build import (
    check_node,
    newest_checkpoint,
    node_view,
    queue_views,
    restart_view,
    run_detail,
    run_view,
)
from orchestrator.core.views.phases import PHASES
from tests.plane import at, attempts, checkpoint, finished_run, incident, restart, spec

NOW = at(500)
PROMISED = {
    "id", "name", "state", "reason", "attempt", "step", "loss", "restarts", "incidents",
    "checkpoint", "ettr", "seconds",
}  # fmt: skip


def test_a_run_in_full_has_what_the_design_promises() -> None:
    detail = run_detail(
        finished_run(), attempts(), [incident()], [checkpoint(20)], now=NOW, newest=(200, 1.5)
    )
    shown = json.loads(detail.model_dump_json())
    assert shown.keys() >= PROMISED
    assert shown["restarts"][0].keys() >= {
        "attempt", "cause", "class", "reason", "node", "rank", "detected_at", "recovered_at",
        "resumed_step", "lost_steps", "seconds",
    }  # fmt: skip
    assert list(shown["restarts"][0]["seconds"]) == list(PHASES)
    assert shown["incidents"][0].keys() >= {
        "id", "kind", "severity", "state", "subject", "onset_step", "remedy", "reason",
    }  # fmt: skip
    assert shown["checkpoint"]["step"] == 20
    assert shown["checkpoint"]["trust"] == "good"
    assert shown["checkpoint"]["age_seconds"] == 480
    assert shown["node_names"] == ["node-1", "node-2"]
    assert (shown["step"], shown["loss"]) == (200, 1.5)


def test_ettr_is_productive_over_all_but_queued() -> None:
    view = run_view(finished_run(), NOW, restarts=1)
    assert view.ettr == 190 / 198
    queued = finished_run(ledger=Ledger(since=at(0)), ended_at=None, state=RunState.QUEUED)
    assert run_view(queued, NOW, restarts=0).ettr is None


def test_the_open_bucket_counts_up_to_now_and_stops_at_the_end() -> None:
    open_ledger = Ledger(bucket=Bucket.PRODUCTIVE, since=at(0))
    live = finished_run(ended_at=None, state=RunState.RUNNING, ledger=open_ledger)
    assert run_detail(live, [], [], [], now=at(30)).seconds["productive"] == 30
    over = finished_run(ended_at=at(10), ledger=open_ledger)
    assert run_detail(over, [], [], [], now=at(30)).seconds["productive"] == 10


def test_a_restart_splits_its_seconds_and_leaves_out_what_is_not_known() -> None:
    seconds = restart_view(restart()).seconds
    assert [round(value or 0, 3) for value in seconds.values()] == [0.1, 0.1, 0.0, 0.5, 0.2, 0.5]
    early = restart_view(restart(ready_at=None, restored_at=None, recovered_at=None))
    assert early.seconds["start"] is None
    assert early.model_dump(by_alias=True)["class"] == "signal"


def test_not_a_number_is_null_in_json() -> None:
    view = run_view(finished_run(), NOW, restarts=0, step=3, loss=math.nan)
    assert json.loads(view.model_dump_json())["loss"] is None


def test_the_newest_checkpoint_is_one_that_may_be_loaded() -> None:
    known = [
        checkpoint(20),
        checkpoint(40, Trust.COMPLETE),
        checkpoint(60, Trust.WRITING),
        checkpoint(80, Trust.BAD),
        checkpoint(100, deleted_at=NOW),
    ]
    newest = newest_checkpoint(known, NOW)
    assert newest is not None
    assert newest.step == 40
    assert newest_checkpoint(known[2:], NOW) is None


def worker(name: str, state: WorkerState = WorkerState.READY) -> Worker:
    return Worker(id=name, run="r1", node="node-1", state=state, launched_at=at(0))


def test_a_node_names_the_runs_with_an_agent_there() -> None:
    workers = [worker("w1"), dataclasses.replace(worker("w2", WorkerState.ENDED), run="r2")]
    view = node_view(Node(id="node-1"), workers, {"r1": "tiny", "r2": "gone"}, None)
    assert (view.runs, view.lemon_score) == (["tiny"], None)
    lemon = judge(6, 10.0, 0, 30.0)
    assert node_view(Node(id="node-1"), [], {}, lemon).lemon_score == round(lemon.score, 4)


def test_the_check_of_a_node_says_what_is_wrong() -> None:
    faults = [
        Fault(at=NOW - dt.timedelta(hours=hours), run="r", failure_class=FailureClass.STORAGE)
        for hours in (1, 2, 30)
    ]
    node = Node(id="node-1", state=NodeState.CORDONED, reason="fan", faults=tuple(faults))
    found = {
        c.name: (c.ok, c.detail) for c in check_node(node, [worker("w1", WorkerState.LOST)], NOW)
    }
    assert found == {
        "in the cluster": (True, "cordoned"),
        "takes work": (False, "fan"),
        "agents in contact": (False, "lost: w1"),
        "no fault in 24 h": (False, "storage x2"),
    }
    assert all(check.ok for check in check_node(Node(id="node-1"), [worker("w1")], NOW))


def test_queues_count_live_runs_only() -> None:
    other = spec(queue="night")
    runs = [
        finished_run(),
        finished_run(spec=other, state=RunState.QUEUED),
        finished_run(spec=other, state=RunState.RUNNING),
    ]
    shown = [
        (q.name, q.gpus, q.queued, q.active)
        for q in queue_views([Queue(name="big", gpus=8)], runs, [])
    ]
    assert shown == [("big", 8, 0, 0), ("default", None, 0, 0), ("night", None, 1, 1)]
