"""The local cluster with real processes: a stand-in agent, real signals, real deaths."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import stat
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from jobs.agent.reaper import kill_strays, strays
from jobs.clock import Clock, ManualClock, SystemClock
from jobs.config import AgentConfig
from jobs.processes import Identity, identify, is_alive
from jobs.spec import Resources, RunSpec
from orchestrator.clusters.errors import ClusterError
from orchestrator.clusters.local import hardware
from orchestrator.clusters.local.cluster import LocalCluster, LocalClusterSettings
from orchestrator.clusters.local.worker_records import Records, WorkerRecord
from orchestrator.clusters.port import WorkerGone, WorkerLaunch

STAND_IN = Path(__file__).parents[1] / "clusters_agent.py"
PATIENCE = 60.0
"""Seconds after which a test that waits for an event has failed."""


class Site:
    """A home, its FIFO, and everything started in it."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.records = Records(home)
        self.clusters: list[LocalCluster] = []
        self.workers: set[tuple[str, str]] = set()
        self.fifo = home / "ready"
        os.mkfifo(self.fifo)
        self._ready = os.open(self.fifo, os.O_RDONLY | os.O_NONBLOCK)

    def cluster(self, clock: Clock | None = None, **settings: object) -> LocalCluster:
        chosen = {"agent": (sys.executable, str(STAND_IN)), "nodes": 2, **settings}
        cluster = LocalCluster(
            LocalClusterSettings(home=self.home, **chosen), clock or SystemClock()
        )
        self.clusters.append(cluster)
        return cluster

    def launch(self, *command: str, worker: str = "w1", gpus: int = 0) -> WorkerLaunch:
        self.workers.add(("r1", worker))
        spec = RunSpec(
            name="tiny",
            command=command or ("obedient",),
            env={"READY": str(self.fifo)},
            resources=Resources(gpus_per_node=gpus),
        )
        return WorkerLaunch(
            worker=worker,
            run="r1",
            node="node-1",
            server_url="ws://127.0.0.1:1/agent",
            token="secret",
            spec=spec,
        )

    async def ready(self, processes: int = 1) -> None:
        """Wait until that many processes have said that they are up."""
        readable = asyncio.Event()
        asyncio.get_running_loop().add_reader(self._ready, readable.set)
        async with asyncio.timeout(PATIENCE):
            while processes:
                await readable.wait()
                with contextlib.suppress(BlockingIOError):
                    processes -= len(os.read(self._ready, processes))
                readable.clear()
        asyncio.get_running_loop().remove_reader(self._ready)

    async def start(self, cluster: LocalCluster, launch: WorkerLaunch) -> Identity:
        await cluster.launch(launch)
        await self.ready()
        return self.agent(launch.worker)

    def agent(self, worker: str = "w1") -> Identity:
        record = self.records.read("r1", worker)
        assert record is not None
        assert record.agent is not None
        return record.agent

    async def close(self) -> None:
        os.close(self._ready)
        for cluster in self.clusters:
            await cluster.close()
        last = self.cluster(ManualClock())
        for run, worker in self.workers:
            with contextlib.suppress(ClusterError):  # the home was made unusable
                await last.stop(worker, run)
            assert strays(worker) == []
            assert not self.records.memory(run, worker).exists()
        await last.close()


async def first_change(cluster: LocalCluster) -> WorkerGone:
    """The next worker gone. Taking one only is not taking note of it."""
    async with asyncio.timeout(PATIENCE), contextlib.aclosing(cluster.changes()) as changes:
        return await anext(changes)


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    site = Site(tmp_path)
    yield site
    await site.close()


@pytest.fixture
def bystander() -> Iterator[subprocess.Popen[bytes]]:
    """A process that is none of ours."""
    process = subprocess.Popen(["sleep", "600"])
    yield process
    process.kill()
    process.wait()


