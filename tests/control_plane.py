"""A whole control plane for acceptance tests: real server, agents and ranks, a home of its own."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import httpx
from sqlalchemy import select as sql_select
from typer.testing import CliRunner, Result

from babysit.ring import RingReader
from babysit.wire import RING_FILE
from jobs.agent.reaper import ENV_WORKER
from jobs.events import RankSamples
from orchestrator.cli.main import app
from orchestrator.clusters.local.worker_records import Records
from orchestrator.core.model.entities import Attempt
from orchestrator.database import samples as arrays
from orchestrator.database.mapping import table_of
from orchestrator.database.models import SampleDataRow
from orchestrator.database.port import JournalEntry
from orchestrator.database.sql_store import SqlStore
from orchestrator.server.server_file import is_alive, read_record
from tests.replay import check_whole, replay

ROOT = Path(__file__).parents[1]
OK, FAILED, USAGE, NOT_FOUND, REFUSED, NOT_ALLOWED, UNREACHABLE, CANCELLED, TIMED_OUT = range(9)
_POLL_SECONDS = 0.01
T = TypeVar("T")


def until(condition: Callable[[], T | None], what: str, seconds: float = 60.0) -> T:
    """Wait until a condition holds, and return what it gave; fail after so many seconds."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, f"after {seconds:.0f} s, still not: {what}"
        time.sleep(_POLL_SECONDS)
    return found


_TEMPLATE = """
import json, os, signal, sys
import orchestrator.server.__main__ as server
signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # children are reaped by the kernel
for line in sys.stdin:
    request = json.loads(line)
    pid = os.fork()
    if pid == 0:
        break
    print(pid, flush=True)
else:
    sys.exit()
signal.signal(signal.SIGCHLD, signal.SIG_DFL)
os.setsid()
os.environ.clear()
os.environ.update(request["environment"])
os.chdir(request["home"])
log = os.open("server.log", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
for stream, source in ((0, os.open(os.devnull, os.O_RDONLY)), (1, log), (2, log)):
    os.dup2(source, stream)
sys.argv = ["orchestrator.server", "--embedded"]
sys.exit(server.main())
"""


