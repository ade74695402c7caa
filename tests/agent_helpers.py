"""A real agent process, and a small real control plane for it to talk to.

The control plane here is not a stand-in for ours: it speaks the agent's protocol over real sockets
so that a test can be rude to the agent (drop the line before an acknowledgement, repeat a command)
on purpose.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import subprocess
import tempfile
import textwrap
import uuid
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed

from jobs import frames
from jobs.agent import command as agent_command
from jobs.agent import reaper
from jobs.clock import SystemClock
from jobs.commands import Command, Shutdown, StartAttempt, StopAttempt
from jobs.config import AgentConfig
from jobs.events import AgentEvent, Heartbeat, Hello, RankSamples, Report, WorkerJoined
from jobs.log_files import LogLimit
from jobs.spec import RunSpec

REPOSITORY = Path(__file__).resolve().parents[1]
PATIENCE = 60.0
"""Seconds after which a test is stuck. No test asserts on how long something took."""


class _CutError(Exception):
    """This connection was cut on purpose: hear no more from it."""


class ControlPlane:
    """Takes reports once each, acknowledges them, and sends commands."""

    def __init__(self) -> None:
        self.reports: list[Report] = []
        self.heartbeats: list[Heartbeat] = []
        self.hellos: list[Hello] = []
        self.acknowledged: list[str] = []
        self.authorizations: list[str] = []
        self.duplicates = 0
        self.cuts = 0
        self.deaf = 0
        """Connections still to be cut at a report: by turns before it is stored and after."""
        self.commands: list[Command] = []
        self.refusal: dict[str, Any] | None = None
        self.url = ""
        self._changed = asyncio.Condition()
        self._connections: set[ServerConnection] = set()

    # --- the server -----------------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def listening(self, port: int = 0) -> AsyncIterator[ControlPlane]:
        """Serve on a port; `url` says where."""
        async with serve(self._converse, "127.0.0.1", port, compression=None) as server:
            self.url = f"ws://127.0.0.1:{next(iter(server.sockets)).getsockname()[1]}/agent"
            yield self

    async def _converse(self, connection: ServerConnection) -> None:
        self._connections.add(connection)
        try:
            async for data in connection:
                await self._take(connection, *frames.decode(data))
                async with self._changed:
                    self._changed.notify_all()
        except (ConnectionClosed, _CutError):
            pass
        finally:
            self._connections.discard(connection)

    async def _take(self, connection: ServerConnection, kind: str, body: dict[str, Any]) -> None:
        if kind == "hello":
            await self._greet(connection, Hello.model_validate(body))
        elif kind == "report":
            await self._report(connection, Report.model_validate(body))
        elif kind == "heartbeat":
            self.heartbeats.append(Heartbeat.model_validate(body))
        elif kind == "ack_command":
            self.acknowledged.append(body["id"])

    async def _greet(self, connection: ServerConnection, hello: Hello) -> None:
        self.hellos.append(hello)
        self.authorizations.append(connection.request.headers["Authorization"])
        if self.refusal is not None:
            await connection.send(frames.encode("refused", self.refusal))
            return
        await connection.send(frames.encode("welcome", {"last_sequence": self.last_sequence}))
        for command in self.commands:
            if command.id not in self.acknowledged:
                await connection.send(frames.encode("command", command))

    async def _report(self, connection: ServerConnection, report: Report) -> None:
        self.deaf -= self.deaf > 0
        if self.deaf % 2:  # crashed before it was stored
            self._cut(connection)
        if report.sequence <= self.last_sequence:
            self.duplicates += 1
        else:
            assert report.sequence == self.last_sequence + 1, "a report was left out"
            self.reports.append(report)
        if self.deaf:  # crashed after it was stored, before it was acknowledged
            self._cut(connection)
        await connection.send(frames.encode("ack", {"sequence": report.sequence}))

    def _cut(self, connection: ServerConnection) -> NoReturn:
        self.cuts += 1
        connection.transport.abort()
        raise _CutError

    # --- what tests do --------------------------------------------------------------------------

    @property
    def last_sequence(self) -> int:
        return self.reports[-1].sequence if self.reports else 0

    @property
    def events(self) -> list[AgentEvent]:
        return [event for report in self.reports for event in report.events]

    def of(self, kind):
        return [event for event in self.events if isinstance(event, kind)]

    def samples(self, rank: int) -> list[RankSamples]:
        return [s for report in self.reports for s in report.samples if s.rank == rank]

    def steps(self, rank: int) -> list[int]:
        return [step for samples in self.samples(rank) for step in samples.step]

    async def send(self, command: Command) -> None:
        """Send a command now (and again at every connection until it is acknowledged)."""
        self.commands.append(command)
        for connection in list(self._connections):
            with contextlib.suppress(ConnectionClosed):
                await connection.send(frames.encode("command", command))

    def drop(self) -> None:
        """Cut every connection, without a word."""
        for connection in list(self._connections):
            connection.transport.abort()

    async def say(self, data: bytes | str) -> None:
        """Send anything at all."""
        for connection in list(self._connections):
            await connection.send(data)

    async def until(self, condition: Callable[[], object]) -> Any:
        """Wait until the condition holds after some message; returns its value."""
        async with asyncio.timeout(PATIENCE), self._changed:
            return await self._changed.wait_for(condition)

    async def event(self, kind, matching: Callable[[Any], bool] = lambda _: True):
        """Wait for an event of a class; returns the first that matches."""
        return await self.until(lambda: next(filter(matching, self.of(kind)), None))


class LiveRank(NamedTuple):
    """One rank's process, as the kernel sees it."""

    rank: int
    pid: int
    parent: int

    @classmethod
    def of(cls, pid: int) -> LiveRank | None:
        """None when it is gone or going."""
        try:
            maps = Path(f"/proc/{pid}/maps").read_text()
        except OSError:
            return None
        found = re.search(r"/ranks/rank-(\d+)/ring", maps)
        return cls(int(found[1]), pid, parent(pid)) if found else None


