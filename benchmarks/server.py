"""Cost of a scrape, of the API and of the page to the server: a table, then one JSON line.

    python benchmarks/server.py [--runs 1000] [--nodes 10000] [--past 0,10000] [--scrapes 9]
        [--clients 50] [--seconds 10] [--loads 5]

The real application over TCP and SQLite; the state of the leader is made up, with a checkpoint and
an open incident for some runs. Between two scrapes every run and every node reports steps, so that
no number may be taken from the last scrape, and one run in ten changes in the state. The client is
another process, whose CPU does not count.

    first scrape    CPU milliseconds of the server until the counters are there: it reads the past
    scrape          CPU milliseconds of the server for each further scrape: best, median and worst
                    (neighbours on the machine slow all but the best)
    size            megabytes of one scrape, and its lines
    API             milliseconds of an answer, median and 99th percentile, while each client asks
                    for a run, a list, the fleet … once a second; the runs report all the time
    page            milliseconds from the address to the table of runs in a headless Chromium,
                    median, with nothing in its cache but the files of the page
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import datetime as dt
import itertools
import json
import multiprocessing
import sys
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))  # run from anywhere

from pydantic import SecretStr

from babysit.wire import Tier
from benchmarks.support.harness import last_line, median, table, workplace
from jobs.clock import SystemClock
from jobs.events import RankSamples, Report
from jobs.spec import RunSpec
from monitors.types import FindingKind, Severity
from orchestrator.controller.attention import Lag
from orchestrator.controller.database_trouble import DatabaseTrouble
from orchestrator.controller.live_numbers import LiveNumbers
from orchestrator.core.model.entities import (
    Attempt,
    Checkpoint,
    Entity,
    Incident,
    Node,
    Run,
    Seat,
    Worker,
)
from orchestrator.core.model.state import State
from orchestrator.core.model.states import RunState, Trust, WorkerState
from orchestrator.core.model.time_ledger import Bucket, Ledger
from orchestrator.database import schema
from orchestrator.database.port import Batch
from orchestrator.database.sql_store import SqlStore
from orchestrator.garbage_collection import collect_rarely
from orchestrator.server.app import create_app
from orchestrator.server.http_server import HttpServers
from orchestrator.server.listeners import listening
from orchestrator.settings import Settings

TOKEN = "benchmark"
LIMIT_MILLISECONDS = 50.0
CLIENT = f"""
import shutil, sys, urllib.request
request = urllib.request.Request(sys.argv[1], headers={{"Authorization": "Bearer {TOKEN}"}})
with urllib.request.urlopen(request) as answer, open(sys.argv[2], "wb") as file:
    shutil.copyfileobj(answer, file)
"""
NOW = dt.datetime.now(dt.UTC)
RANKS = 8


def run_of(number: int, name: str, **fields: Any) -> Run:
    nodes = {"nodes": 10, "gpus_per_node": RANKS}
    spec = RunSpec.model_validate({"name": name, "command": ["python"], "resources": nodes})
    begun = NOW - dt.timedelta(hours=3)
    book = {Bucket.QUEUED: 60.0, Bucket.STARTING: 30.0, Bucket.PRODUCTIVE: 7000.0}
    ledger = Ledger(bucket=Bucket.PRODUCTIVE, since=NOW, seconds=book)
    return Run(
        id=f"01J{number:023}",
        name=name,
        spec=spec,
        submitted_at=begun,
        **{"attempt": 2, "state": RunState.RUNNING, "ledger": ledger, **fields},
    )


def live(number: int, nodes: list[str]) -> list[Entity]:
    """A run that trains on some nodes, with what belongs to it."""
    run = run_of(number, f"run-{number}")
    names = [f"worker-{number}-{i}" for i in range(len(nodes))]
    seats = tuple(
        Seat(worker=worker, node=node, ranks=tuple(range(i * RANKS, (i + 1) * RANKS)))
        for i, (worker, node) in enumerate(zip(names, nodes, strict=True))
    )
    found: list[Entity] = [
        run,
        Attempt(run=run.id, number=2, seats=seats, world_size=len(seats) * RANKS, started_at=NOW),
        *(
            Worker(id=w, run=run.id, node=n, state=WorkerState.READY, launched_at=NOW)
            for w, n in zip(names, nodes, strict=True)
        ),
        *(
            Checkpoint(
                id=f"{run.id}/1/directory/{step}",
                run=run.id,
                attempt=1,
                step=step,
                tier=Tier.DIRECTORY,
                world_size=80,
                path="/checkpoints",
                trust=Trust.GOOD,
                created_at=NOW,
            )
            for step in (100, 200, 300)
        ),
    ]
    if number % 50 == 0:
        kind = FindingKind.LOSS_SPIKE
        incident: Any = {"kind": kind, "severity": Severity.WARNING, "reason": "the loss rose"}
        found.append(
            Incident(id=f"incident-{number}", run=run.id, attempt=2, opened_at=NOW, **incident)
        )
    return found


async def opened(url: str) -> tuple[SqlStore, int]:
    """The database, and the epoch in which it may be written."""
    store = await SqlStore.open(url)
    lease = await store.acquire("benchmark", 3600.0, NOW, force=True)
    assert lease is not None
    return store, lease.epoch


async def fill(url: str, past: int) -> None:
    """Store runs that have ended, one a minute."""
    await schema.upgrade(url)
    store, epoch = await opened(url)
    for begin in range(0, past, 1000):
        runs = [
            run_of(
                10_000_000 + number,
                f"past-{number}",
                attempt=1,
                state=RunState.SUCCEEDED,
                ended_at=NOW - dt.timedelta(days=30) + dt.timedelta(minutes=number),
            )
            for number in range(begin, min(past, begin + 1000))
        ]
        await store.commit(Batch(entities=runs), epoch=epoch)
    await store.close()


def fill_apart(url: str, past: int) -> None:
    """Fill in a process of its own: the memory of a server has no holes from runs it never saw."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        pool.submit(_fill, url, past).result()


