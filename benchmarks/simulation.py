"""Speed of the core and the simulator, and growth of their cost: a table, then one JSON line.

    python benchmarks/simulation.py [--quick] [--picture growth.png]

Events: one event through the core (`handle`, and the controller's work on the state between turns)
at 10,000 nodes, with 2,000 running runs of 4 nodes and 5,000 runs that wait. Growth: the same at a
tenth and a hundredth of the size, and `llama3_16k` with gang and cluster at 1 %, 10 % and 100 % and
an equal number of failures. An exponent of 1 is linear.
"""

from __future__ import annotations

import argparse
import datetime as dt
import itertools
import math
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))  # run from anywhere

from babysit.wire import Tier
from benchmarks.support.harness import last_line, table
from jobs.events import Event, RankExited, RankReady, RankRestored, ShardWritten
from jobs.shards import ShardFile, ShardReport
from jobs.spec import RunSpec
from monitors.failures import Failure, FailureClass
from monitors.types import Finding, FindingKind, Severity
from orchestrator.core.machine import handle
from orchestrator.core.messages.events import (
    FindingRaised,
    RunCancelled,
    RunSubmitted,
    SchedulingPassDue,
    StepReached,
    WorkerLost,
    WorkerRegained,
)
from orchestrator.core.messages.gang_events import GangChecked, GangStopped
from orchestrator.core.messages.instructions import BroadcastCommand
from orchestrator.core.model.entities import Attempt, Node, Queue, Run, Seat, Worker
from orchestrator.core.model.state import State
from orchestrator.core.model.states import AttemptState, RunState, WorkerState
from orchestrator.core.model.time_ledger import Bucket, Ledger
from orchestrator.simulation.scenario.loader import load
from orchestrator.simulation.scenario.report import report
from orchestrator.simulation.scenario.world import World

NOW = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
FULL = (10_000, 2_000, 5_000)
"""Nodes, running runs, waiting runs."""
NODES_EACH = 4
PASS = "scheduling pass"
"""One pass follows a group of events; it is measured separately from them."""
Curve = tuple[list[float], list[float]]
"""Sizes and their costs."""


def spec(name: str, nodes: int) -> RunSpec:
    return RunSpec.model_validate(
        {
            "name": name,
            "command": ["python", "train.py"],
            "resources": {"nodes": nodes, "gpus_per_node": 8},
            "checkpoint": {"directory": f"/checkpoints/{name}", "every_steps": 100},
        }
    )


def busy(nodes: int, running: int, waiting: int) -> State:
    """A cluster with running and waiting runs."""
    entities: list[Any] = [
        Node(id=f"n{i:05d}", gpus=8, cpus=64, labels={"rack": f"r{i // 16}"}) for i in range(nodes)
    ]
    entities.append(Queue(name="default"))
    for i in range(running):
        name = f"run-{i:05d}"
        entities += in_progress(name, [f"n{i * NODES_EACH + j:05d}" for j in range(NODES_EACH)])
    for i in range(waiting):
        name = f"waiting-{i:05d}"
        entities.append(
            Run(
                id=name,
                name=name,
                spec=spec(name, too_many(nodes, running)),
                submitted_at=NOW + dt.timedelta(seconds=i),
                reason="waits",
                ledger=Ledger(since=NOW),
            )
        )
    return State(entities)


def too_many(nodes: int, running: int) -> int:
    """One node more than are free."""
    return nodes - running * NODES_EACH + 1


def in_progress(name: str, nodes: list[str]) -> list[Any]:
    """A run that trains, with its attempt and its workers."""
    workers = [
        Worker(
            id=f"{name}-w{j + 1}",
            run=name,
            node=node,
            state=WorkerState.READY,
            launched_at=NOW,
            joined_at=NOW,
        )
        for j, node in enumerate(nodes)
    ]
    seats = tuple(
        Seat(worker=worker.id, node=worker.node, ranks=(j,)) for j, worker in enumerate(workers)
    )
    everyone = frozenset(range(len(nodes)))
    run = Run(
        id=name,
        name=name,
        spec=spec(name, len(nodes)),
        submitted_at=NOW,
        state=RunState.RUNNING,
        reason="training",
        attempt=1,
        workers_made=len(nodes),
        instrumented=True,
        started_at=NOW,
        ledger=Ledger(bucket=Bucket.PRODUCTIVE, since=NOW),
    )
    attempt = Attempt(
        run=name,
        number=1,
        state=AttemptState.RUNNING,
        seats=seats,
        world_size=len(nodes),
        started_at=NOW,
        first_step_at=NOW,
        started_ranks=everyone,
        ready_ranks=everyone,
        restored_ranks=everyone,
    )
    return [run, attempt, *workers]


