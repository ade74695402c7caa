"""Cost of a gang of 2,000 agents for the controller: a table, then one JSON line.

    python benchmarks/controller.py [--agents 2000] [--repeat 1]

The real controller, core and store (SQLite in a file) run here; the agents are scripted and send no
packet. Each phase is one answer of the whole gang: all agents report at once, and the phase ends
when the last report is stored. `together` is the messages that all agents send alike (joined,
ready, stopped); with `samples` each report has a step and a transaction of its own.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import structlog
from ulid import ULID

sys.path.insert(0, str(Path(__file__).parents[1]))  # run from anywhere

from benchmarks.support.harness import last_line, median, table, workplace
from benchmarks.support.running_controller import running_controller, until
from jobs.clock import SystemClock
from jobs.commands import AgentCommand
from jobs.events import (
    AttemptStopped,
    Event,
    RankReady,
    RankRestored,
    RankSamples,
    RanksStarted,
    Report,
    WorkerJoined,
)
from jobs.spec import RunSpec
from orchestrator.clusters.simulated import SimulatedCluster
from orchestrator.controller.controller import Controller
from orchestrator.core.messages.events import RunCancelled, RunSubmitted
from orchestrator.database import schema

RUN = "run-of-many"
GPUS = 8
SAMPLED = 10
"""One in this many agents reports a step in the phase with samples: most ranks do not report."""


class Agent:
    """One scripted agent: numbers its reports, and takes every command."""

    def __init__(self, controller: Controller, worker: str, rank: int, node: str) -> None:
        self.controller, self.worker, self.rank, self.node = controller, worker, rank, node
        self.sequence = 0
        self.seconds: list[float] = []
        """How long each report waited until it was stored."""

    async def send(self, command: AgentCommand) -> None:
        """Take a command."""
        self.controller.acknowledged(self.worker, command.id)

    async def report(self, attempt: int, kind: type[Event] | None, **fields: Any) -> None:
        """Send one report and wait until it is stored."""
        self.sequence += 1
        events = () if kind is None else (self._event(kind, attempt, **fields),)
        report = Report(
            sequence=self.sequence,
            attempt=attempt,
            events=events,
            samples=() if kind is not None else (step(self.rank, self.sequence),),
        )
        began = time.perf_counter()
        await self.controller.report(self.worker, report)
        self.seconds.append(time.perf_counter() - began)

    def _event(self, kind: type[Event], attempt: int, **fields: Any) -> Event:
        common = {"id": str(ULID()), "at": SystemClock().now(), "run": RUN, "worker": self.worker}
        return kind.model_validate({**common, "attempt": attempt, **fields})


def step(rank: int, number: int) -> RankSamples:
    columns = ("loss", "grad_norm", "tokens", "seconds", "blocked_seconds", "learning_rate")
    return RankSamples.model_validate(
        {
            "rank": rank,
            "step": [number],
            "batch": [number],
            "time": [float(number)],
            **{column: [1.0] for column in columns},
        }
    )


async def measure(url: str, count: int) -> dict[str, float]:
    """Seconds of each phase, from the first report to the last one stored."""
    await schema.upgrade(url)
    async with running_controller(url, count, GPUS) as (controller, cluster):
        return await phases(controller, cluster, count)


def request(kind: type[Event], **fields: Any) -> Event:
    return kind.model_validate({"id": str(ULID()), "at": SystemClock().now(), "run": RUN, **fields})


async def phases(controller: Controller, cluster: SimulatedCluster, count: int) -> dict[str, float]:
    spec = RunSpec.model_validate(
        {
            "name": "many",
            "command": ["python", "train.py"],
            "resources": {"nodes": count, "gpus_per_node": GPUS},
            "checkpoint": {"directory": "/checkpoints/many"},
        }
    )
    figures: dict[str, float] = {}

    async def phase(name: str, agents: list[Agent], work: Callable[[Agent], Any]) -> None:
        began = time.perf_counter()
        await asyncio.gather(*(work(agent) for agent in agents))
        figures[name] = time.perf_counter() - began

    began = time.perf_counter()
    await controller.submit(request(RunSubmitted, run=RUN, spec=spec))
    await until(lambda: sum(w.launch is not None for w in cluster.workers.values()) == count)
    figures["launch"] = time.perf_counter() - began
    agents = [
        Agent(controller, name, rank * GPUS, worker.node)
        for rank, (name, worker) in enumerate(cluster.workers.items())
    ]
    for agent in agents:
        await controller.attach(agent.worker, RUN, agent)
    await phase(
        "join",
        agents,
        lambda a: a.report(0, WorkerJoined, node=a.node, address=a.node, port=1),
    )
    await until(lambda: RUN in controller.state.attempts)
    seats = {seat.worker: seat for seat in controller.state.attempts[RUN].seats}
    for agent in agents:
        agent.rank = seats[agent.worker].ranks[0]
    await phase("started", agents, lambda a: a.report(1, RanksStarted, ranks=seats[a.worker].ranks))

    async def come_up(agent: Agent) -> None:
        for rank in seats[agent.worker].ranks:
            await agent.report(1, RankReady, rank=rank)
        for rank in seats[agent.worker].ranks:
            await agent.report(1, RankRestored, rank=rank, step=0)

    await phase("ready, restored", agents, come_up)
    await phase("samples", agents[::SAMPLED], lambda a: a.report(1, None))
    await controller.submit(request(RunCancelled, run=RUN, actor="benchmark", reason="enough"))
    await phase("stopped", agents, lambda a: a.report(1, AttemptStopped, port=2, last_step=1))
    figures["longest wait of a report"] = max(s for agent in agents for s in agent.seconds)
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--agents", type=int, default=2000)
    parser.add_argument("--repeat", type=int, default=1)
    given = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(40))
    runs = []
    with workplace("controller") as directory:
        for number in range(given.repeat):
            url = f"sqlite:///{directory / f'{number}.db'}"
            runs.append(asyncio.run(measure(url, given.agents)))
    found = {name: median([run[name] for run in runs]) for name in runs[0]}
    table(
        ["phase", "seconds (median)", "least", "most"],
        [
            [name, value, min(r[name] for r in runs), max(r[name] for r in runs)]
            for name, value in found.items()
        ],
    )
    last_line({"agents": given.agents, **found})


if __name__ == "__main__":
    main()
