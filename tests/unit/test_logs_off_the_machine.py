"""Logs on a node's disk, over the agent's connection: asked for, and their ends kept.

The agent's side and the server's are the real ones, and so is the run database; a queue of frames
each way stands for the connection.
"""

from __future__ import annotations

import asyncio
import dataclasses
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from jobs.agent.log_file import LogFile
from jobs.agent.log_sender import LogSender
from jobs.clock import SystemClock
from jobs.events import Hello
from jobs.frames import decode
from jobs.log_files import LogLimit
from jobs.log_messages import ANSWER_BYTES, SEGMENT_BYTES, LogTerms, pack
from orchestrator.core.model.entities import Attempt, Run, Seat
from orchestrator.core.model.state import State
from orchestrator.database.sql_store import SqlStore
from orchestrator.errors import ConflictError, NotFoundError, NotLeaderError, TemporaryError
from orchestrator.server.agent_logs import AgentLogs, LogDesk
from orchestrator.server.remote_logs import RemoteLogs
from orchestrator.settings import Settings
from tests.world import trained

LIMIT = LogLimit(bytes=100_000, files=3)
LINE = "%08d" + 55 * "x" + "\n"
PATIENCE = 20.0


class Wire:
    """One direction of a connection; a test may hold it."""

    def __init__(self) -> None:
        self.frames: asyncio.Queue[bytes] = asyncio.Queue()
        self.count = 0
        self.largest = 0

    async def send(self, frame: bytes) -> None:
        """Send a frame."""
        self.count += 1
        self.largest = max(self.largest, len(frame))
        self.frames.put_nowait(frame)


class Node:
    """An agent's part of logs, its server's part, and the run database behind that."""

    def __init__(self, root: Path, store: SqlStore, run: Run, **settings: Any) -> None:
        self.root, self.store, self.run = root, store, run
        self.sender = LogSender(SystemClock())
        self.desk = LogDesk(store.log_tails, Settings(home=root, **settings))
        attempt = Attempt(
            run=run.id,
            number=1,
            seats=(Seat(worker="w-1", node="node-1", ranks=(0, 1)),),
            world_size=2,
            started_at=run.submitted_at,
            started_ranks=frozenset({0, 1}),
        )
        self.plane = SimpleNamespace(state=State([run, attempt]), store=store, is_leader=True)
        self.logs = RemoteLogs(self.desk, self.plane)  # type: ignore[arg-type]

    def write(self, text: str, attempt: int = 1, rank: int = 0) -> None:
        """A rank prints; the node keeps as much of it as it may."""
        path = self.root / f"attempt-{attempt:04d}" / f"rank-{rank:05d}.log"
        file = LogFile(path, LIMIT)
        file.write(text.encode())
        file.close()
        self.sender.follow(attempt, {rank: path})

    @asynccontextmanager
    async def connected(self, *, version: int = 1, deaf: bool = False) -> AsyncIterator[AgentLogs]:
        """A connection; `deaf`: the server stores no ends, and says nothing."""
        up, down = Wire(), Wire()
        self.up = up
        hello = Hello(
            run=self.run.id, worker="w-1", node="node-1", attempt=1, next_sequence=1, logs=version
        )
        link = AgentLogs(self.desk, down, hello, ranks=2)
        terms = link.terms and link.terms.model_dump()

        async def at_server() -> None:
            while True:
                kind, body = decode(await up.frames.get())
                if not (deaf and kind == "log_tails"):
                    await link.handlers[kind](body)

        async def at_agent() -> None:
            while True:
                self.sender.take(*decode(await down.frames.get()))

        works = (at_server(), at_agent(), self.sender.serve(up.send, terms))
        tasks = [asyncio.create_task(work) for work in works]
        link.opened()
        try:
            yield link
        finally:
            link.closed()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await self.desk.settled()

    async def kept(self, end: int, attempt: int = 1, rank: int = 0) -> None:
        """Wait until the database has the log up to a place."""
        async with asyncio.timeout(PATIENCE):
            while True:
                self.sender.hurry()
                log = await self.store.log_tails.of_rank(self.run.id, attempt, rank)
                if log is not None and log.end >= end:
                    return
                await SystemClock().sleep(0.01)

    async def whole(self, **first: Any) -> str:
        """The log of rank 0, as a reader gets it who asks for one piece after the other."""
        found, piece = [], await self.logs.piece(self.run, 1, 0, **first)
        while piece.text:
            found.append(piece.text)
            piece = await self.logs.piece(self.run, 1, 0, offset=piece.next_offset)
        return "".join(found)


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[Node]:
    store = await SqlStore.open("sqlite://")
    yield Node(tmp_path, store, trained(1).run())
    await store.close()


