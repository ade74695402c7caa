"""The local cluster is one host: no server on another host takes its runs over unasked."""

from __future__ import annotations

import dataclasses
import datetime as dt
import socket
from pathlib import Path

import pytest

from orchestrator.clusters.local.worker_records import Records, WorkerRecord
from orchestrator.core.model.entities import Node
from orchestrator.database.memory_store import MemoryStore
from orchestrator.database.port import Batch
from orchestrator.server.one_host import OtherHostError, refuse_other_host
from orchestrator.settings import Settings
from tests.database_data import NOW, RUN, attempt, run, worker

HERE = socket.gethostname()
LATER = NOW + dt.timedelta(hours=1)


@dataclasses.dataclass
class Site:
    """A database that servers on two hosts share, as a server here finds it."""

    home: Path
    store: MemoryStore = dataclasses.field(default_factory=MemoryStore)

    async def led_from(self, host: str, *, workers: bool = True) -> None:
        """A server on a host has led, with a run on the host's node."""
        lease = await self.store.acquire(f"{host}:1:abcd", 10.0, NOW)
        assert lease is not None
        node = Node(id="node-1", host=host)
        entities = [node, *([run(attempt=1), attempt(), worker()] if workers else [])]
        await self.store.commit(Batch(entities=entities), epoch=lease.epoch)

    async def check(self, now: dt.datetime, **settings: str) -> None:
        """A server here starts."""
        given = {"database_url": "postgresql://db/babysit", "home": self.home, **settings}
        await refuse_other_host(self.store, Settings.model_validate(given), now)


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


@pytest.mark.parametrize("workers", [True, False])
async def test_a_server_elsewhere_leads(site: Site, workers: bool) -> None:
    await site.led_from("node-a", workers=workers)
    with pytest.raises(
        OtherHostError, match=r"a server on node-a leads.*start the server on node-a"
    ):
        await site.check(NOW)


async def test_runs_elsewhere_outlive_their_server(site: Site) -> None:
    await site.led_from("node-a")
    with pytest.raises(OtherHostError, match=f"worker w1 of run {RUN} may live on node-a"):
        await site.check(LATER)
    with pytest.raises(OtherHostError, match="BABYSIT_LOST_HOST=node-a"):
        await site.check(LATER, lost_host="node-b")
    await site.check(LATER, lost_host="node-a")


async def test_what_is_over_elsewhere_refuses_nobody(site: Site) -> None:
    """A database that was moved, or restored here."""
    await site.led_from("node-a", workers=False)
    await site.check(LATER)


async def test_servers_of_one_host_take_over_from_each_other(site: Site) -> None:
    await site.led_from(HERE)
    await site.check(NOW)
    await site.check(LATER)


async def test_a_host_that_was_renamed_knows_its_workers(site: Site) -> None:
    """A container has another name each time it starts; its home is the same."""
    await site.led_from("node-a")
    records = Records(site.home)
    records.directory(RUN, "w1").mkdir(parents=True)
    records.write(WorkerRecord(worker="w1", run=RUN, node="node-1"))
    await site.check(LATER)


@pytest.mark.parametrize("settings", [{"cluster": "simulated"}, {"database_url": ""}])
async def test_other_clusters_and_databases_have_no_such_limit(
    site: Site, settings: dict[str, str]
) -> None:
    await site.led_from("node-a")
    await site.check(NOW, **settings)
