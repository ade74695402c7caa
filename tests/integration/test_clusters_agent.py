"""The local cluster with the real agent, which finds its control plane through `server.json`."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import NamedTuple

import pytest
from websockets.asyncio.server import ServerConnection, serve

from jobs import frames
from jobs.agent.reaper import strays
from jobs.clock import ManualClock, SystemClock
from jobs.processes import identify
from jobs.spec import RunSpec
from orchestrator.clusters.local.cluster import LocalCluster, LocalClusterSettings
from orchestrator.clusters.local.worker_records import Records
from orchestrator.clusters.port import WorkerGone, WorkerLaunch

PATIENCE = 60.0


class Server(NamedTuple):
    """A control plane that only listens."""

    url: str
    joined: asyncio.Queue[str]
    """The workers that have joined."""


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    workers: asyncio.Queue[str] = asyncio.Queue()

    async def listen(connection: ServerConnection) -> None:
        async for message in connection:
            kind, body = frames.decode(message)
            if kind == "hello":
                await connection.send(frames.encode("welcome", {"last_sequence": 0}))
            for event in body.get("events", ()):
                if event["kind"] == "worker_joined":
                    workers.put_nowait(event["worker"])

    async with serve(listen, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        url = f"ws://127.0.0.1:{port}/agent"
        yield Server(url, workers)


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[LocalCluster]:
    settings = LocalClusterSettings(home=tmp_path, stop_grace_seconds=PATIENCE)
    cluster = LocalCluster(settings, SystemClock())
    yield cluster
    await cluster.close()
    last = LocalCluster(settings, ManualClock())
    await last.stop("w1", "r1")
    await last.close()


@pytest.fixture
def launch(tmp_path: Path, server: Server) -> WorkerLaunch:
    spec = RunSpec(name="tiny", command=("python", "train.py"), workdir=str(tmp_path))
    return WorkerLaunch(
        worker="w1", run="r1", node="node-2", server_url=server.url, token="secret", spec=spec
    )


async def first_change(cluster: LocalCluster) -> WorkerGone:
    async with asyncio.timeout(PATIENCE), contextlib.aclosing(cluster.changes()) as changes:
        return await anext(changes)


async def test_sigkill_of_an_agent_that_has_joined_leaves_nothing(
    cluster: LocalCluster, launch: WorkerLaunch, server: Server, tmp_path: Path
) -> None:
    await cluster.launch(launch)
    async with asyncio.timeout(PATIENCE):
        assert await server.joined.get() == "w1"
    family = strays("w1")
    record = Records(tmp_path).read("r1", "w1")
    assert record is not None
    assert record.agent is not None
    assert len(family) > 1  # the agent and its standby at least

    os.kill(record.agent.pid, signal.SIGKILL)
    assert (await first_change(cluster)).reason == "agent was killed by SIGKILL"
    assert [pid for pid in family if identify(pid)] == []


async def test_an_agent_that_is_stopped_leaves_in_good_order(
    cluster: LocalCluster, launch: WorkerLaunch, server: Server
) -> None:
    await cluster.launch(launch)
    async with asyncio.timeout(PATIENCE):
        await server.joined.get()
    await cluster.stop("w1", "r1")
    assert (await first_change(cluster)).reason == "agent exited with code 0"
    assert strays("w1") == []


async def test_an_agent_finds_a_server_that_has_moved_since_it_was_launched(
    cluster: LocalCluster, launch: WorkerLaunch, server: Server, tmp_path: Path
) -> None:
    nobody = socket.create_server(("127.0.0.1", 0))
    port = nobody.getsockname()[1]
    nobody.close()
    await cluster.launch(launch.model_copy(update={"server_url": f"ws://127.0.0.1:{port}/agent"}))
    (tmp_path / "server.json").write_text(json.dumps({"agent_url": server.url}))
    async with asyncio.timeout(PATIENCE):
        assert await server.joined.get() == "w1"
    await cluster.stop("w1", "r1")


async def test_the_record_of_an_earlier_server_misleads_no_agent(
    cluster: LocalCluster, launch: WorkerLaunch, server: Server, tmp_path: Path
) -> None:
    (tmp_path / "server.json").write_text(json.dumps({"agent_url": "ws://127.0.0.1:1/agent"}))
    await cluster.launch(launch)
    async with asyncio.timeout(PATIENCE):
        assert await server.joined.get() == "w1"
    await cluster.stop("w1", "r1")
