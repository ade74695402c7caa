"""The bundle store behind the API: who may upload and fetch what, and what may go wrong with it."""

from __future__ import annotations

import asyncio
import datetime as dt
import hashlib
import os
import random
import shutil
import ssl
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from jobs.agent import code
from jobs.agent.errors import NoCodeError
from jobs.clock import SystemClock
from jobs.config import AgentConfig
from orchestrator.database.bundle_references import bundles_of_runs
from orchestrator.database.sql_store import SqlStore
from orchestrator.errors import InvalidError, NotFoundError, TemporaryError
from orchestrator.server.bundles import in_database
from orchestrator.server.bundles import store as store_module
from orchestrator.server.bundles.cleanup import _due, clean
from orchestrator.server.bundles.remote import RemoteStore, Stored
from orchestrator.server.bundles.store import BundleStore
from orchestrator.server.routes import bundles
from orchestrator.settings import Settings
from tests.certificates import make_certificate
from tests.plane import SECRET, Plane, finished_run, spec

CONTENT = b"print('hello')\n" * 9000
ID = hashlib.sha256(CONTENT).hexdigest()
pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="makes a certificate")


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_certificate(tmp_path_factory.mktemp("tls"))


@pytest.fixture(scope="module")
def plane(tmp_path_factory: pytest.TempPathFactory, certificate: Path) -> Iterator[Plane]:
    with Plane(
        tmp_path_factory.mktemp("home"),
        tls_certificate=certificate,
        tls_key=certificate.with_name("key.pem"),
        bundle_bytes=len(CONTENT),
        max_body_bytes=2048,
    ) as running:
        yield running


@pytest.fixture
def http(plane: Plane, certificate: Path) -> Iterator[httpx.Client]:
    with httpx.Client(
        base_url=f"{plane.url}/api/v1/bundles",
        headers={"Authorization": f"Bearer {SECRET}"},
        verify=ssl.create_default_context(cafile=certificate),
        trust_env=False,
    ) as client:
        yield client


@pytest.fixture
def stored(plane: Plane, http: httpx.Client) -> Iterator[Path]:
    """The file of a bundle that was uploaded."""
    assert http.put(f"/{ID}", content=CONTENT).status_code == 201
    path = plane.settings.home / "bundles" / f"{ID}.tar"
    yield path
    path.unlink(missing_ok=True)


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir()) if directory.exists() else []


def files(plane: Plane) -> list[str]:
    return names(plane.settings.home / "bundles")


def message(answer: httpx.Response) -> str:
    return str(answer.json()["error"]["message"])


def test_a_bundle_is_uploaded_once_and_streamed_past_the_limit_of_bodies(
    plane: Plane, http: httpx.Client
) -> None:
    assert http.head(f"/{ID}").status_code == 404
    answer = http.put(f"/{ID}", content=CONTENT)
    assert answer.json() == {"id": ID, "bytes": len(CONTENT)}
    assert http.head(f"/{ID}").status_code == 204
    assert files(plane) == [f"{ID}.tar"]
    (plane.settings.home / "bundles" / f"{ID}.tar").unlink()


