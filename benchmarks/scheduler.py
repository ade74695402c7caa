"""Cost of a scheduling pass with 10,000 nodes, 2,000 running and 5,000 pending runs, and fewer.

    python benchmarks/scheduler.py [--passes N] [--shapes N] [--picture FILE.png]

`plan` is the pass alone, over consecutive passes in which runs are placed, preempted, end and
arrive. `pass` includes the snapshot from the core's state, as in production. Both are also given in
CPU time, which other work on the machine changes less. Growth is the slope of
log(seconds) over log(size) between a hundredth of that size and all of it: 1 is linear. The peer is
the time of a plain sort of the nodes for each pending run, which a scheduler without columns and
cached kinds pays.

Then follow the shapes of `support/scheduler_shapes.py`, at which a pass is most expensive: the CPU
time of `plan` at a quarter, half and all of the size, in turn, so that a machine whose speed varies
slows all of them alike. Growth is the slope of the line through the logarithms of the shortest.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime as dt
import functools
import math
import random
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

sys.path.insert(0, str(Path(__file__).parents[1]))  # run from anywhere

from benchmarks.support.harness import last_line, table
from benchmarks.support.scheduler_shapes import Shapes
from jobs.spec import Priority, RunSpec
from orchestrator.core.model.entities import (
    Attempt,
    Checkpoint,
    Entity,
    Node,
    Queue,
    Run,
    Seat,
    Worker,
)
from orchestrator.core.model.state import State
from orchestrator.core.model.states import AttemptState, RunState, Trust, WorkerState
from orchestrator.core.model.time_ledger import Ledger
from orchestrator.core.model.vocabulary import Timer
from orchestrator.core.placement import snapshot as placement_snapshot
from orchestrator.core.scheduling import Holding, Plan, Snapshot, plan
from orchestrator.garbage_collection import collect_rarely

Result = TypeVar("Result")
NOW = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
NODES, RUNNING, PENDING = 10_000, 2_000, 5_000
SCALES = (0.01, 0.1, 1.0)
SHAPE_NODES = (NODES // 4, NODES // 2, NODES)
ENDING = 0.01
"""Share of the running runs that end between two passes."""
WARM_UP = 10
"""Passes until the priorities of running and waiting runs are balanced."""
PEER_DEMANDS = 50
"""Pending runs over which the peer is timed; the time for all is extrapolated."""


def fleet(scale: float, seed: int = 1) -> State:
    """Racks of 16 nodes with 8 GPUs, mostly busy; run sizes as on LLM clusters: mostly small."""
    random_ = random.Random(seed)
    entities: list[Entity] = [Queue(name=f"q{i}", gpus=None if i else 40_000) for i in range(4)]
    nodes = [
        Node(
            id=f"node-{i:05}",
            gpus=8,
            cpus=128,
            labels={"zone": str(i // 4096), "spine": str(i // 256), "rack": str(i // 16)},
        )
        for i in range(int(NODES * scale))
    ]
    entities += nodes
    free = [node.id for node in nodes]
    random_.shuffle(free)
    for i in range(int(RUNNING * scale)):
        wanted = min(len(free), random_.choice([1, 1, 1, 2, 2, 4, 8, 16]))
        taken, free = free[:wanted], free[wanted:]
        entities += running(i, taken, random_)
    for i in range(int(PENDING * scale)):
        entities.append(pending(i, random_))
    return State(entities)


def spec(name: str, nodes: int, random_: random.Random) -> RunSpec:
    """A run of a random queue, project and priority; half of the runs have a max_runtime."""
    return RunSpec.model_validate(
        {
            "name": name,
            "command": ["train"],
            "queue": f"q{random_.randrange(4)}",
            "project": f"p{random_.randrange(20)}",
            "priority": random_.choice(list(Priority)),
            "resources": {"nodes": nodes, "gpus_per_node": 8, "cpus_per_node": 64},
            "placement": {"pack": random_.choice(["any", "any", "any", "spine", "rack"])},
            "max_runtime": random_.choice([None, float(random_.randrange(600, 86_400))]),
        }
    )


def running(i: int, nodes: list[str], random_: random.Random) -> list[Entity]:
    """A run with its workers, its attempt, and a checkpoint."""
    run = Run(
        id=f"run-{i}",
        name=f"run-{i}",
        spec=spec(f"run-{i}", max(1, len(nodes)), random_),
        submitted_at=NOW - dt.timedelta(days=1),
        state=RunState.RUNNING,
        attempt=1,
        started_at=NOW - dt.timedelta(hours=20),
        ledger=Ledger(since=NOW),
    )
    if run.spec.max_runtime is not None:
        ends = NOW + dt.timedelta(seconds=run.spec.max_runtime)
        run = dataclasses.replace(run, timers={Timer.MAX_RUNTIME: {"": ends}})
    workers = [
        Worker(
            id=f"{run.id}-w{j}",
            run=run.id,
            node=node,
            state=WorkerState.READY,
            launched_at=NOW - dt.timedelta(hours=20),
        )
        for j, node in enumerate(nodes)
    ]
    attempt = Attempt(
        run=run.id,
        number=1,
        state=AttemptState.RUNNING,
        seats=tuple(Seat(worker=w.id, node=w.node, ranks=(j,)) for j, w in enumerate(workers)),
        world_size=len(nodes),
        started_at=NOW - dt.timedelta(hours=20),
        first_step_at=NOW - dt.timedelta(hours=19),
    )
    saved = Checkpoint(
        id=f"{run.id}/1/directory/100",
        run=run.id,
        attempt=1,
        step=100,
        tier="directory",  # type: ignore[arg-type]  # the value of a StrEnum
        world_size=len(nodes),
        path="/checkpoints",
        trust=Trust.GOOD,
        created_at=NOW - dt.timedelta(minutes=random_.randrange(1, 60)),
    )
    return [run, *workers, attempt, saved]


def pending(i: int, random_: random.Random) -> Run:
    """A run that waits."""
    nodes = random_.choice([1, 1, 2, 4, 8, 16, 64, 256])
    return Run(
        id=f"wait-{i:05}",
        name=f"wait-{i}",
        spec=spec(f"wait-{i}", nodes, random_),
        submitted_at=NOW - dt.timedelta(seconds=random_.randrange(86_400)),
        ledger=Ledger(since=NOW),
    )


def timed(work: Callable[[], Result]) -> tuple[Result, float, float]:
    """The result of a call, and its seconds: elapsed, and of CPU time."""
    begun, cpu = time.perf_counter(), time.process_time()
    result = work()
    return result, time.perf_counter() - begun, time.process_time() - cpu


def medians(work: Callable[[], object], passes: int) -> tuple[float, float]:
    """Median seconds of repeated calls, elapsed and of CPU time, after one warm-up call."""
    work()
    times = [timed(work)[1:] for _ in range(passes)]
    return statistics.median(t[0] for t in times), statistics.median(t[1] for t in times)


def peer(snapshot: Snapshot) -> None:
    """For every pending run, look at every node and sort the fitting ones."""
    free = dict.fromkeys(snapshot.table.names, 8)
    for holding in snapshot.holdings:
        for node in holding.nodes:
            free[node] -= holding.need.gpus_per_node
    for demand in snapshot.demands[:PEER_DEMANDS]:
        fits = [node for node, gpus in free.items() if gpus >= demand.need.gpus_per_node]
        fits.sort(key=lambda node: (free[node], node))


def next_snapshot(before: Snapshot, outcome: Plan, random_: random.Random) -> Snapshot:
    """The next snapshot: placed runs hold nodes, preempted ones left, some ended, some arrived."""
    left = {eviction.run: set(eviction.nodes) for eviction in outcome.evictions}
    holdings = [
        dataclasses.replace(h, nodes=tuple(n for n in h.nodes if n not in left.get(h.run, ())))
        for h in before.holdings
        if random_.random() > ENDING
    ]
    demands = {demand.run: demand for demand in before.demands}
    for run, nodes in outcome.placements.items():
        demand = demands.pop(run)
        holdings.append(
            Holding(
                run=run,
                need=demand.need,
                nodes=nodes,
                queue=demand.queue,
                project=demand.project,
                priority=demand.priority,
            )
        )
    waiting = [dataclasses.replace(d, claim=outcome.claims.get(run)) for run, d in demands.items()]
    new = random_.sample(before.demands, min(len(before.demands), len(outcome.placements)))
    fresh = (dataclasses.replace(d, run=f"{d.run}+", claim=None, submitted_at=NOW) for d in new)
    waiting += [demand for demand in fresh if demand.run not in demands]
    return dataclasses.replace(before, holdings=[h for h in holdings if h.nodes], demands=waiting)


def measured(scale: float, passes: int) -> dict[str, float]:
    """Figures at one size, for consecutive passes and for making a snapshot."""
    state, random_ = fleet(scale), random.Random(2)
    snapshot = placement_snapshot.snapshot(state, NOW)
    times: list[float] = []
    cpu_times: list[float] = []
    placed = evicted = 0
    for number in range(WARM_UP + passes):
        outcome, elapsed, cpu = timed(functools.partial(plan, snapshot, NOW))
        if number >= WARM_UP:
            times.append(elapsed)
            cpu_times.append(cpu)
            placed += len(outcome.placements)
            evicted += len(outcome.evictions)
        snapshot = next_snapshot(snapshot, outcome, random_)
    making, making_cpu = medians(
        lambda: placement_snapshot.snapshot(state, NOW), max(1, passes // 2)
    )
    other, _ = medians(lambda: peer(snapshot), max(1, passes // 3))
    plan_cpu = statistics.median(cpu_times)
    return {
        "nodes": len(state.nodes),
        "demands": len(snapshot.demands),
        "plan_seconds": statistics.median(times),
        "plan_seconds_max": max(times),
        "plan_cpu_seconds": plan_cpu,
        "pass_seconds": statistics.median(times) + making,
        "pass_cpu_seconds": plan_cpu + making_cpu,
        "peer_seconds": other * len(snapshot.demands) / PEER_DEMANDS,
        "placed": placed,
        "evictions": evicted,
    }


def exponent(rows: list[dict[str, float]], key: str) -> float:
    """Slope of the logarithms between the smallest and the largest size."""
    first, last = rows[0], rows[-1]
    return math.log(last[key] / first[key]) / math.log(last["nodes"] / first["nodes"])


def shaped(name: str, passes: int) -> list[list[float]]:
    """Milliseconds of CPU time of several passes over one shape, at each of its sizes."""
    snapshots = [Shapes(nodes).all()[name]() for nodes in SHAPE_NODES]
    times: list[list[float]] = [[] for _ in snapshots]
    for _ in range(passes):
        for own, snapshot in zip(times, snapshots, strict=True):
            _, _, cpu = timed(functools.partial(plan, snapshot, NOW))
            own.append(cpu * 1e3)
    return times


def shapes(passes: int) -> dict[str, dict[str, float]]:
    """Median, maximum and growth of every shape; printed as a table."""
    found = {}
    for name in Shapes(NODES).all():
        times = shaped(name, passes)
        sizes = [math.log(nodes) for nodes in SHAPE_NODES]
        shortest = [math.log(min(own)) for own in times]
        found[name] = {
            "median": statistics.median(times[-1]),
            "max": max(times[-1]),
            "growth_exponent": statistics.linear_regression(sizes, shortest).slope,
        }
    table(
        ["shape", "median ms", "max ms", "growth"],
        [
            [name, *(f"{figures[key]:.1f}" for key in ("median", "max")),
             f"{figures['growth_exponent']:.2f}"]
            for name, figures in found.items()
        ],
    )  # fmt: skip
    return found


def draw(rows: list[dict[str, float]], file: str) -> None:
    """Plot seconds over nodes, both logarithmic."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4.5))
    sizes = [row["nodes"] for row in rows]
    for key in ("plan_seconds", "pass_seconds", "peer_seconds"):
        axes.loglog(sizes, [row[key] for row in rows], marker="o", label=key.replace("_", " "))
    axes.loglog(sizes, [rows[0]["pass_seconds"] * n / sizes[0] for n in sizes], ":", label="linear")
    axes.set_xlabel("nodes (with a fifth as many running runs, and half as many pending)")
    axes.set_ylabel("seconds")
    axes.legend()
    axes.grid(visible=True, which="both", alpha=0.3)
    figure.savefig(file, dpi=120, bbox_inches="tight")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--passes", type=int, default=30)
    parser.add_argument("--shapes", type=int, default=7, help="passes over each shape; 0: none")
    parser.add_argument("--picture", help="where to draw the growth")
    options = parser.parse_args()
    collect_rarely()  # as the server does
    rows = [measured(scale, options.passes) for scale in SCALES]
    table(
        ["nodes", "demands", "plan ms", "CPU", "pass ms", "CPU", "peer ms", "placed", "evictions"],
        [
            [
                f"{row['nodes']:,.0f}",
                f"{row['demands']:,.0f}",
                f"{row['plan_seconds'] * 1e3:.2f}",
                f"{row['plan_cpu_seconds'] * 1e3:.2f}",
                f"{row['pass_seconds'] * 1e3:.2f}",
                f"{row['pass_cpu_seconds'] * 1e3:.2f}",
                f"{row['peer_seconds'] * 1e3:.0f}",
                f"{row['placed']:.0f}",
                f"{row['evictions']:.0f}",
            ]
            for row in rows
        ],
    )
    if options.picture:
        draw(rows, options.picture)
    last = rows[-1]
    by_shape = shapes(options.shapes) if options.shapes else {}
    last_line(
        {
            "plan_milliseconds_median": last["plan_seconds"] * 1e3,
            "plan_milliseconds_max": last["plan_seconds_max"] * 1e3,
            "plan_cpu_milliseconds_median": last["plan_cpu_seconds"] * 1e3,
            "pass_cpu_milliseconds_median": last["pass_cpu_seconds"] * 1e3,
            "pass_milliseconds_median": last["pass_seconds"] * 1e3,
            "sort_all_nodes_milliseconds_median": last["peer_seconds"] * 1e3,
            "growth_exponent": exponent(rows, "plan_seconds"),
            "pass_growth_exponent": exponent(rows, "pass_seconds"),
            "cpu_growth_exponent": exponent(rows, "plan_cpu_seconds"),
            "pass_cpu_growth_exponent": exponent(rows, "pass_cpu_seconds"),
            "nodes": last["nodes"],
            "running_runs": RUNNING,
            "pending_runs": last["demands"],
            "shapes": by_shape,
            "shapes_milliseconds_median_worst": max(
                (each["median"] for each in by_shape.values()), default=0.0
            ),
            "shapes_milliseconds_max": max(
                (each["max"] for each in by_shape.values()), default=0.0
            ),
            "shapes_growth_exponent_worst": max(
                (each["growth_exponent"] for each in by_shape.values()), default=0.0
            ),
        }
    )


if __name__ == "__main__":
    main()
