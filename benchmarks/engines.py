"""Seconds from submission, and from the loss of a worker or a node, to a new step: all engines.

    python benchmarks/engines.py [--losses 2] [--idle-minutes 6] [--engines local kubernetes …]

The same FSDP run trains on this machine's virtual nodes, on a Ray cluster of several raylets, and
in Pods of the test bed: a real API server, scheduler and controller-manager, and a stand-in of the
kubelet (`scripts/kubernetes`). The row `ray_train` has the same script in the workers of a
`TorchTrainer`, which recovers by itself. A worker is lost by SIGKILL to all of its processes, of
Kubernetes by a forced deletion of its Pod; a node of Ray by SIGKILL to its raylet. A new step
is one that no rank had reached before; lost steps are steps that every rank had completed and that
are computed again. Then the requests of an idle control plane are counted, before 1,000 nodes of
which there are only objects, with and without 100 runs that wait.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import importlib.util
import random
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.support import engines, ray_engines
from benchmarks.support.engines import Engine, Kubernetes
from benchmarks.support.harness import last_line, median, path, submit, table, until, workplace
from benchmarks.support.ray_engines import RayTrain
from tests.kubernetes.servers import (
    EVICTION_SECONDS,
    NODE_GRACE_PERIOD,
    NODE_MONITOR_PERIOD,
    Servers,
    missing_programs,
)
from tests.ray.bed import DEAD_SECONDS

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


class Loss(NamedTuple):
    """The loss of a worker or a node, and what followed."""

    kind: str
    seconds: float
    """Until a new step."""
    lost_steps: int


@dataclasses.dataclass
class Figures:
    """Measurements of one engine; seconds."""

    submit: float = 0.0
    losses: list[Loss] = dataclasses.field(default_factory=list)
    restarts: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    """As the control plane lists them: one for each loss, and more if the run failed by itself."""
    plain_pod: tuple[float, float] = (0.0, 0.0)
    """Seconds until a bare Pod starts, and until its end is known."""

    def seconds(self, kind: str) -> float | None:
        """The median from the loss of a worker or a node to a new step; None: nothing was lost."""
        found = [loss.seconds for loss in self.losses if loss.kind == kind]
        return round(median(found), 3) if found else None

    def last_line(self) -> dict[str, Any]:
        """As the last line has it; None: this engine has no node to lose."""
        return {
            "submit_to_first_step_seconds": round(self.submit, 3),
            "worker_loss_to_new_step_seconds": self.seconds("worker"),
            "node_loss_to_new_step_seconds": self.seconds("node"),
            "lost_steps": max((loss.lost_steps for loss in self.losses), default=0),
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
    lose = {
        "worker": lambda: (engine.lose_worker(run), True)[1],
        "node": lambda: engine.lose_node(run),
    }
    figures.losses = lose_all(lose, engine.give_back, log, losses, chance)
    figures.restarts = engine.session.api.get(path("runs", run))["restarts"]
    engine.session.api.post(path("runs", run, "cancel"), reason="measured")
    return figures


def lose_all(
    lose: Mapping[str, Callable[[], bool]],
    give_back: Callable[[], None],
    log: Path,
    losses: int,
    chance: random.Random,
) -> list[Loss]:
    """Lose workers, then nodes, each while it trains; a kind that cannot be lost is left out."""
    found: list[Loss] = []
    for kind, act in lose.items():
        for _ in range(losses):
            step = max(line.step for line in lines(log, 0))
            until(functools.partial(is_at, log, step + STEPS_BETWEEN), "more steps", seconds=180)
            time.sleep(chance.uniform(0.0, 0.1))
            lost_at = time.time()
            if not act():
                break
            found.append(Loss(kind, *recover(log, lost_at)))
            if kind == "node":
                give_back()
    return found


def measure_ray_train(engine: RayTrain, losses: int, chance: random.Random) -> Figures:
    """Lose workers and nodes under Ray Train's own recovery."""
    figures = Figures()
    log = engine.shared / "steps"
    asked = time.time()
    engine.start(JOB, log, RANKS)
    until(functools.partial(is_at, log, 1), "the first step", seconds=180)
    figures.submit = max(lines(log, rank)[0].time for rank in range(RANKS)) - asked
    lose = {
        "worker": lambda: engine.lose_worker(log, RANKS - 1),
        "node": lambda: engine.lose_node(log, RANKS - 1),
    }
    figures.losses = lose_all(lose, engine.give_back, log, losses, chance)
    return figures