def _fill(url: str, past: int) -> None:
    asyncio.run(fill(url, past))


def report_all(state: State, numbers: LiveNumbers, step: int, share: int | None = None) -> None:
    """A step of every rank, or of those of a twentieth of the runs."""
    attempts = list(state.attempts.values())
    for attempt in attempts if share is None else attempts[share::20]:
        for seat in attempt.seats:
            samples = tuple(
                RankSamples(
                    rank=rank,
                    step=[step],
                    time=[NOW.timestamp()],
                    loss=[2.0 + 1 / step],
                    grad_norm=[1.5],
                    tokens=[4096.0],
                    seconds=[0.7 + rank / 1e4],
                    batch=[step],
                    blocked_seconds=[0.0],
                    learning_rate=[0.001],
                    metrics={},
                )
                for rank in seat.ranks
            )
            report = Report(sequence=step, attempt=attempt.number, samples=samples)
            numbers.take(attempt.run, seat.node, report)


async def scraped(url: str, file: Path) -> float:
    """CPU seconds of the server for one scrape, which another process writes to a file."""
    before = time.process_time()
    client = await asyncio.create_subprocess_exec(sys.executable, "-c", CLIENT, url, str(file))
    spawned = time.process_time() - before
    if await client.wait():
        raise SystemExit(f"the scrape of {url} failed")
    return time.process_time() - before - spawned


async def client(*arguments: object) -> dict[str, Any]:
    """The figures of a client, which is another process."""
    command = (sys.executable, "-m", "benchmarks.support.server_clients", *map(str, arguments))
    process = await asyncio.create_subprocess_exec(
        *command, cwd=Path(__file__).parents[1], stdout=asyncio.subprocess.PIPE
    )
    printed, _ = await process.communicate()
    if process.returncode:
        raise SystemExit(f"the client {arguments[0]} failed")
    found: dict[str, Any] = json.loads(printed)
    return found


async def look(url: str, plane: Any, arguments: argparse.Namespace) -> dict[str, Any]:
    """The figures of people who look at the live runs, which report meanwhile."""

    async def train() -> None:
        for step in itertools.count(10_000):
            report_all(plane.state, plane.numbers, step, share=step % 20)
            await asyncio.sleep(0.25)

    training = asyncio.create_task(train())
    try:
        api = await client("api", url, TOKEN, arguments.clients, arguments.seconds)
        page = await client("page", url, TOKEN, arguments.loads) if arguments.loads else {}
    finally:
        training.cancel()
    return {"api": api, "page": page}