def test_what_is_wrong_with_an_upload_leaves_nothing(plane: Plane, http: httpx.Client) -> None:
    wrong = http.put(f"/{ID}", content=CONTENT[:-1] + b"!")
    assert wrong.status_code == 422
    assert "arrived with the sha256" in message(wrong)
    announced = http.put(f"/{ID}", content=CONTENT + b"!")
    streamed = http.put(f"/{ID}", content=iter([CONTENT, b"!"]))
    for large in (announced, streamed):
        assert large.status_code == 413
        assert "BABYSIT_BUNDLE_BYTES" in message(large)
    assert http.put("/no-id", content=b"").status_code == 422
    with pytest.raises(ZeroDivisionError):
        http.put(f"/{ID}", content=(CONTENT[:1000] if n else bytes(1 // n) for n in (1, 0)))
    assert http.head(f"/{ID}").status_code == 404
    assert files(plane) == []


def test_only_those_who_may_submit_may_upload(plane: Plane, http: httpx.Client) -> None:
    tokens = f"{plane.url}/api/v1/tokens"
    viewer = http.post(tokens, json={"name": "v", "role": "viewer"}).json()["secret"]
    for secret, status in ((f"Bearer {viewer}", 403), ("", 401)):
        headers = {"Authorization": secret}
        assert http.put(f"/{ID}", content=CONTENT, headers=headers).status_code == status
        assert http.head(f"/{ID}", headers=headers).status_code == status
    assert files(plane) == []


def test_a_damaged_bundle_counts_as_missing_until_it_is_uploaded_again(
    plane: Plane, http: httpx.Client, stored: Path
) -> None:
    with stored.open("r+b") as file:
        file.write(b"X")
    assert http.head(f"/{ID}").status_code == 404
    assert files(plane) == [f"{ID}.damaged"]
    assert http.put(f"/{ID}", content=CONTENT).status_code == 201
    assert http.head(f"/{ID}").status_code == 204
    stored.with_suffix(".damaged").unlink()


async def test_uploads_side_by_side_end_in_one_whole_file(plane: Plane, certificate: Path) -> None:
    async with httpx.AsyncClient(
        headers={"Authorization": f"Bearer {SECRET}"},
        verify=ssl.create_default_context(cafile=certificate),
        trust_env=False,
    ) as client:
        puts = [client.put(f"{plane.url}/api/v1/bundles/{ID}", content=CONTENT) for _ in range(6)]
        assert {answer.status_code for answer in await asyncio.gather(*puts)} == {201}
    assert files(plane) == [f"{ID}.tar"]
    (plane.settings.home / "bundles" / f"{ID}.tar").unlink()


async def test_agents_that_stall_do_not_keep_the_others_waiting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bundles, "STALL_SECONDS", 0.0)
    (tmp_path / "bundle.tar").write_bytes(CONTENT)
    places = asyncio.Semaphore(1)

    async def stalled(_: object = None) -> Any:
        await asyncio.Event().wait()

    scope = {"type": "http", "method": "GET", "path": "/agent/bundles/x", "headers": []}
    await bundles._Waiting(tmp_path / "bundle.tar", places)(scope, stalled, stalled)
    assert not places.locked()


async def test_many_agents_cause_one_copy_from_the_shared_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = (
        BundleStore(Settings(home=tmp_path / name, bundles=f"file://{tmp_path}/x"), SystemClock())
        for name in ("a", "b")
    )
    await one.receive(ID, content(CONTENT))
    copies, get = [], RemoteStore.get

    def counted(self: RemoteStore, bundle: str, file: Path) -> bool:
        copies.append(file)
        return get(self, bundle, file)

    monkeypatch.setattr(RemoteStore, "get", counted)
    await asyncio.gather(*(two.file(ID) for _ in range(10)))
    assert len(copies) == 1


# --- agents --------------------------------------------------------------------------------------


def agent(plane: Plane, tmp_path: Path, **changes: Any) -> AgentConfig:
    fields: dict[str, Any] = {
        "run": "r1",
        "worker": "w1",
        "node": "n",
        "server_url": plane.url.replace("https", "wss") + "/agent",
        "token": plane.worker_tokens.make("r1", "w1"),
        "bundle": ID,
        "directory": tmp_path,
        "log_directory": tmp_path,
        "memory_directory": tmp_path,
        "spec": spec(),
    }
    return AgentConfig.model_validate(fields | changes)


def a_run(plane: Plane, run: str = "r1", bundle: str | None = ID) -> None:
    plane.write(entities=[finished_run(id=run, name=run, attempt=0, bundle=bundle)])


class _Hurried(SystemClock):
    """Pauses are short, and count in full."""

    ahead = 0.0

    def monotonic(self) -> float:
        return super().monotonic() + self.ahead

    async def sleep(self, seconds: float) -> None:
        self.ahead += seconds
        await super().sleep(0)


async def fetched(config: AgentConfig, *more: str) -> Path:
    urls = [config.server_url, *more]
    place = code.Code(config, lambda: urls, _Hurried(), random.Random(1))
    await place._fetch(str(config.bundle), config.directory / "code.tar")
    return config.directory / "code.tar"


async def test_an_agent_fetches_the_code_of_its_own_run_alone(
    plane: Plane, certificate: Path, tmp_path: Path, stored: Path
) -> None:
    a_run(plane)
    a_run(plane, "r2", "0" * 64)
    a_run(plane, "r3", None)
    mine = agent(plane, tmp_path, ca=certificate)
    assert (await fetched(mine)).read_bytes() == CONTENT
    for run in ("r2", "r3"):
        other = agent(plane, tmp_path, ca=certificate, token=plane.worker_tokens.make(run, "w1"))
        with pytest.raises(NoCodeError, match="is not that of the run") as caught:
            await fetched(other)
        assert caught.value.final
    with pytest.raises(NoCodeError, match="403: the worker token is not from this control plane"):
        await fetched(agent(plane, tmp_path, ca=certificate, token="forged"))
    with pytest.raises(NoCodeError, match="403"):
        await fetched(agent(plane, tmp_path, ca=certificate, token=SECRET))
    stored.write_bytes(b"tampered")
    with pytest.raises(NoCodeError, match=r"404: the bundle .* is not in the store"):
        await fetched(mine)


async def test_a_server_that_is_not_verified_gets_no_token_and_another_is_asked(
    plane: Plane, certificate: Path, tmp_path: Path, stored: Path
) -> None:
    a_run(plane)
    slow = r"could not be fetched in 180 s.*certificate verify"
    with pytest.raises(NoCodeError, match=slow) as caught:
        await fetched(agent(plane, tmp_path, ca=None))
    assert not caught.value.final
    away = agent(plane, tmp_path, ca=certificate, server_url="wss://127.0.0.1:1/agent")
    there = agent(plane, tmp_path).server_url
    assert (await fetched(away, there)).read_bytes() == CONTENT
    with pytest.raises(NoCodeError, match="Connection refused"):
        await fetched(away)


async def test_a_bundle_that_is_changed_on_the_way_is_not_unpacked(tmp_path: Path) -> None:
    async def lie(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\nConnection: close\r\n\r\nlies")
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(lie, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        config = AgentConfig(
            run="r1",
            worker="w1",
            node="n",
            server_url=f"ws://127.0.0.1:{port}/agent",
            token="t",
            bundle=ID,
            directory=tmp_path,
            log_directory=tmp_path,
            memory_directory=tmp_path,
            spec=spec(),
        )
        place = code.Code(config, lambda: [config.server_url], _Hurried(), random.Random(1))
        with pytest.raises(NoCodeError, match="sent a damaged bundle"):
            await place.provide()
    assert not (tmp_path / "code").exists()


async def test_a_relative_workdir_is_one_of_the_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "app").mkdir()
    monkeypatch.chdir(tmp_path)
    fields: dict[str, Any] = {"run": "r", "worker": "w", "node": "n", "token": "t"}
    places = dict.fromkeys(("directory", "log_directory", "memory_directory"), tmp_path)

    async def provided(workdir: str) -> Path:
        config = AgentConfig(**fields, **places, spec=spec(workdir=workdir, upload=False))
        return await code.Code(config, list, _Hurried(), random.Random(1)).provide()

    assert await provided("app") == tmp_path / "app"
    assert await provided(".") == tmp_path
    assert await provided("/srv/code") == Path("/srv/code")
    with pytest.raises(NoCodeError, match="gone is not in the image"):
        await provided("gone")


# --- the store -----------------------------------------------------------------------------------


async def content(*parts: bytes) -> Any:
    for part in parts:
        yield part


async def test_servers_with_homes_of_their_own_share_the_store_of_a_url(tmp_path: Path) -> None:
    clock = SystemClock()
    url = f"file://{tmp_path}/shared"
    one, two = (
        BundleStore(Settings(home=tmp_path / name, bundles=url), clock) for name in ("a", "b")
    )
    assert not await two.has(ID)
    await one.receive(ID, content(CONTENT))
    assert (await two.file(ID)).read_bytes() == CONTENT
    assert names(tmp_path / "shared") == [f"{ID}.tar"]
    shutil.rmtree(tmp_path / "a")
    assert await one.has(ID)
    assert [(each.id, each.size) for each in await two.all()] == [(ID, len(CONTENT))]
    shutil.rmtree(tmp_path / "a")
    (tmp_path / "shared" / f"{ID}.tar").write_bytes(b"tampered")
    assert not await one.has(ID), "a submission uploads it again"
    with pytest.raises(TemporaryError, match="arrived damaged"):
        await one.file(ID)
    await one.receive(ID, content(CONTENT))
    shutil.rmtree(tmp_path / "a")
    assert (await one.file(ID)).read_bytes() == CONTENT
    assert await two.has(ID), "its own copy is whole"
    await two.remove(ID)
    assert not await two.has(ID)


@pytest.fixture
async def sql(store_url: str | None) -> AsyncIterator[SqlStore]:
    if store_url is None:
        pytest.skip("a store in memory is shared by nobody")
    opened = await SqlStore.open(store_url)
    yield opened
    await opened.close()


async def test_servers_with_nothing_but_the_database_in_common_keep_small_bundles_there(
    sql: SqlStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = "postgresql://somewhere"  # the database is that of `sql`
    one, two = (
        BundleStore(Settings(home=tmp_path / name, database_url=url), SystemClock(), sql.bundles)
        for name in ("a", "b")
    )
    assert not await two.has(ID)
    assert await two.all() == []
    await one.receive(ID, content(CONTENT))
    assert one.risk(ID) is None
    shutil.rmtree(tmp_path / "a")
    assert (await two.file(ID)).read_bytes() == CONTENT
    assert [(each.id, each.size) for each in await one.all()] == [(ID, len(CONTENT))]

    # What the database lost or never had comes back from a home that has it.
    await sql.bundles.remove(ID)
    assert not await one.has(ID)
    assert await two.has(ID)
    assert await one.has(ID)
    await two.remove(ID)
    shutil.rmtree(tmp_path / "a")
    assert not await one.has(ID)

    # An upload that broke off in the middle is no bundle.
    await sql.bundles.write(ID, 0, 2, CONTENT, SystemClock().now())
    assert not await sql.bundles.has(ID)
    with pytest.raises(NotFoundError, match="or the run database"):
        await two.file(ID)

    monkeypatch.setattr(in_database, "_PART", 1000)
    await one.receive(ID, content(CONTENT))
    assert (await two.file(ID)).read_bytes() == CONTENT
    await two.remove(ID)
    monkeypatch.setattr(store_module, "MOST_BYTES", 1000)
    monkeypatch.setattr(in_database, "MOST_BYTES", 1000)
    await one.receive(ID, content(CONTENT))
    assert "set BABYSIT_BUNDLES" in str(one.risk(ID))
    assert not await two.has(ID)


def test_a_store_that_cannot_be_had_is_named_at_the_start(tmp_path: Path) -> None:
    with pytest.raises(InvalidError, match="BABYSIT_BUNDLES=nosuch://bucket: Protocol not known"):
        BundleStore(Settings(home=tmp_path, bundles="nosuch://bucket"), SystemClock())


async def test_a_store_that_cannot_be_written_says_so_and_nothing_is_left(tmp_path: Path) -> None:
    (tmp_path / "bundles").write_text("a file")
    store = BundleStore(Settings(home=tmp_path), SystemClock())
    with pytest.raises(TemporaryError, match=r"bundles cannot be used: .*; nothing was submitted"):
        await store.receive(ID, content(CONTENT))
    (tmp_path / "shared").write_text("a file")
    shared = BundleStore(
        Settings(home=tmp_path / "home", bundles=f"file://{tmp_path}/shared/x"), SystemClock()
    )
    with pytest.raises(TemporaryError, match=r"the bundle store file://.* does not answer"):
        await shared.receive(ID, content(CONTENT))
    assert names(tmp_path / "home" / "bundles") == []


NOW = dt.datetime(2026, 3, 1, tzinfo=dt.UTC)


def days_ago(days: float) -> dt.datetime:
    return NOW - dt.timedelta(days=days)


def test_bundles_go_with_the_history_of_their_last_run_and_never_under_a_live_one() -> None:
    runs = {"live": None, "old": days_ago(31), "recent": days_ago(29), "again": days_ago(40)}
    used = {"live": 90, "old": 60, "recent": 60, "again": 0.5, "no run": 31, "just in": 0.1}
    stored = [Stored(name, 10, days_ago(days).timestamp()) for name, days in used.items()]
    settings = Settings(home=Path("/none"))
    assert [each.id for each in _due(stored, runs, settings, 2**30, NOW)] == ["old", "no run"]
    full = _due(stored, runs, settings, 35, NOW)
    assert [each.id for each in full] == ["old", "no run", "recent"]


async def test_the_leader_deletes_what_is_due(plane: Plane, tmp_path: Path) -> None:
    from orchestrator.database import schema
    from orchestrator.database.engine import Database

    settings = Settings(home=tmp_path)
    await schema.upgrade(settings.database)
    database = Database(settings.database)
    try:
        assert await bundles_of_runs(database) == {}
        store = BundleStore(settings, SystemClock())
        await store.receive(ID, content(CONTENT))
        assert await clean(settings, store, database, SystemClock()) == 0
        old = days_ago(400).timestamp()
        os.utime(tmp_path / "bundles" / f"{ID}.tar", (old, old))
        part = tmp_path / "bundles" / ".x.part"
        part.touch()
        os.utime(part, (old, old))
        assert await clean(settings, store, database, SystemClock()) == 1
        assert names(tmp_path / "bundles") == []
    finally:
        await database.close()
