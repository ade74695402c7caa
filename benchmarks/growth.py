"""Size of the database after 30 days of a large run: a table, then one JSON line.

    python benchmarks/growth.py [--nodes 1000] [--checkpoints 8] [--days 30]

The real controller, core, store and retention (SQLite in a file); agents are scripted. A run of
`--nodes` with 8 ranks each saves `--checkpoints` times: every rank reports its shard with hashes,
every agent reads back and deletes on command. What one checkpoint leaves behind, once the shards of
deleted ones are pruned, times a checkpoint each half hour, and a step each 5 s of the rank that
speaks for the run, gives the size after `--days`. The measure is what is in use of the file.
"""

from __future__ import annotations

import argparse
import asyncio
import datetime as dt
import hashlib
import random
import sys
from pathlib import Path
from typing import Any

import structlog

sys.path.insert(0, str(Path(__file__).parents[1]))  # run from anywhere

from babysit.wire import Tier
from benchmarks import controller as gang
from benchmarks.support.harness import last_line, table, workplace
from benchmarks.support.running_controller import running_controller, until
from jobs.clock import SystemClock
from jobs.commands import AgentCommand, DeleteCheckpoint, VerifyCheckpoint
from jobs.events import (
    CheckpointChecked,
    CheckpointDeleted,
    Event,
    RankReady,
    RankRestored,
    RanksStarted,
    Report,
    ShardWritten,
    WorkerJoined,
)
from jobs.shards import ShardFile, ShardReport
from jobs.spec import RunSpec
from orchestrator.clusters.simulated import SimulatedCluster
from orchestrator.controller.controller import Controller
from orchestrator.core.messages.events import RunSubmitted
from orchestrator.database import retention, schema
from orchestrator.database.engine import Database

GPUS = gang.GPUS
SAVES_A_DAY = 48
STEPS_A_DAY = 86_400 // 5
SHARD_BYTES = 10 * 2**30
SAMPLES = 512
"""Samples of one report of the phase that measures them."""


class SavingAgent(gang.Agent):
    """An agent that answers the commands about checkpoints."""

    def __init__(self, controller: Controller, worker: str, node: str) -> None:
        super().__init__(controller, worker, 0, node)
        self.ranks: tuple[int, ...] = ()
        self._answers: set[asyncio.Task[None]] = set()

    async def send(self, command: AgentCommand) -> None:
        """Take a command."""
        await super().send(command)
        match command:
            case VerifyCheckpoint():
                self._answer(CheckpointChecked, command.checkpoint, ok=True, seconds=60.0)
            case DeleteCheckpoint():
                self._answer(CheckpointDeleted, command.checkpoint)
            case _:
                pass

    def _answer(self, kind: type[Event], checkpoint: str, **fields: Any) -> None:
        task = asyncio.create_task(self.report(1, kind, checkpoint=checkpoint, **fields))
        self._answers.add(task)
        task.add_done_callback(self._answers.discard)

    async def settle(self) -> None:
        """Wait until all answers are stored."""
        await asyncio.gather(*self._answers)

    async def tell(self, *events: Event) -> None:
        """Send one report of several events, and wait until it is stored."""
        self.sequence += 1
        report = Report(sequence=self.sequence, attempt=1, events=events)
        await self.controller.report(self.worker, report)

    def made(self, kind: type[Event], **fields: Any) -> Event:
        """An event of this agent."""
        return self._event(kind, 1, **fields)

    async def save(self, step: int, world: int) -> None:
        """Report the shards of all ranks."""
        shards = [
            ShardReport(
                attempt=1,
                step=step,
                rank=rank,
                world_size=world,
                tier=Tier.DIRECTORY,
                path=f"/checkpoints/many/step-{step:09d}",
                batch=step,
                files=(_file(step, rank),),
                copy_seconds=1.25,
                write_seconds=30.5,
                run=gang.RUN,
            )
            for rank in self.ranks
        ]
        await self.tell(*(self.made(ShardWritten, shard=shard.model_dump()) for shard in shards))


def _file(step: int, rank: int) -> ShardFile:
    digest = hashlib.blake2b(f"{step}/{rank}".encode(), digest_size=16).hexdigest()
    return ShardFile(name="shard.bin", bytes=SHARD_BYTES, blake2b=digest)


