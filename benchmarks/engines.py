"""Seconds from submission, and from the loss of a worker or a node, to a new step: both engines.

    python benchmarks/engines.py [--losses 2] [--idle-minutes 6]

The same FSDP run trains on this machine's virtual nodes and in Pods of the test bed: a real API
server, scheduler and controller-manager, and a stand-in of the kubelet (`scripts/kubernetes`). A
worker is lost by SIGKILL to all of its processes here, and there by a forced deletion of its Pod. A
new step is one that no rank had reached before; lost steps are steps that every rank had completed
and that are computed again. Then the requests of an idle control plane are counted, before 1,000
nodes of which there are only objects, with and without 100 runs that wait.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import random
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.support import engines
from benchmarks.support.engines import Engine, Kubernetes
from benchmarks.support.harness import last_line, median, path, submit, table, until, workplace
from tests.kubernetes.servers import (
    EVICTION_SECONDS,
    NODE_GRACE_PERIOD,
    NODE_MONITOR_PERIOD,
    Servers,
    missing_programs,
)

ROOT = Path(__file__).resolve().parents[1]
JOB = ROOT / "benchmarks" / "support" / "recovery_job.py"
RANKS = 2
STEPS_BETWEEN = 15
SIMULATED_NODES, WAITING_RUNS = 1000, 100
PHASES = ("detect", "stop", "place", "start", "restore", "recompute")


@dataclasses.dataclass(frozen=True)
class Line:
    """One step of one rank."""

    time: float
    step: int
    attempt: int


@dataclasses.dataclass
class Figures:
    """Measurements of one engine; seconds."""

    submit: float = 0.0
    worker: list[float] = dataclasses.field(default_factory=list)
    node: list[float] = dataclasses.field(default_factory=list)
    lost_steps: list[int] = dataclasses.field(default_factory=list)
    restarts: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    """As the control plane lists them: one for each loss, and more if the run failed by itself."""
    plain_pod: tuple[float, float] = (0.0, 0.0)
    """Seconds until a bare Pod starts, and until its end is known."""

    def last_line(self) -> dict[str, Any]:
        """As the last line has it; None: this engine has no node to lose."""
        return {
            "submit_to_first_step_seconds": round(self.submit, 3),
            "worker_loss_to_new_step_seconds": round(median(self.worker), 3),
            "node_loss_to_new_step_seconds": round(median(self.node), 3) if self.node else None,
            "lost_steps": max(self.lost_steps),
        }


def lines(log: Path, rank: int) -> list[Line]:
    """The steps that a rank has logged; an incomplete line is left out."""
    file = log.with_suffix(f".{rank}")
    if not file.exists():
        return []
    rows = [row.split() for row in file.read_text().splitlines(keepends=True) if row.endswith("\n")]
    return [Line(float(when), int(step), int(attempt)) for when, step, _, attempt in rows]


def is_at(log: Path, step: int) -> bool:
    """True if every rank has completed the step."""
    return all(any(line.step >= step for line in lines(log, rank)) for rank in range(RANKS))


def train(engine: Engine, directory: Path) -> tuple[str, Path, float]:
    """Submit the run; its id, its log, and the seconds to its first step."""
    log = engine.shared / "steps"
    spec = {
        "name": f"engines-{engine.name}",
        "command": [sys.executable, str(JOB), str(log), "", "1000000"],
        "workdir": str(engine.shared),
        "env": {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        "resources": {"nodes": RANKS},
        "checkpoint": {
            "directory": str(engine.shared / "checkpoints"),
            "every_steps": 10,
            "memory_every_steps": 1,
        },
        "preload": ["torch", "torch.distributed.fsdp", "torch.distributed.checkpoint"],
        **engine.spec,
    }
    asked = time.time()
    run = submit(engine.session, directory, spec)
    until(functools.partial(is_at, log, 1), "the first step", seconds=180)
    return run, log, max(lines(log, rank)[0].time for rank in range(RANKS)) - asked


def recover(log: Path, lost_at: float) -> tuple[float, int]:
    """Wait for a step that no rank had reached: the seconds until then, and the lost steps."""
    before = [[line for line in lines(log, rank) if line.time <= lost_at] for rank in range(RANKS)]
    attempt = max(line.attempt for rank in before for line in rank)

    def fresh() -> list[Line]:
        # The other ranks may have gone on for a step or two.
        reached = max(n.step for r in range(RANKS) for n in lines(log, r) if n.attempt <= attempt)
        found = [line for line in lines(log, 0) if line.attempt > attempt]
        return found if found and found[-1].step > reached else []

    found = until(fresh, "a new step", seconds=300)
    old = [[n for n in lines(log, rank) if n.attempt <= attempt] for rank in range(RANKS)]
    reached = max(line.step for rank in old for line in rank)
    whole = min(rank[-1].step for rank in old)
    new = next(line for line in found if line.step > reached)
    return new.time - lost_at, max(0, whole - (found[0].step - 1))


def measure(engine: Engine, directory: Path, losses: int, chance: random.Random) -> Figures:
    """Everything that is measured of one run."""
    figures = Figures()
    run, log, figures.submit = train(engine, directory)
    for kind in ("worker", "node"):
        for _ in range(losses):
            step = max(line.step for line in lines(log, 0))
            until(functools.partial(is_at, log, step + STEPS_BETWEEN), "more steps", seconds=180)
            time.sleep(chance.uniform(0.0, 0.1))
            lost_at = time.time()
            if kind == "worker":
                engine.lose_worker(run)
            elif not engine.lose_node(run):
                break
            seconds, lost = recover(log, lost_at)
            getattr(figures, kind).append(seconds)
            figures.lost_steps.append(lost)
            if kind == "node":
                engine.give_back()
    figures.restarts = engine.session.api.get(path("runs", run))["restarts"]
    engine.session.api.post(path("runs", run, "cancel"), reason="measured")
    return figures


def show(found: dict[str, Figures]) -> None:
    """Print the tables."""
    events: list[tuple[object, ...]] = []
    restarts: list[tuple[object, ...]] = []
    for name, figures in found.items():
        events.append((name, "submission", figures.submit, ""))
        kinds = ["worker"] * len(figures.worker) + ["node"] * len(figures.node)
        seconds = [*figures.worker, *figures.node]
        events += [(name, *event) for event in zip(kinds, seconds, figures.lost_steps, strict=True)]
        restarts += [
            (name, each["class"], *(each["seconds"].get(phase) or 0.0 for phase in PHASES))
            for each in figures.restarts
        ]
    table(("engine", "event", "to a new step (s)", "lost steps"), events)
    print()
    table(("engine", "restart", *PHASES), restarts)
    if "kubernetes" in found:
        there, here = found["kubernetes"], found["local"]
        start, end = there.plain_pod
        submit = there.submit - here.submit - start
        loss = median(there.worker) - median(here.worker) - start - end
        print(
            f"Kubernetes less this machine, less a bare Pod: {submit:.2f} s from a submission,"
            f" {loss:.2f} s from the loss of a worker"
        )


def idle(directory: Path, minutes: float) -> dict[str, float]:
    """Requests in an hour of an idle control plane before many nodes, from some minutes of it."""
    figures = {}
    with (
        Servers(watch_nodes=False) as servers,
        engines.kubernetes(servers, directory, nodes=0, simulated=SIMULATED_NODES) as engine,
    ):
        for runs in (0, WAITING_RUNS):
            if runs:
                engine.session.api.post(path("hold"), reason="the runs of a benchmark wait")
                for number in range(runs):
                    spec = {"name": f"waits-{number}", "command": ["true"], **engine.spec}
                    submit(engine.session, directory, {**spec, "workdir": str(engine.shared)})
            before = Counter(engine.proxy.calls)
            time.sleep(60 * minutes / 2)
            calls = engines.since(engine.proxy.calls, before)
            print(f"idle for {minutes / 2:g} min with {runs} runs: {engines.words(calls)}")
            figures[f"with_{runs}_runs"] = sum(calls.values()) * 60 / (minutes / 2)
    return figures


def on_kubernetes(directory: Path, losses: int, minutes: float) -> tuple[Figures, dict[str, Any]]:
    """Measure Kubernetes: the run, and what its last line has besides."""
    print(
        f"Kubernetes: node-monitor-period {NODE_MONITOR_PERIOD} s, node-monitor-grace-period"
        f" {NODE_GRACE_PERIOD} s (its default: 40 s), eviction after {EVICTION_SECONDS} s"
    )
    with Servers() as servers, engines.kubernetes(servers, directory / "pods") as engine:
        start, end = engine.plain_pod_seconds()
        print(f"a bare Pod starts after {start:.2f} s; its end is known after {end:.2f} s")
        calls = count_launch(engine, directory)
        figures = measure(engine, directory, losses, random.Random(1))
        figures.plain_pod = start, end
    extra: dict[str, Any] = {
        "bare_pod_start_seconds": round(start, 3),
        "bare_pod_end_seconds": round(end, 3),
        "api_calls_per_worker_launched": calls,
    }
    if minutes:
        extra["api_calls_per_idle_hour"] = idle(directory / "idle", minutes)
    return figures, extra


def count_launch(engine: Kubernetes, directory: Path) -> float:
    """Requests of the control plane for each worker of a run, from its submission to its end."""
    before = Counter(engine.proxy.calls)
    spec = {"name": "counted", "command": ["true"], "resources": {"nodes": RANKS}, **engine.spec}
    run = submit(engine.session, directory, {**spec, "workdir": str(engine.shared)})
    until(
        lambda: engine.session.api.get(path("runs", run))["ended_at"],
        "a run of no step",
        seconds=90,
    )
    time.sleep(1.0)
    calls = engines.since(engine.proxy.calls, before)
    print(f"requests of a run of {RANKS} workers, from submission to end: {engines.words(calls)}")
    return sum(calls.values()) / RANKS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--losses", type=int, default=2, help="of a worker, and of a node")
    parser.add_argument("--idle-minutes", type=float, default=6.0, help="0: do not count them")
    arguments = parser.parse_args()
    found: dict[str, Figures] = {}
    extra: dict[str, dict[str, Any]] = {}
    missing = missing_programs()
    with workplace("engines") as directory:
        with engines.local(directory / "local") as engine:
            found["local"] = measure(engine, directory, arguments.losses, random.Random(1))
        if missing:
            print(f"Kubernetes is not measured: {missing}")
        else:
            found["kubernetes"], extra["kubernetes"] = on_kubernetes(
                directory, arguments.losses, arguments.idle_minutes
            )
    show(found)
    print("Nodes of the engine `local` are virtual: none is lost without its machine.")
    last_line({name: figures.last_line() | extra.get(name, {}) for name, figures in found.items()})


if __name__ == "__main__":
    main()
