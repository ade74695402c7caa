"""Reports that one controller stores, by the distance of PostgreSQL: a table, then one JSON line.

    python benchmarks/reports.py [--agents 1000] [--seconds 15] [--round-trips 0,5,20]

The real controller, core and store; PostgreSQL is behind a proxy that delays every byte by half a
round trip each way. Scripted agents, of runs with 8 nodes each, report a step a second whether or
not the last report is acknowledged, as real ones do. In the middle, a rank of one run dies.

    stored per second   reports acknowledged, in the second half of the time; as many as are offered
                        where the controller keeps up
    acknowledged        seconds from a report to its acknowledgement: the median, the slowest
    behind              reports not acknowledged when the last second is over
    exit stored         seconds from the report of the exit to its decision in the database
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import structlog
from ulid import ULID

sys.path.insert(0, str(Path(__file__).parents[1]))  # run from anywhere

from benchmarks import controller as gang
from benchmarks.support.harness import last_line, median, table
from benchmarks.support.running_controller import running_controller, until
from jobs.clock import SystemClock
from jobs.events import Event, RankExited, RanksStarted, Report, WorkerJoined
from jobs.spec import RunSpec
from monitors.failures import Failure, FailureClass
from orchestrator.clusters.simulated import SimulatedCluster
from orchestrator.controller.controller import Controller
from orchestrator.core.messages.events import RunSubmitted
from orchestrator.database import schema
from orchestrator.database.engine import create_engine, database_url
from tests.postgres import PostgresServer

NODES = 8
"""Nodes of a run. The first rank of each reports every step."""


@contextlib.asynccontextmanager
async def far_away(host: str, port: int, round_trip: float) -> AsyncIterator[int]:
    """The port of a proxy to a server that is `round_trip` seconds away."""
    loop = asyncio.get_running_loop()

    async def pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        under_way: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()

        async def deliver() -> None:
            while True:
                due, data = await under_way.get()
                await asyncio.sleep(max(0.0, due - loop.time()))
                if not data:
                    writer.close()
                    return
                writer.write(data)

        delivering = asyncio.create_task(deliver())
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(1 << 18):
                under_way.put_nowait((loop.time() + round_trip / 2, data))
        under_way.put_nowait((loop.time() + round_trip / 2, b""))
        await delivering

    async def connect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there_reader, there_writer = await asyncio.open_connection(host, port)
        with contextlib.suppress(asyncio.CancelledError):  # the benchmark is over
            await asyncio.gather(pass_on(reader, there_writer), pass_on(there_reader, writer))

    server = await asyncio.start_server(connect, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()


class Agent:
    """One scripted agent: numbers its reports, and waits for no acknowledgement."""

    def __init__(self, controller: Controller, run: str, worker: str, node: str) -> None:
        self.controller, self.run, self.worker, self.node = controller, run, worker, node
        self.ranks: tuple[int, ...] = ()
        self.sequence = 0
        self.waits: list[float] = []
        self.waiting: set[asyncio.Task[None]] = set()

    async def send(self, command: Any) -> None:
        """Take a command."""
        self.controller.acknowledged(self.worker, command.id)

    def report(self, *events: Event, samples: bool = False) -> asyncio.Task[None]:
        """Send one report."""
        self.sequence += 1
        told = (gang.step(self.ranks[0], self.sequence),) if samples else ()
        report = Report(sequence=self.sequence, attempt=1, events=events, samples=told)
        answer = self.controller.take(self.worker, report)
        began = time.perf_counter()

        async def wait() -> None:
            await answer
            self.waits.append(time.perf_counter() - began)

        task = asyncio.create_task(wait())
        self.waiting.add(task)
        task.add_done_callback(self.waiting.discard)
        return task

    def event(self, kind: type[Event], attempt: int = 1, **fields: Any) -> Event:
        """An event of this agent."""
        common = {"id": str(ULID()), "at": SystemClock().now(), "run": self.run}
        fields |= {"worker": self.worker, "attempt": attempt}
        return kind.model_validate({**common, **fields})


async def training(controller: Controller, cluster: SimulatedCluster, count: int) -> list[Agent]:
    """The agents of runs that train."""
    for number in range(count // NODES):
        spec = RunSpec.model_validate(
            {
                "name": f"many-{number}",
                "command": ["python", "train.py"],
                "resources": {"nodes": NODES, "gpus_per_node": 1},
                "checkpoint": {"directory": f"/checkpoints/{number}"},
            }
        )
        await controller.submit(gang.request(RunSubmitted, run=f"run-{number}", spec=spec))
    await until(lambda: sum(w.launch is not None for w in cluster.workers.values()) == count)
    agents = [Agent(controller, w.run, name, w.node) for name, w in cluster.workers.items()]
    for agent in agents:
        await controller.attach(agent.worker, agent.run, agent)
    await asyncio.gather(
        *(a.report(a.event(WorkerJoined, 0, node=a.node, address=a.node, port=1)) for a in agents)
    )
    await until(lambda: len(controller.state.attempts) == count // NODES)
    for attempt in controller.state.attempts.values():
        for seat in attempt.seats:
            next(a for a in agents if a.worker == seat.worker).ranks = seat.ranks
    await asyncio.gather(*(a.report(a.event(RanksStarted, ranks=a.ranks)) for a in agents))
    return agents


async def load(controller: Controller, agents: list[Agent], seconds: int) -> dict[str, float]:
    """Reports for some seconds, and an exit in the middle."""
    for agent in agents:
        agent.waits.clear()
    stored_after: list[float] = []

    async def die() -> None:
        began, agent = time.perf_counter(), agents[-1]
        failure = Failure(failure_class=FailureClass.SIGNAL, reason="SIGKILL", signature="9")
        fields = {"rank": agent.ranks[0], "code": -9, "failure": failure, "last_step": 1}
        await agent.report(agent.event(RankExited, **fields))
        assert controller.state.runs[agent.run].decision is not None
        stored_after.append(time.perf_counter() - began)

    began = time.perf_counter()
    dying: asyncio.Task[None] | None = None
    before, half = 0, began
    for second in range(seconds):
        for place, agent in enumerate(agents):
            due = began + second + place / len(agents)
            # Always give way: agents that are late must not starve the controller that they share
            # the event loop with.
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            agent.report(samples=True)
        if second == seconds // 2:
            dying = asyncio.create_task(die())
            before, half = sum(len(agent.waits) for agent in agents), time.perf_counter()
    behind = sum(len(agent.waiting) for agent in agents)
    stored = sum(len(agent.waits) for agent in agents) - before
    rate = stored / (time.perf_counter() - half)
    assert dying is not None
    await dying
    await asyncio.gather(*(task for agent in agents for task in agent.waiting))
    waits = [wait for agent in agents for wait in agent.waits]
    return {
        "stored_per_second": rate,
        "acknowledged_median": median(waits),
        "acknowledged_slowest": max(waits),
        "behind": behind,
        "exit_stored": stored_after[0],
    }


async def fresh_database(server: PostgresServer, name: str) -> None:
    """Make an empty database with the schema."""
    engine = create_engine(database_url(server.url()))
    async with engine.execution_options(isolation_level="AUTOCOMMIT").connect() as connection:
        await connection.exec_driver_sql(f"CREATE DATABASE {name}")
    await engine.dispose()
    await schema.upgrade(server.url(name))


async def measure(
    server: PostgresServer, count: int, seconds: int, trip: float
) -> dict[str, float]:
    """The figures at one distance."""
    name = f"far_{trip * 1e6:.0f}"
    await fresh_database(server, name)
    async with far_away("127.0.0.1", server.port, trip) as port:
        url = server.url(name).replace(f":{server.port}/", f":{port}/")
        async with running_controller(url, count, 1, alone=False) as (controller, cluster):
            return await load(controller, await training(controller, cluster, count), seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--agents", type=int, default=1000)
    parser.add_argument("--seconds", type=int, default=15)
    parser.add_argument("--round-trips", default="0,5,20", help="milliseconds, with commas between")
    given = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(40))
    agents = given.agents // NODES * NODES
    trips = [float(trip) for trip in given.round_trips.split(",")]
    server = PostgresServer(durable=True)
    try:
        server.start()
        found = {
            trip: asyncio.run(measure(server, agents, given.seconds, trip / 1000)) for trip in trips
        }
    finally:
        server.remove()
    names = list(found[trips[0]])
    table(
        ["round trip, ms", "offered/s", *(name.replace("_", " ") for name in names)],
        [[trip, agents, *(found[trip][name] for name in names)] for trip in trips],
    )
    figures = {f"{name}_{trip:g}_ms": found[trip][name] for trip in trips for name in names}
    last_line({"agents": agents, "offered_per_second": agents, **figures})


if __name__ == "__main__":
    main()