async def test_a_reader_gets_all_that_the_node_has_in_bounded_frames(node: Node) -> None:
    """Of a log that was rotated on the node: the oldest part is gone there."""
    text = "".join(LINE % i for i in range(8000))
    node.write(text)
    async with node.connected():
        first = await node.logs.piece(node.run, 1, 0)
        assert first.offset > 0
        assert first.bytes == len(text)
        assert await node.whole() == text[first.offset :]
        assert await node.whole(tail=3) == "".join(LINE % i for i in range(7997, 8000))
        assert await node.whole(tail=0) == ""
        node.write("after\n")
        assert await node.whole(offset=len(text)) == "after\n", "who follows sees what is new"
    assert node.up.largest < ANSWER_BYTES + 10_000
    with pytest.raises(NotFoundError):
        await node.logs.piece(node.run, 1, 5)


async def test_the_end_of_a_log_is_kept_when_the_node_is_lost(node: Node) -> None:
    text = "".join(LINE % i for i in range(6000))
    node.write(text, rank=0)
    node.write("short\n", rank=1)
    async with node.connected():
        await node.kept(len(text))
        frames = node.up.count
        node.sender.hurry()
        node.write("more\n", rank=1)
        await node.kept(11, rank=1)
        assert node.up.count == frames + 1, "what has not changed is not sent again"
    files = await node.logs.files(node.run)
    assert [(file.rank, file.bytes, file.node) for file in files] == [
        (0, len(text), ""),
        (1, 11, ""),
    ]
    assert (await node.logs.piece(node.run, 1, 1)).text == "short\nmore\n"
    end = await node.whole(offset=0)
    assert text.endswith(end)
    assert len(end) == len(text) - files[0].kept_from
    assert len(end) >= 2 * LIMIT.bytes, "all that the node still had"
    assert await node.whole(tail=2) == LINE % 5998 + LINE % 5999


@pytest.mark.parametrize("node_settings", [{"log_tail_bytes": SEGMENT_BYTES}])
async def test_the_database_keeps_as_much_as_it_is_told(
    tmp_path: Path, node_settings: dict[str, int]
) -> None:
    store = await SqlStore.open("sqlite://")
    node = Node(tmp_path, store, trained(1).run(), **node_settings)
    text = "".join(LINE % i for i in range(4000))
    node.write(text)
    async with node.connected():
        await node.kept(len(text))
    [kept] = await store.log_tails.of_run(node.run.id)
    assert SEGMENT_BYTES <= kept.end - kept.start < 2 * SEGMENT_BYTES
    small, large = node.desk.terms(2), node.desk.terms(100_000)
    assert small == LogTerms(tail_bytes=SEGMENT_BYTES, seconds=5.0)
    assert large is not None
    assert large.seconds > 600, "a large run does not take the database's time"
    none = LogDesk(store.log_tails, Settings(home=tmp_path, log_tail_bytes=0))
    assert none.terms(2) is None
    await store.close()


async def test_the_limit_of_a_run_holds_when_an_agent_connects_again(tmp_path: Path) -> None:
    """It sends the ends of all its attempts then; the server has perhaps just begun to lead."""
    store = await SqlStore.open("sqlite://")
    node = Node(tmp_path, store, trained(1).run(), log_tail_run_bytes=2**20)
    for attempt in range(1, 13):
        node.write(random.Random(attempt).randbytes(200_000).hex(), attempt)
    for _ in range(3):
        node.desk = LogDesk(store.log_tails, node.desk._settings)
        async with node.connected():
            await node.kept(1, attempt=12)
            node.sender._looked.clear()
            await asyncio.wait_for(node.sender._looked.wait(), PATIENCE)
        kept = await store.log_tails.of_run(node.run.id)
        parts = [await store.log_tails.parts(node.run.id, log.attempt, 0) for log in kept]
        assert kept[-1].attempt == 12
        assert sum(len(pack(p.file.read())) for log in parts for p in log) <= 2**20
    await store.close()