class Bench:
    """Sends events through the core as the controller does, and measures them in microseconds."""

    def __init__(self, state: State) -> None:
        self.state = state
        self.micros: dict[str, list[float]] = {}
        self._ids = itertools.count()
        self._now = NOW + dt.timedelta(days=1)

    def do(self, what: str, kind: type[Event], **fields: Any) -> list[Any]:
        """One turn, and the scheduling pass after it if the core wants one."""
        emitted = self._timed(what, kind, fields)
        if (cause := self.state.pass_wanted) is not None:
            emitted += self._timed(PASS, SchedulingPassDue, {"cause": cause})
        return emitted

    def _timed(self, what: str, kind: type[Event], fields: dict[str, Any]) -> list[Any]:
        self._now += dt.timedelta(milliseconds=100)
        event = kind.model_validate({"id": f"{next(self._ids):08d}", "at": self._now, **fields})
        begun = time.perf_counter()
        instructions = handle(self.state, event, self._now)
        self.state.take_changes()
        self.state.forget()
        self.micros.setdefault(what, []).append((time.perf_counter() - begun) * 1e6)
        return instructions

    def a_life(self, run: str) -> None:
        """The events of a run in one day: steps, a save, a blip, a death, and a restart."""
        state = self.state
        seats = state.attempts[run].seats
        workers = tuple(seat.worker for seat in seats)
        for step in range(100, 501, 100):
            self.do("step reached", StepReached, run=run, attempt=1, step=step)
        for seat in seats:
            shard = a_shard(run, 1, 500, seat.ranks[0])
            fields = {"run": run, "worker": seat.worker, "attempt": 1}
            self.do("shard written", ShardWritten, **fields, shard=shard)
        checkpoint = f"{run}/1/directory/500"
        everyone = {"run": run, "attempt": 1, "workers": workers}
        self.do("gang read back", GangChecked, **everyone, checkpoint=checkpoint)
        self.do("finding", FindingRaised, run=run, attempt=1, finding=a_blip())
        lost = {"run": run, "worker": workers[0]}
        self.do("out of contact", WorkerLost, **lost, confirmed=False, reason="silent")
        self.do("back in contact", WorkerRegained, **lost)
        death = Failure(failure_class=FailureClass.UNKNOWN, reason="exit 1", signature="exit 1")
        self.do(
            "rank died",
            RankExited,
            run=run,
            worker=workers[0],
            attempt=1,
            rank=0,
            code=1,
            failure=death,
        )
        emitted = self.do("gang stopped, next one starts", GangStopped, **everyone)
        assert any(isinstance(each, BroadcastCommand) for each in emitted), emitted
        for seat in seats:
            fields = {"run": run, "worker": seat.worker, "attempt": 2, "rank": seat.ranks[0]}
            self.do("rank ready", RankReady, **fields)
        for seat in seats:
            fields = {"run": run, "worker": seat.worker, "attempt": 2, "rank": seat.ranks[0]}
            self.do("rank restored", RankRestored, **fields, step=500, checkpoint=checkpoint)
        self.do("step reached", StepReached, run=run, attempt=2, step=501)


def a_shard(run: str, attempt: int, step: int, rank: int) -> ShardReport:
    file = ShardFile(name="data", bytes=10, blake2b="00" * 16)
    return ShardReport(
        attempt=attempt,
        step=step,
        rank=rank,
        world_size=NODES_EACH,
        tier=Tier.DIRECTORY,
        path=f"/checkpoints/{run}/{step}",
        batch=step,
        files=(file,),
    )


def a_blip() -> Finding:
    return Finding(
        kind=FindingKind.LOSS_BLIP,
        severity=Severity.INFO,
        attempt=1,
        rank=None,
        onset_step=500,
        onset_batch=500,
        detected_step=501,
        onset_time=NOW.timestamp(),
        detected_time=NOW.timestamp(),
        reason="the loss jumped and came back",
    )


def measure_events(size: tuple[int, int, int], lives: int) -> dict[str, list[float]]:
    """Microseconds by kind of event."""
    bench = Bench(busy(*size))
    for i in range(min(lives, size[1])):
        bench.a_life(f"run-{i:05d}")
    for i in range(min(3, lives)):
        wanted = spec(f"new-{i}", too_many(size[0], size[1]))
        bench.do("run submitted", RunSubmitted, run=f"new-{i}", spec=wanted)
        bench.do("run cancelled", RunCancelled, run=f"new-{i}")
    return bench.micros