@contextlib.asynccontextmanager
async def playground(
    root: Path, script: str = "", **spec: Any
) -> AsyncIterator[tuple[ControlPlane, AgentProcess]]:
    """A control plane, and an agent that has joined it, with `train.py` in its work directory.

    Everything is killed when the block ends.
    """
    (root / "train.py").write_text(textwrap.dedent(script))
    with tempfile.TemporaryDirectory(dir="/dev/shm") as memory:
        async with ControlPlane().listening() as server:
            agent = AgentProcess(root, Path(memory), server, **spec)
            agent.start()
            try:
                await server.event(WorkerJoined)
                yield server, agent
            finally:
                await agent.kill()


class AgentProcess:
    """One agent, as the cluster would start it."""

    def __init__(
        self,
        root: Path,
        memory: Path,
        server: ControlPlane,
        log_limit: LogLimit = LogLimit(),  # noqa: B008 (it cannot be changed)
        **spec: Any,
    ) -> None:
        self.worker = f"w-{uuid.uuid4().hex[:12]}"
        root.mkdir(parents=True, exist_ok=True)
        settings = {"name": "test", "workdir": str(root), "command": ("python", "train.py"), **spec}
        self.config = AgentConfig(
            run="run-1",
            worker=self.worker,
            node="node-a",
            server_url=server.url,
            token="secret-token",
            directory=root / "agent",
            log_directory=root / "logs",
            memory_directory=memory / self.worker,
            spec=RunSpec.model_validate(settings),
            log_limit=log_limit,
            grace_seconds=0.0,
        )
        self._file = root / "config.json"
        self.program = agent_command.HERE
        self.environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(REPOSITORY)}
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, **changes: Any) -> None:
        self.config = self.config.model_copy(update=changes)
        self._file.write_text(self.config.model_dump_json())
        with (self._file.parent / "agent.out").open("wb") as output:
            self.process = subprocess.Popen(
                [*self.program, str(self._file)],
                env=self.environment,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    @property
    def standby(self) -> int:
        """Pid of the standby interpreter."""
        return next(pid for pid in children(self.pid) if "fork_server.py" in command_line(pid))

    def marked(self) -> list[int]:
        """Pids of everything that bears the worker's mark."""
        return reaper.strays(self.worker)

    def ranks(self) -> list[LiveRank]:
        """Ranks that are alive: the standby's children."""
        found = [LiveRank.of(pid) for pid in children(self.standby)]
        return sorted(rank for rank in found if rank is not None)

    def log(self, attempt: int, rank: int) -> str:
        path = self.config.log_directory / f"attempt-{attempt:04d}" / f"rank-{rank:05d}.log"
        return path.read_text()

    async def gone(self) -> int:
        """Wait for the agent's end; returns its exit code."""
        assert self.process is not None
        async with asyncio.timeout(PATIENCE):
            return await asyncio.to_thread(self.process.wait, PATIENCE)

    async def nothing_left(self) -> None:
        """Wait until no process of the worker is left; the test's own patience bounds it."""
        async with asyncio.timeout(PATIENCE):
            while pids := self.marked():
                await asyncio.gather(*(ended(pid) for pid in pids))

    async def kill(self) -> None:
        """End everything, whatever state it is in."""
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):
                self.process.send_signal(signal.SIGKILL)
            await self.gone()
            await asyncio.to_thread(reaper.kill_strays, self.worker)


async def ended(pid: int) -> None:
    """Wait until a process has ended."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    loop = asyncio.get_running_loop()
    done = asyncio.Event()
    loop.add_reader(descriptor, done.set)
    try:
        await done.wait()
    finally:
        loop.remove_reader(descriptor)
        os.close(descriptor)


async def eventually(condition: Callable[[], object]) -> None:
    """Wait for something that announces itself to nobody, such as a file."""
    async with asyncio.timeout(PATIENCE):
        while not condition():
            await SystemClock().sleep(0.01)


def children(pid: int) -> list[int]:
    """Direct children of a process."""
    pids = [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]
    return [child for child in pids if parent(child) == pid]


def parent(pid: int) -> int:
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return 0
    return int(text.rpartition(")")[2].split()[1])


def command_line(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except OSError:
        return ""


def start(attempt: int = 1, ranks: tuple[int, ...] = (0, 1), **fields: Any) -> StartAttempt:
    """A StartAttempt on one node."""
    defaults = {
        "id": f"start-{attempt}",
        "attempt": attempt,
        "ranks": ranks,
        "world_size": len(ranks),
        "node_rank": 0,
        "nodes": 1,
        "master_address": "127.0.0.1",
        "master_port": 29999,
    }
    return StartAttempt(**{**defaults, **fields})


def stop(attempt: int = 1, **fields: Any) -> StopAttempt:
    return StopAttempt(**{"id": f"stop-{attempt}", "attempt": attempt, **fields})


def shutdown() -> Shutdown:
    return Shutdown(id="shutdown", attempt=0)