async def test_who_follows_a_log_that_is_gone_at_this_moment_keeps_the_place(node: Node) -> None:
    node.write("words\n")
    async with node.connected():
        (node.root / "attempt-0001" / "rank-00000.log").unlink()
        assert (await node.logs.piece(node.run, 1, 0, offset=6)).next_offset == 6


async def test_what_is_not_stored_is_sent_again_and_nothing_piles_up(node: Node) -> None:
    """The database is away: one frame waits for its answer, however much a rank writes."""
    text = "".join(LINE % i for i in range(3000))
    node.write(text)
    async with node.connected(deaf=True):
        async with asyncio.timeout(PATIENCE):
            while not node.up.count:
                await SystemClock().sleep(0.01)
        for _ in range(3):
            node.write(text)
            node.sender.hurry()
            assert (await node.logs.piece(node.run, 1, 0, tail=1)).text == LINE % 2999
        assert node.up.count == 1 + 3, "one end, and three answers"
    async with node.connected():
        await node.kept(4 * len(text))


async def test_peers_of_other_versions_are_not_sent_what_they_do_not_know(node: Node) -> None:
    node.write("words\n")
    async with node.connected(version=0) as link:
        assert link.terms is None
        node.sender.hurry()
        with pytest.raises(ConflictError, match=r"node-1 is of an older version"):
            await link.piece(1, 0)
        assert node.up.count == 0
    node.sender.take("log_request", {"id": "what"})  # of a newer server: not a crash
    node.sender.take("log_tails_kept", {"id": 99, "new": True})


async def test_a_server_that_does_not_lead_has_the_end_and_names_the_leader(node: Node) -> None:
    with pytest.raises(TemporaryError, match="is not connected"):
        await node.logs.piece(node.run, 1, 0)
    node.plane.is_leader, node.plane.state = False, State()
    with pytest.raises(NotLeaderError, match="ask the leader"):
        await node.logs.files(node.run)
    text = "".join(LINE % i for i in range(6000))
    node.write(text)
    async with node.connected():
        await node.kept(len(text))
    assert (await node.logs.piece(node.run, 1, 0, tail=1)).text == LINE % 5999
    assert (await node.logs.piece(node.run, 1, 0, offset=len(text))).text == ""
    [file] = await node.logs.files(node.run)
    assert file.kept_from > 0
    with pytest.raises(NotLeaderError, match="ask the leader"):
        await node.logs.piece(node.run, 1, 0)
    over = dataclasses.replace(node.run, state="succeeded")
    assert (await node.logs.piece(over, 1, 0)).offset == file.kept_from, "all that is left"


async def test_a_log_shows_from_the_moment_its_rank_has_started(node: Node) -> None:
    """Before any end of it is kept, which may take a minute in a large run."""
    assert await node.logs.files(node.run) == []
    node.sender.follow(1, {0: node.root / "not-there-yet"})
    async with node.connected():
        files = await node.logs.files(node.run)
        assert [(file.attempt, file.rank, file.node) for file in files] == [
            (1, 0, "node-1"),
            (1, 1, "node-1"),
        ]
        assert (await node.logs.piece(node.run, 1, 0)).text == ""


async def test_a_reader_of_a_lost_connection_is_told_at_once(node: Node) -> None:
    node.write("words\n")
    async with node.connected() as link:
        node.sender.take = lambda kind, body: None  # type: ignore[method-assign]
        asked = asyncio.create_task(link.piece(1, 0))
        await SystemClock().sleep(0)
        await SystemClock().sleep(0)
        link.closed()
        with pytest.raises(TemporaryError, match="connection is closed"):
            await asked


async def test_an_agent_that_leaves_sends_its_last_words_first(node: Node) -> None:
    node.write("early\n")
    async with node.connected():
        await node.kept(6)
        node.write("last words\n")
        await node.sender.finish()
        kept = await node.store.log_tails.of_rank(node.run.id, 1, 0)
        assert kept is not None
        assert kept.end == 17
    await node.sender.finish()  # without a connection it does not wait