async def measure(directory: Path, arguments: argparse.Namespace, past: int) -> dict[str, Any]:
    """The figures beside a number of runs that have ended."""
    settings = Settings(home=directory / str(past), token=SecretStr(TOKEN), host="127.0.0.1")
    settings.home.mkdir()
    url = f"sqlite:///{settings.home / 'babysit.db'}"
    fill_apart(url, past)
    store, epoch = await opened(url)
    nodes = [f"node-{i:05}" for i in range(arguments.nodes)]
    each = arguments.nodes // arguments.runs
    state, numbers, step = State(Node(id=node, gpus=RANKS) for node in nodes), LiveNumbers(), 1
    for number in range(arguments.runs):
        for entity in live(number, nodes[number * each : (number + 1) * each]):
            state.put(entity)
    stored = [*state.nodes.values(), *state.runs.values(), *state.attempts.values()]
    stored += [*state.workers.values(), *state.incidents.values()]
    await store.commit(Batch(entities=stored), epoch=epoch)
    plane: Any = SimpleNamespace(
        store=store,
        state=state,
        numbers=numbers,
        is_leader=True,
        lag=Lag(),
        notices={("log", "delivered"): 0, ("log", "failed"): 0},
        set_aside=Counter(),
        database=DatabaseTrouble(),
        runs_here=True,
        takes_bundles=False,
        alerts_trouble={},
        unread=0,
        servers=(),
        leader_address="",
        ignored_fields={},
        needed_fields={},
    )
    app = create_app(plane, SystemClock(), settings)
    with listening(settings, embedded=False) as listeners:
        servers = HttpServers(app, settings, listeners)
        serving = asyncio.create_task(servers.serve())
        while not servers.started:  # noqa: ASYNC110 (it sets no event)
            await asyncio.sleep(0.01)
        url = f"http://{listeners.address}/metrics"
        report_all(state, numbers, step)
        begun, file = time.process_time(), directory / "scrape"
        await scraped(url, file)
        while b"babysit_runs{" not in file.read_bytes():
            await asyncio.sleep(0.1)
            await scraped(url, file)
        first = time.process_time() - begun
        costs = []
        for _ in range(arguments.scrapes):
            step += 1
            report_all(state, numbers, step)
            for run in list(state.runs.values())[step % 10 :: 10]:
                state.put(dataclasses.replace(run, best_step=step))
            costs.append(await scraped(url, file) * 1000)
        text = file.read_bytes()
        looked = await look(f"http://{listeners.address}", plane, arguments) if not past else {}
        servers.stop()
        await serving
    await store.close()
    return {
        "past": past,
        "first": first * 1000,
        "best": min(costs),
        "median": median(costs),
        "worst": max(costs),
        "megabytes": len(text) / 1e6,
        "lines": text.count(b"\n"),
        "looked": looked,
    }


def _figures(looked: dict[str, Any]) -> dict[str, Any]:
    api, page = looked["api"], looked["page"]
    return {
        "api_requests": api["requests"],
        "api_median_ms": round(api["median_ms"], 1),
        "api_p99_ms": round(api["p99_ms"], 1),
        "api_median_ms_by_path": api["median_ms_by_path"],
        "page_load_ms": round(page["median_ms"], 1) if page else None,
        "page_load_worst_ms": round(page["worst_ms"], 1) if page else None,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--nodes", type=int, default=10_000)
    parser.add_argument("--past", default="0,10000", help="runs that have ended; several")
    parser.add_argument("--scrapes", type=int, default=9)
    parser.add_argument("--clients", type=int, default=50, help="of the API")
    parser.add_argument("--seconds", type=float, default=10.0, help="that they ask")
    parser.add_argument("--loads", type=int, default=5, help="of the page; 0: none")
    arguments = parser.parse_args()
    collect_rarely()  # as the server does
    with workplace("server") as directory:
        rows = [
            asyncio.run(measure(directory, arguments, int(past)))
            for past in arguments.past.split(",")
        ]
    table(
        ("past runs", "first scrape ms", "best ms", "scrape ms", "worst ms", "megabytes", "lines"),
        [list(row.values())[:-1] for row in rows],
    )
    looked = next((row["looked"] for row in rows if row["looked"]), None)
    last_line(
        {
            "runs": arguments.runs,
            "nodes": arguments.nodes,
            "scrape_cpu_ms": max(row["median"] for row in rows),
            "scrape_cpu_ms_best": min(row["best"] for row in rows),
            "scrape_cpu_ms_by_past": {row["past"]: round(row["median"], 2) for row in rows},
            "scrape_megabytes": rows[0]["megabytes"],
            "scrape_lines": rows[0]["lines"],
            "limit_ms": LIMIT_MILLISECONDS,
            "clients": arguments.clients,
            **(_figures(looked) if looked else {}),
        }
    )


if __name__ == "__main__":
    main()