class Servers:
    """An interpreter that has imported the server, and forks one on request (imports take long)."""

    def __init__(self, prelude: str = "") -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-c", prelude + _TEMPLATE],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def fork(self, home: Path, environment: dict[str, str]) -> int:
        """Start a server of a home; its pid."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        request = {"home": str(home), "environment": environment}
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())

    def close(self) -> None:
        self._process.communicate()


class ControlPlane:
    """One home: its server (which may be killed and started again), its runs, its command line."""

    def __init__(self, servers: Servers, home: Path, **settings: object) -> None:
        self._servers = servers
        self.home = home
        home.mkdir(parents=True, mode=0o700)
        inherited = {k: v for k, v in os.environ.items() if not k.startswith("BABYSIT_")}
        given = {f"BABYSIT_{name.upper()}": str(value) for name, value in settings.items()}
        ours = {
            "BABYSIT_HOME": str(home),
            "BABYSIT_LOCAL_NODES": "2",
            "PYTHONPATH": str(ROOT),
            "COLUMNS": "200",
        }
        self.disk = home
        """Where the agents' files are."""
        self.environment = {**inherited, **ours, **given}
        self.database_url = given.get("BABYSIT_DATABASE_URL", f"sqlite:///{home / 'babysit.db'}")
        self._pidfd: int | None = None

    # the server

    def start(self) -> None:
        """Start a server and wait until it leads."""
        self.spawn()
        until(self.leads, "the server leads")

    def spawn(self) -> None:
        """Start a server, and do not wait for it."""
        assert self._pidfd is None, "there is a server already"
        self.pid = self._servers.fork(self.home, self.environment)
        self._pidfd = os.pidfd_open(self.pid)

    def leads(self) -> bool:
        """Whether the server answers, and decides."""
        record = read_record(self.home / "server.json")
        if record is None or record.pid != self.pid:
            return False
        try:
            transport = httpx.HTTPTransport(uds=record.url.removeprefix("unix:"))
            with httpx.Client(transport=transport, timeout=5) as client:
                return bool(client.get("http://babysit/healthz").json()["leader"])
        except httpx.TransportError:
            return False

    def kill(self) -> None:
        """SIGKILL to the server; returns when it is dead."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """SIGTERM to the server; returns when it has gone."""
        self._end(signal.SIGTERM)

    def _end(self, how: signal.Signals) -> None:
        assert self._pidfd is not None, "there is no server"
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._pidfd, how)
        ended, _, _ = select.select([self._pidfd], [], [], 60.0)
        assert ended, f"the server does not end on {how.name}"
        os.close(self._pidfd)
        self._pidfd = None

    @property
    def log(self) -> str:
        """What the server logged."""
        file = self.home / "server.log"
        return file.read_text() if file.exists() else ""

    # the command line

    def babysit(self, *arguments: object) -> Result:
        """Run a command in this process; unexpected errors come out as they are."""
        cleared = {name: None for name in os.environ if name.startswith("BABYSIT_")}
        environment = {**cleared, **self.environment}
        return CliRunner().invoke(
            app, [*map(str, arguments)], env=environment, catch_exceptions=False
        )

    def shell(self, *arguments: object) -> subprocess.Popen[str]:
        """Start a command as a person would: a process of its own."""
        return subprocess.Popen(
            [sys.executable, "-P", "-m", "orchestrator.cli.main", *map(str, arguments)],
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def ask(self, *arguments: object) -> Any:
        """What a command prints as JSON; it must succeed."""
        result = self.babysit(*arguments, "-o", "json")
        assert result.exit_code == OK, f"{arguments}: {result.output}"
        return json.loads(result.stdout)

    def submit(self, spec: Path) -> str:
        """Submit a run; its id."""
        return str(self.ask("submit", spec)["id"])

    def show(self, run: str) -> dict[str, Any]:
        """The run, as `show -o json` prints it."""
        found: dict[str, Any] = self.ask("show", run)
        return found

    def state(self, run: str, *states: str, seconds: float = 60.0) -> dict[str, Any]:
        """Wait until a run is in one of these states; the run.

        Fails at once in another final state.
        """

        def there() -> dict[str, Any] | None:
            shown = self.show(run)
            over = shown["state"] in {"succeeded", "failed", "cancelled"}
            assert not over or shown["state"] in states, f"{shown['state']}: {shown['reason']}"
            return shown if shown["state"] in states else None

        return until(there, f"{run} is {' or '.join(states)}", seconds)

    def at_step(self, run: str, step: int, seconds: float = 60.0) -> None:
        """Wait until every rank of the run has come so far, as their rings say."""

        def reached() -> bool:
            rings = self.rings(run)
            return bool(rings) and all(ring[1] >= step for ring in rings.values())

        until(reached, f"{run} is at step {step}", seconds)

    # processes and memory

    def memory(self) -> Path:
        """The directory in node memory that is this home's own."""
        return Records(self.disk).memory("run", "worker").parents[1]

    def rings(self, run: str) -> dict[int, tuple[int, int]]:
        """Rank → pid and step of the ranks that are alive, without asking the server."""
        found: dict[int, tuple[int, int]] = {}
        for path in self.memory().glob(f"{run}/*/ranks/rank-*/{RING_FILE}"):
            with contextlib.suppress(FileNotFoundError, ValueError):
                reader = RingReader(path)
                now = reader.progress()
                reader.close()
                if marked(now.pid):
                    found[int(path.parent.name.removeprefix("rank-"))] = (now.pid, now.step)
        return found

    def rank_pid(self, run: str, rank: int) -> int:
        """Pid of a rank, once it is there."""
        return until(lambda: self.rings(run).get(rank, (0, 0))[0], f"rank {rank} lives")

    def signal_rank(self, run: str, rank: int, number: signal.Signals) -> None:
        """Send a signal to a rank."""
        os.kill(self.rank_pid(run, rank), number)

    def agents(self, run: str) -> dict[str, int]:
        """Node → pid of the agents of a run that are alive."""
        found = {}
        for file in self.disk.glob(f"runs/{run}/workers/*/worker.json"):
            record = json.loads(file.read_text())
            agent = record["agent"]
            if record["gone"] is None and agent is not None and marked(agent["pid"]):
                found[record["node"]] = agent["pid"]
        return found

    def processes(self) -> list[int]:
        """Everything alive that bears the mark of a worker of this home."""
        runs = {path.name for path in self.disk.glob("runs/*")}
        pids = (int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit())
        return [pid for pid in pids if marked(pid).rpartition("-w")[0] in runs]

    # the database

    def read(self, query: Callable[[SqlStore], Awaitable[T]]) -> T:
        """Read from the run database, past the server."""

        async def reading() -> T:
            store = await SqlStore.open(self.database_url)
            try:
                return await query(store)
            finally:
                await store.close()

        return asyncio.run(reading())

    def journal(self) -> list[JournalEntry]:
        """The whole journal, in order of writing."""
        return self.read(_journal)

    def attempts(self, run: str) -> list[Attempt]:
        """All attempts of a run."""
        return self.read(lambda store: store.attempts(run))

    def epoch(self) -> int:
        """The epoch of the lead, as the database has it; 0: nobody leads."""
        lease = self.read(lambda store: store.leader())
        return 0 if lease is None else lease.epoch

    def samples(self, run: str) -> dict[tuple[int, int], RankSamples]:
        """Every stored sample of a run, by attempt and rank."""
        return self.read(lambda store: _samples(store, run))

    # the end

    def close(self) -> None:
        """End everything, by the means of the product, and make sure that nothing is left."""
        if self._pidfd is None:
            record = read_record(self.home / "server.json")
            if record is not None and is_alive(record):  # a command started one by itself
                self.pid, self._pidfd = record.pid, os.pidfd_open(record.pid)
            else:
                self.spawn()
        try:
            until(self.leads, "the server leads")
            for row in self.ask("ls"):
                if row["ended_at"] is None:
                    self.babysit("release", row["id"])
                    self.babysit("cancel", row["id"])
            until(lambda: not self.processes(), "no process is left")
            until(lambda: not self.memory().exists(), "no memory is left")
        finally:
            for pid in self.processes():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            self.kill()
            shutil.rmtree(self.memory(), ignore_errors=True)