def show(found: dict[str, Figures]) -> None:
    """Print the tables."""
    events: list[tuple[object, ...]] = []
    restarts: list[tuple[object, ...]] = []
    for name, figures in found.items():
        events.append((name, "submission", figures.submit, ""))
        events += [(name, *loss) for loss in figures.losses]
        restarts += [
            (name, each["class"], *((each["seconds"] or {}).get(phase) or 0.0 for phase in PHASES))
            for each in figures.restarts
        ]
    table(("engine", "event", "to a new step (s)", "lost steps"), events)
    print()
    table(("engine", "restart", *PHASES), restarts)
    if "kubernetes" in found and "local" in found:
        there, here = found["kubernetes"], found["local"]
        start, end = there.plain_pod
        submit = there.submit - here.submit - start
        lost = (there.seconds("worker") or 0.0) - (here.seconds("worker") or 0.0)
        print(
            f"Kubernetes less this machine, less a bare Pod: {submit:.2f} s from a submission,"
            f" {lost - start - end:.2f} s from the loss of a worker"
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


def missing_ray() -> str:
    """Why there is no Ray here; empty: there is one."""
    lacking = [name for name in ("ray", "pyarrow") if importlib.util.find_spec(name) is None]
    return f"{' and '.join(lacking)} is not installed: pip install 'ray[train]'" if lacking else ""


def on_ray(directory: Path, losses: int, wanted: Sequence[str], found: dict[str, Figures]) -> str:
    """Measure Ray: babysit on it, and Ray Train by itself, one after the other on one cluster.

    Returns why a row is missing; empty: none is. The figures of other engines are worth a last line
    without it: Ray does not start at all on a machine that is short of processor time.
    """
    print(f"Ray: the node of a killed raylet is dead after {DEAD_SECONDS:g} s (its default: 15 s)")
    try:
        with ray_engines.ray_cluster() as (address, nodes):
            if "ray" in wanted:
                with ray_engines.on_ray(directory / "ray", address, nodes) as engine:
                    found["ray"] = measure(engine, directory, losses, random.Random(1))
            if "ray_train" in wanted:
                with ray_engines.ray_train(directory / "ray-train", address, nodes) as trainer:
                    found["ray_train"] = measure_ray_train(trainer, losses, random.Random(1))
    except (AssertionError, OSError, TimeoutError) as error:
        return str(error)[-500:]
    return ""


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


ENGINES = ("local", "ray", "ray_train", "kubernetes")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--losses", type=int, default=2, help="of a worker, and of a node")
    parser.add_argument("--idle-minutes", type=float, default=6.0, help="0: do not count them")
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=ENGINES)
    arguments = parser.parse_args()
    losses: int = arguments.losses
    found: dict[str, Figures] = {}
    extra: dict[str, dict[str, Any]] = {}
    missing = {"kubernetes": missing_programs(), "ray": missing_ray()}
    with workplace("engines") as directory:
        if "local" in arguments.engines:
            with engines.local(directory / "local") as engine:
                found["local"] = measure(engine, directory, losses, random.Random(1))
        if not missing["ray"] and {"ray", "ray_train"}.intersection(arguments.engines):
            missing["ray"] = on_ray(directory, losses, arguments.engines, found)
        if not missing["kubernetes"] and "kubernetes" in arguments.engines:
            found["kubernetes"], extra["kubernetes"] = on_kubernetes(
                directory, losses, arguments.idle_minutes
            )
    for name, why in missing.items():
        if why and any(each.startswith(name) for each in arguments.engines):
            print(f"{name} is not measured: {why}")
    show(found)
    print("Nodes of the engine `local` are virtual: none is lost without its machine.")
    last_line({name: figures.last_line() | extra.get(name, {}) for name, figures in found.items()})


if __name__ == "__main__":
    main()
