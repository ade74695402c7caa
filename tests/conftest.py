"""Fixtures shared by all tests."""

from __future__ import annotations

import asyncio
import itertools
import os
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
import structlog
from hypothesis import settings

from orchestrator.database import schema
from orchestrator.database.memory_store import MemoryStore
from orchestrator.database.port import Store
from orchestrator.database.sql_store import SqlStore
from tests.kubernetes import servers as kubernetes
from tests.kubernetes.bed import Bed
from tests.postgres import PostgresServer
from tests.ray.bed import Bed as RayBed

_numbers = itertools.count(1)
_NO_KUBERNETES = "no API server"
_REAL = {"integration", "acceptance"}
"""Levels with real processes on a machine that does other work, too: what fails there once is tried
again, and shown as RERUN at the end. A test that needs that has a defect, or has found one."""
_LEVELS = {"unit": 1, "property": 2, "migration": 3, "integration": 4, "acceptance": 5}
# The control plane logs while tests read what commands print: only errors, and not to stdout.
structlog.configure(
    wrapper_class=structlog.make_filtering_bound_logger(40),
    logger_factory=structlog.PrintLoggerFactory(sys.stderr),
)
# Runs of tests name `python` and mean the one that runs the tests.
os.environ["PATH"] = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
# The log of the machine that runs the tests is none of their business; some read it all the same.
os.environ["BABYSIT_LOCAL_HARDWARE"] = "0"
# A loaded machine is not a fault of the code: no example has a time limit. The same commit gets the
# same answer every time, so that a change is not refused for what was there before it.
settings.register_profile("explore", deadline=None)
settings.register_profile("repeat", deadline=None, derandomize=True)
settings.load_profile(os.environ.get("BABYSIT_TEST_EXAMPLES", "repeat"))


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    """One server for the whole session. Tests that stop it make one of their own."""
    server = PostgresServer()
    try:
        server.start()
        yield server
    finally:
        server.remove()


@pytest.fixture(scope="session")
def postgres_url(postgres_server: PostgresServer) -> str:
    """URL of the session's server (its database `postgres`, empty)."""
    return postgres_server.url()


@pytest.fixture(scope="session")
def postgres_template(postgres_server: PostgresServer) -> str:
    """Name of a database with the schema, to copy from: faster than migrating for each test."""
    _execute(postgres_server, "CREATE DATABASE template_babysit")
    asyncio.run(schema.upgrade(postgres_server.url("template_babysit")))
    return "template_babysit"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Quick levels come first: what is wrong shows early, and a build has time to end."""
    items.sort(key=lambda item: _LEVELS.get(Path(str(item.path)).parent.name, 0))
    for item in items:
        if Path(str(item.path)).parent.name in _REAL:
            item.add_marker(pytest.mark.flaky(reruns=1))


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[Any]:
    """Await the build of Kubernetes before the test's own time limit begins."""
    if "kubernetes_servers" in getattr(item, "fixturenames", ()):
        kubernetes.await_build()
    return (yield)


@pytest.fixture(scope="session")
def kubernetes_servers() -> Iterator[kubernetes.Servers]:
    """A real API server, scheduler and controller-manager for the whole session."""
    reason = kubernetes.missing_programs()
    if reason:
        pytest.skip(f"{_NO_KUBERNETES}: {reason}")
    with kubernetes.Servers() as servers:
        yield servers


@pytest.fixture(scope="session")
def ray_bed() -> Iterator[RayBed]:
    """A real Ray cluster for the whole session: a head that runs nothing, and what tests add."""
    with RayBed() as bed:
        yield bed


@pytest.fixture
def bed(kubernetes_servers: kubernetes.Servers, tmp_path: Path) -> Iterator[Bed]:
    """A cluster of this test's own: two nodes, whose Pods are real processes."""
    with Bed(kubernetes_servers, tmp_path) as made:
        yield made


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Tests that need Kubernetes are left out in silence nowhere."""
    skipped = terminalreporter.stats.get("skipped", [])
    left_out = [report for report in skipped if _NO_KUBERNETES in str(report.longrepr)]
    if left_out:
        terminalreporter.section(f"{len(left_out)} KUBERNETES TESTS DID NOT RUN", red=True)
        terminalreporter.write_line(str(left_out[0].longrepr[2]))


@pytest.fixture
def empty_postgres(postgres_server: PostgresServer) -> Iterator[Callable[[], str]]:
    """Makes empty databases; gives their URLs."""
    yield from _databases(postgres_server, "template1")


@pytest.fixture
def postgres_database(
    postgres_server: PostgresServer, postgres_template: str
) -> Iterator[Callable[[], str]]:
    """Makes databases with the schema; gives their URLs."""
    yield from _databases(postgres_server, postgres_template)


@pytest.fixture
def sqlite_database(tmp_path: Path) -> str:
    """URL of a SQLite database with the schema."""
    url = f"sqlite:///{tmp_path / 'babysit.db'}"
    asyncio.run(schema.upgrade(url))
    return url


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest) -> str:
    """URL of a database with the schema, on either of the two."""
    if request.param == "sqlite":
        url: str = request.getfixturevalue("sqlite_database")
        return url
    make: Callable[[], str] = request.getfixturevalue("postgres_database")
    return make()


@pytest.fixture(params=["sqlite", "postgresql"])
def empty_urls(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], str]:
    """Makes URLs of databases without a schema, on either of the two."""
    if request.param == "sqlite":
        return lambda: f"sqlite:///{tmp_path / f'{next(_numbers)}.db'}"
    make: Callable[[], str] = request.getfixturevalue("empty_postgres")
    return make


@pytest.fixture(params=["memory", "sqlite", "sqlite in memory", "postgresql"])
def store_url(request: pytest.FixtureRequest) -> str | None:
    """Where the store of the contract tests lies; None: in memory, without SQL."""
    match request.param:
        case "sqlite":
            url: str = request.getfixturevalue("sqlite_database")
            return url
        case "postgresql":
            make: Callable[[], str] = request.getfixturevalue("postgres_database")
            return make()
        case "sqlite in memory":
            return "sqlite://"
    return None


@pytest.fixture
async def store(store_url: str | None) -> AsyncIterator[Store]:
    """Each implementation of the run database."""
    opened: Any = MemoryStore() if store_url is None else await SqlStore.open(store_url)
    yield opened
    await opened.close()


def _databases(server: PostgresServer, template: str) -> Iterator[Callable[[], str]]:
    made: list[str] = []

    def make() -> str:
        made.append(f"test_{next(_numbers)}")
        _execute(server, f"CREATE DATABASE {made[-1]} TEMPLATE {template}")
        return server.url(made[-1])

    yield make
    for name in made:
        _execute(server, f"DROP DATABASE {name} WITH (FORCE)")


def _execute(server: PostgresServer, statement: str) -> None:
    with psycopg.connect(server.url(), autocommit=True) as connection:
        connection.execute(statement)