def marked(pid: int) -> str:
    """The worker whose mark a live process bears; empty: none."""
    try:
        environment = Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return ""
    prefix = f"{ENV_WORKER}=".encode()
    marks = (v.removeprefix(prefix) for v in environment.split(b"\0") if v.startswith(prefix))
    return next(marks, b"").decode()


async def _journal(store: SqlStore) -> list[JournalEntry]:
    found: list[JournalEntry] = []
    while page := await store.journal(after=found[-1].position if found else 0, limit=1000):
        found += page
    return found


async def _samples(store: SqlStore, run: str) -> dict[tuple[int, int], RankSamples]:
    data = table_of(SampleDataRow)
    query = (
        sql_select(data.c.attempt, data.c.rank, data.c.data)
        .where(data.c.run == run)
        .order_by(data.c.attempt, data.c.rank, data.c.chunk)
    )
    async with store._database.reading() as connection:
        rows = (await connection.execute(query)).all()
    blocks: dict[tuple[int, int], list[Any]] = defaultdict(list)
    for attempt, rank, packed in rows:
        blocks[attempt, rank].append(arrays.unpack(packed))
    return {
        (attempt, rank): arrays.samples_of(rank, arrays.np.concatenate(parts, axis=1))
        for (attempt, rank), parts in blocks.items()
    }


@contextlib.contextmanager
def control_plane(servers: Servers, home: Path, **settings: object) -> Iterator[ControlPlane]:
    """A control plane that leads. At the end its journal replays, and nothing of it is left."""
    plane = ControlPlane(servers, home, **settings)
    plane.start()
    try:
        yield plane
    finally:
        plane.close()
    journal = plane.journal()
    check_whole(journal)
    replay(journal)