def measure_llama(changes: dict[str, str]) -> tuple[float, float, dict[str, Any]]:
    """Wall and processor seconds of `llama3_16k`, and its report."""
    world = World(load("llama3_16k").scenario(changes))
    begun, used = time.perf_counter(), time.process_time()
    world.run()
    return time.perf_counter() - begun, time.process_time() - used, report(world)


def slope(sizes: list[float], costs: list[float]) -> float:
    """The exponent of growth: the slope of a line through the logarithms."""
    xs, ys = [math.log(size) for size in sizes], [math.log(cost) for cost in costs]
    return statistics.linear_regression(xs, ys).slope


def scaled(size: tuple[int, int, int], divisor: int) -> tuple[int, int, int]:
    nodes, running, waiting = (count // divisor for count in size)
    return nodes, running, waiting


def of_events(micros: dict[str, list[float]]) -> list[float]:
    """The durations of all events, without passes."""
    return [each for kind, values in micros.items() if kind != PASS for each in values]


def rows(micros: dict[str, list[float]]) -> Iterator[list[str]]:
    for kind, values in micros.items():
        ordered = sorted(values)
        yield [
            kind,
            str(len(values)),
            f"{statistics.median(values):,.0f}",
            f"{ordered[int(0.99 * len(ordered))]:,.0f}",
        ]


def draw(path: Path, events: Curve, llama: Curve) -> None:
    """Plot both curves, with lines of exponent 1."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.5), layout="constrained")
    panels = zip(
        figure.subplots(1, 2),
        (events, llama),
        ("one event through the core, median", "llama3_16k, 54 days"),
        ("microseconds", "seconds"),
        strict=True,
    )
    for axes, (sizes, costs), title, unit in panels:
        axes.loglog(sizes, costs, marker="o", label="measured")
        linear = [costs[0] * size / sizes[0] for size in sizes]
        axes.loglog(sizes, linear, linestyle=":", color="gray", label="linear")
        axes.set_title(title)
        axes.set_xlabel("nodes")
        axes.set_ylabel(unit)
        axes.grid(alpha=0.3, which="both")
        axes.legend()
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="A tenth of the size, for a look.")
    parser.add_argument("--picture", type=Path, metavar="FILE.png")
    options = parser.parse_args()
    divisor, lives = (10, 5) if options.quick else (1, 30)
    full = scaled(FULL, divisor)
    by_size = {float(scaled(full, d)[0]): measure_events(scaled(full, d), lives) for d in (100, 10)}
    micros = measure_events(full, lives)
    by_size[float(full[0])] = micros
    table(["EVENT", "N", "MEDIAN µs", "P99 µs"], list(rows(micros)))
    print()
    medians = [statistics.median(of_events(each)) for each in by_size.values()]
    whole = 2048 // divisor
    days = {"days": "5.4", "failure_rate": "0.1"} if options.quick else {}
    llama_sizes = [whole // 100, whole // 10, whole]
    measured = [
        measure_llama({"nodes": str(nodes), "spares": str(max(8, nodes // 64)), **days})
        for nodes in llama_sizes
    ]
    seconds, used, emitted = measured[-1]
    sizes = [float(nodes) for nodes in llama_sizes]
    costs = [cpu for _, cpu, _ in measured]  # processor time, which other load does not affect
    table(
        ["LOST TO", "SHARE"], [[row["cause"], f"{row['share']:.3%}"] for row in emitted["losses"]]
    )
    print()
    everything = of_events(micros)
    figures = {
        "event_microseconds_median": statistics.median(everything),
        "event_microseconds_p99": sorted(everything)[int(0.99 * len(everything))],
        "event_microseconds_median_by_kind": {
            kind: statistics.median(values) for kind, values in micros.items()
        },
        "event_pass_milliseconds_median": statistics.median(micros[PASS]) / 1e3,
        "event_nodes": full[0],
        "event_running_runs": full[1],
        "event_pending_runs": full[2],
        "event_growth_exponent": slope(list(by_size), medians),
        "llama3_16k_seconds": seconds,
        "llama3_16k_cpu_seconds": used,
        "llama3_16k_ettr": emitted["ettr"],
        "llama3_16k_expected_ettr": emitted["expected_ettr"],
        "llama3_16k_interruptions": emitted["interruptions"],
        "llama3_16k_expected_interruptions": emitted["expected_interruptions"],
        "llama3_16k_nodes": whole,
        "llama3_16k_cpu_seconds_by_nodes": dict(zip(map(str, llama_sizes), costs, strict=True)),
        "growth_exponent": slope(sizes, costs),
    }
    if options.picture:
        draw(options.picture, (list(by_size), medians), (sizes, costs))
    last_line(figures)


if __name__ == "__main__":
    main()