async def bring_up(controller: Controller, cluster: SimulatedCluster, count: int) -> list[Any]:
    """A run whose ranks have all restored."""
    spec = RunSpec.model_validate(
        {
            "name": "many",
            "command": ["python", "train.py"],
            "resources": {"nodes": count, "gpus_per_node": GPUS, "processes_per_node": GPUS},
            "checkpoint": {"directory": "/checkpoints/many", "every_steps": 360, "keep": 3},
        }
    )
    await controller.submit(gang.request(RunSubmitted, run=gang.RUN, spec=spec))
    workers = cluster.workers
    await until(lambda: sum(w.launch is not None for w in workers.values()) == count)
    agents = [SavingAgent(controller, name, worker.node) for name, worker in workers.items()]
    for agent in agents:
        await controller.attach(agent.worker, gang.RUN, agent)
    await asyncio.gather(
        *(a.report(0, WorkerJoined, node=a.node, address=a.node, port=1) for a in agents)
    )
    await until(lambda: gang.RUN in controller.state.attempts)
    seats = {seat.worker: seat for seat in controller.state.attempts[gang.RUN].seats}
    for agent in agents:
        agent.ranks = seats[agent.worker].ranks
        agent.rank = agent.ranks[0]
    await asyncio.gather(*(a.report(1, RanksStarted, ranks=a.ranks) for a in agents))
    for kind, more in ((RankReady, {}), (RankRestored, {"step": 0})):
        await asyncio.gather(
            *(a.tell(*(a.made(kind, rank=rank, **more) for rank in a.ranks)) for a in agents)
        )
    return agents


async def measure(url: str, count: int, saves: int) -> dict[str, float]:
    """Bytes that one checkpoint and one sample leave behind."""
    clock = SystemClock()
    await schema.upgrade(url)
    database = Database(url)
    async with running_controller(url, count, GPUS) as (controller, cluster):
        try:
            agents = await bring_up(controller, cluster, count)
            first = next(agent for agent in agents if 0 in agent.ranks)
            await _samples(first, 0)
            before = await retention.used_bytes(database)
            for number in range(1, 9):
                await _samples(first, number)
            sample = (await retention.used_bytes(database) - before) / (8 * SAMPLES)
            await _save(controller, agents, 10_000)  # the first of them makes what stays one
            sizes = []
            for number in range(2, saves + 2):
                await _save(controller, agents, 10_000 * number)
                later = clock.now() + dt.timedelta(days=2)
                await retention.prune(database, until=clock.now(), now=later)
                sizes.append(await retention.used_bytes(database))
            checkpoint = (sizes[-1] - sizes[len(sizes) // 2]) / (len(sizes) - 1 - len(sizes) // 2)
            await asyncio.gather(*(agent.settle() for agent in agents))
        finally:
            await database.close()
    return {"checkpoint": checkpoint, "sample": sample, "rest": before}


async def _samples(agent: SavingAgent, number: int) -> None:
    steps = list(range(number * SAMPLES + 1, (number + 1) * SAMPLES + 1))
    noise = random.Random(number)
    noisy = [noise.uniform(2.0, 3.0) for _ in steps]
    columns = gang.step(agent.rank, 1).model_dump() | {
        "step": steps,
        "batch": steps,
        "time": [
            1.7e9 + 5.0 * step + value / 1000 for step, value in zip(steps, noisy, strict=True)
        ],
        "loss": noisy,
        "grad_norm": [value / 7 for value in noisy],
        "tokens": [4e6] * SAMPLES,
        "seconds": [5 + value / 100 for value in noisy],
        "blocked_seconds": [0.0] * SAMPLES,
        "learning_rate": [3e-4] * SAMPLES,
    }
    agent.sequence += 1
    report = Report.model_validate({"sequence": agent.sequence, "attempt": 1, "samples": [columns]})
    await agent.controller.report(agent.worker, report)


async def _save(controller: Controller, agents: list[Any], step: int) -> None:
    """One checkpoint, saved and read back by all."""
    world = len(agents) * GPUS
    await asyncio.gather(*(agent.save(step, world) for agent in agents))
    key = next(key for key in controller.state.checkpoints if key.endswith(f"/{step}"))
    await until(
        lambda: (
            len(controller.state.checkpoints[key].checked_by) == len(agents)
            if key in controller.state.checkpoints
            else True
        )
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--nodes", type=int, default=1000)
    parser.add_argument("--checkpoints", type=int, default=8)
    parser.add_argument("--days", type=int, default=30)
    given = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(40))
    with workplace("growth") as directory:
        url = f"sqlite:///{directory / 'babysit.db'}"
        found = asyncio.run(measure(url, given.nodes, given.checkpoints))
    saved = found["checkpoint"] * SAVES_A_DAY * given.days
    sampled = found["sample"] * STEPS_A_DAY * given.days
    total = saved + sampled + found["rest"]
    table(
        ["what", "bytes each", f"GB in {given.days} days"],
        [
            ["checkpoint", found["checkpoint"], saved / 1e9],
            ["sample", found["sample"], sampled / 1e9],
            ["the run itself", found["rest"], found["rest"] / 1e9],
            ["all", "", total / 1e9],
        ],
    )
    last_line(
        {
            "nodes": given.nodes,
            "days": given.days,
            "bytes_per_checkpoint": round(found["checkpoint"]),
            "bytes_per_sample": round(found["sample"], 1),
            "database_gigabytes": round(total / 1e9, 3),
        }
    )


if __name__ == "__main__":
    main()