async def test_an_agent_is_detached_and_knows_what_it_needs(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BABYSIT_DATABASE_URL", "postgresql://user:password@host/db")
    reader, writer = os.pipe()
    os.set_inheritable(writer, True)
    agent = await site.start(site.cluster(), site.launch())
    os.close(reader)
    os.close(writer)

    path = site.records.directory("r1", "w1") / "config.json"
    config = AgentConfig.model_validate_json(path.read_bytes())
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert (config.worker, config.node, config.token) == ("w1", "node-1", "secret")
    assert config.server_file == site.home / "server.json"
    assert config.memory_directory.is_dir()
    assert config.log_directory == site.home / "runs/r1/logs"
    assert os.getsid(agent.pid) == agent.pid
    held = {str(entry.readlink()) for entry in Path(f"/proc/{agent.pid}/fd").iterdir()}
    assert not [name for name in held if name.startswith(("pipe:", "socket:"))]
    environment = Path(f"/proc/{agent.pid}/environ").read_bytes().split(b"\0")
    assert b"BABYSIT_WORKER=w1" in environment
    assert b"CUDA_VISIBLE_DEVICES=" in environment
    assert not [entry for entry in environment if entry.startswith(b"BABYSIT_DATABASE_URL")]


async def test_launching_twice_starts_one_agent(site: Site) -> None:
    cluster, second_server = site.cluster(), site.cluster()
    agent = await site.start(cluster, site.launch())
    await cluster.launch(site.launch())
    await second_server.launch(site.launch())
    assert strays("w1") == [agent.pid]


async def test_a_launch_that_was_not_written_down_is_not_repeated(site: Site) -> None:
    """The server died between starting the agent and storing its pid."""
    first = site.cluster()
    agent = await site.start(first, site.launch())
    await first.close()
    record = site.records.read("r1", "w1")
    assert record is not None
    site.records.write(record.model_copy(update={"agent": None}))

    second = site.cluster()
    await second.launch(site.launch())
    assert strays("w1") == [agent.pid]
    assert site.agent() == agent
    os.kill(agent.pid, signal.SIGKILL)
    assert (await first_change(second)).worker == "w1"


async def test_a_worker_is_never_started_again(site: Site) -> None:
    cluster = site.cluster()
    agent = await site.start(cluster, site.launch())
    os.kill(agent.pid, signal.SIGKILL)
    first = await first_change(cluster)
    await cluster.launch(site.launch())
    assert await first_change(cluster) == first
    assert strays("w1") == []


async def test_sigkill_of_the_agent_leaves_nothing(site: Site) -> None:
    """Also not its grandchildren that moved to sessions of their own and ignore SIGINT."""
    cluster = site.cluster()
    await cluster.launch(site.launch("orphans"))
    await site.ready(processes=4)
    agent, family = site.agent(), strays("w1")
    memory = site.records.memory("r1", "w1")
    assert len(family) == 4
    assert len({os.getsid(pid) for pid in family}) == 4
    assert memory.is_dir()

    os.kill(agent.pid, signal.SIGKILL)
    gone = await first_change(cluster)
    assert gone.reason == "agent was killed by SIGKILL"
    assert [pid for pid in family if identify(pid)] == []
    assert not memory.exists()
    assert await cluster.alive("w1", "r1") is False


async def test_a_worker_with_strays_is_alive_until_they_are_dead(site: Site) -> None:
    cluster = site.cluster()
    await cluster.launch(site.launch("orphans"))
    await site.ready(processes=4)
    agent = site.agent()
    await cluster.close()  # nobody sweeps
    os.kill(agent.pid, signal.SIGKILL)
    os.waitpid(agent.pid, 0)
    assert await cluster.alive("w1", "r1") is True
    kill_strays("w1")
    assert await cluster.alive("w1", "r1") is False


@pytest.mark.parametrize(
    ("command", "reason"),
    [
        ("obedient", "agent was killed by SIGINT"),
        ("graceful", "agent exited with code 0"),
    ],
)
async def test_stop_asks_first(site: Site, command: str, reason: str) -> None:
    cluster = site.cluster(stop_grace_seconds=PATIENCE)
    await site.start(cluster, site.launch(command))
    await cluster.stop("w1", "r1")
    assert strays("w1") == []
    assert (await first_change(cluster)).reason == reason


async def test_stop_does_not_ask_for_ever(site: Site) -> None:
    """Virtual time: the grace passes at once."""
    cluster = site.cluster(ManualClock(), stop_grace_seconds=10.0)
    await cluster.launch(site.launch("orphans"))
    await site.ready(processes=4)
    await cluster.stop("w1", "r1")
    assert strays("w1") == []
    assert (await first_change(cluster)).reason == "agent was killed by SIGKILL"


async def test_a_stopped_process_can_be_stopped(site: Site) -> None:
    cluster = site.cluster(ManualClock())
    agent = await site.start(cluster, site.launch())
    os.kill(agent.pid, signal.SIGSTOP)
    await cluster.stop("w1", "r1")
    assert not is_alive(agent)


async def test_an_agent_that_ends_at_once_is_told_with_its_code(site: Site) -> None:
    cluster = site.cluster()
    await cluster.launch(site.launch("exit", "7"))
    assert (await first_change(cluster)).reason == "agent exited with code 7"


async def test_a_death_between_servers_is_told_by_the_next(site: Site) -> None:
    first = site.cluster()
    agent = await site.start(first, site.launch())
    await first.close()
    assert is_alive(agent)
    os.kill(agent.pid, signal.SIGKILL)
    os.waitpid(agent.pid, 0)

    gone = await first_change(site.cluster())
    assert gone == WorkerGone(
        worker="w1",
        run="r1",
        reason="agent ended unobserved: no server was running",
    )


async def test_an_end_is_told_until_it_is_taken_note_of(site: Site) -> None:
    first = site.cluster()
    for worker in ("w1", "w2"):
        await first.launch(site.launch("exit", "0", worker=worker))
    async with contextlib.aclosing(first.changes()) as changes:
        told = await anext(changes)
        untold = await anext(changes)  # asking for this one takes note of the one before
    await first.close()

    second = site.cluster()
    await second.launch(site.launch("exit", "3", worker="w3"))
    async with contextlib.aclosing(second.changes()) as changes:
        assert await anext(changes) == untold
        assert (await anext(changes)).worker == "w3"
    assert told.worker != untold.worker


SERVER = """
import asyncio, sys
from jobs.clock import SystemClock
from orchestrator.clusters.local.cluster import LocalCluster, LocalClusterSettings
from orchestrator.clusters.port import WorkerLaunch

async def main():
    settings = LocalClusterSettings.model_validate_json(sys.argv[1])
    cluster = LocalCluster(settings, SystemClock())
    await cluster.launch(WorkerLaunch.model_validate_json(sys.argv[2]))
    async for gone in cluster.changes():
        print(gone, flush=True)

asyncio.run(main())
"""


async def test_sigkill_of_the_server_leaves_the_agent_to_the_next(site: Site) -> None:
    launch = site.launch()
    settings = LocalClusterSettings(home=site.home, agent=(sys.executable, str(STAND_IN)))
    arguments = [settings.model_dump_json(), launch.model_dump_json()]
    server = subprocess.Popen([sys.executable, "-P", "-c", textwrap.dedent(SERVER), *arguments])
    await site.ready()
    server.kill()
    server.wait()

    # The server may have died before it wrote down what it had started.
    cluster = site.cluster()
    await cluster.launch(launch)
    agent = site.agent()
    assert strays("w1") == [agent.pid]
    assert await cluster.alive("w1", "r1") is True
    os.kill(agent.pid, signal.SIGKILL)
    assert (await first_change(cluster)).worker == "w1"
    assert strays("w1") == []


async def test_a_recycled_pid_is_not_mistaken(
    site: Site, bystander: subprocess.Popen[bytes]
) -> None:
    other = identify(bystander.pid)
    assert other is not None
    former = other.model_copy(update={"start": other.start - 1})
    with site.records.locked("r1", "w1"):
        site.records.write(WorkerRecord(worker="w1", run="r1", node="node-1", agent=former))

    cluster = site.cluster()
    assert await cluster.alive("w1", "r1") is False
    await cluster.stop("w1", "r1")
    assert (await first_change(cluster)).worker == "w1"
    assert is_alive(other)


async def test_an_emptied_record_is_no_obstacle(site: Site) -> None:
    first = site.cluster()
    agent = await site.start(first, site.launch())
    await first.close()
    (site.records.directory("r1", "w1") / "worker.json").write_bytes(b"")

    second = site.cluster()
    await second.stop("w1", "r1")
    assert not is_alive(agent)
    assert (await first_change(second)).worker == "w1"


async def test_gpus_are_dealt_to_workers_and_come_back(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hardware, "gpu_uuids", lambda: ("GPU-a", "GPU-b", "GPU-c", "GPU-d"))
    cluster = site.cluster()
    assert [node.gpus for node in await cluster.nodes()] == [2, 2]
    first = await site.start(cluster, site.launch(gpus=1))
    second = await site.start(cluster, site.launch(worker="w2", gpus=1))
    assert [_visible_gpus(agent) for agent in (first, second)] == ["GPU-a", "GPU-b"]
    with pytest.raises(ClusterError, match="node-1 has 0 of its 2 GPUs free, and worker w3 needs"):
        await cluster.launch(site.launch(worker="w3", gpus=1))

    await cluster.stop("w1", "r1")
    third = await site.start(cluster, site.launch(worker="w3", gpus=1))
    assert _visible_gpus(third) == "GPU-a"


def _visible_gpus(agent: Identity) -> str:
    pairs = Path(f"/proc/{agent.pid}/environ").read_text().split("\0")
    return dict(pair.partition("=")[::2] for pair in pairs)["CUDA_VISIBLE_DEVICES"]


async def test_a_home_that_cannot_be_written(site: Site) -> None:
    (site.home / "runs").write_text("in the way")
    with pytest.raises(ClusterError, match=r"w1 cannot be started on node-1.*is writable"):
        await site.cluster().launch(site.launch())


async def test_an_interpreter_that_is_missing_can_be_put_right(site: Site) -> None:
    cluster = site.cluster(agent=("/nowhere/python",))
    with pytest.raises(ClusterError, match="/nowhere/python") as caught:
        await cluster.launch(site.launch())
    assert (caught.value.worker, caught.value.node) == ("w1", "node-1")
    await site.start(site.cluster(), site.launch())


async def test_more_gpus_than_there_are(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "gpu_uuids", lambda: ("GPU-a",))
    with pytest.raises(ClusterError, match=r"2 nodes with 4 GPUs each need 8 GPUs; .* has 1"):
        await site.cluster(gpus_per_node=4).nodes()
