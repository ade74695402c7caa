"""Watches of a server that says nothing, or nonsense; see clusters/kubernetes/cache.py.

The real server is asked in tests/integration/test_kubernetes_cluster.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import http.server
import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog

from jobs.clock import SystemClock
from orchestrator.clusters.kubernetes import client
from orchestrator.clusters.kubernetes.cache import Cache, Collection
from orchestrator.clusters.kubernetes.client import Access, Api
from orchestrator.clusters.kubernetes.nodes import NodeSettings
from orchestrator.clusters.kubernetes.watcher import OTHERS_UNKNOWN, Watcher

CLOCK = SystemClock()


class Server(http.server.ThreadingHTTPServer):
    """Lists one node, and answers each watch with the next of its lines, or with silence."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.lists, self.watches = 0, 0
        self.forbidden = ""
        self.lines: list[bytes] = []
        self.over = threading.Event()


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        pass

    def do_GET(self) -> None:
        if self.server.forbidden and self.path.startswith(self.server.forbidden):
            self.send_response(403)
            self.send_header("Connection", "close")
            self.end_headers()
            self.wfile.write(b'{"message": "pods is forbidden: it cannot list them"}')
            return
        self.send_response(200)
        if "watch=true" not in self.path:
            self.server.lists += 1
            listed = {"metadata": {"resourceVersion": "7"}, "items": [node("node-1", 5)]}
            self.send_header("Connection", "close")
            self.end_headers()
            self.wfile.write(json.dumps(listed).encode())
            return
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        self.server.watches += 1
        if self.server.lines:
            line = self.server.lines.pop(0) + b"\n"
            self.wfile.write(b"%x\r\n%s\r\n" % (len(line), line))
        self.server.over.wait()


def node(name: str, version: int) -> dict[str, Any]:
    return {"metadata": {"name": name, "resourceVersion": str(version)}}


def added(name: str, version: int) -> bytes:
    return json.dumps({"type": "ADDED", "object": node(name, version)}).encode()


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.over.set()
        server.shutdown()


def api_of(server: Server, tmp_path: Path) -> Api:
    config = tmp_path / "kubeconfig"
    url = f"http://127.0.0.1:{server.server_address[1]}"
    config.write_text(
        json.dumps(
            {
                "clusters": [{"name": "c", "cluster": {"server": url}}],
                "users": [{"name": "u", "user": {"token": "x"}}],
                "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
                "current-context": "x",
            }
        )
    )
    return Api(Access(kubeconfig=config), CLOCK)


@pytest.fixture
def logs() -> Iterator[list[Any]]:
    """What is logged; the other tests log errors only."""
    usual = structlog.get_config()["wrapper_class"]
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(0))
    with structlog.testing.capture_logs() as captured:
        yield captured
    structlog.configure(wrapper_class=usual)


@contextlib.asynccontextmanager
async def followed(server: Server, tmp_path: Path) -> Any:
    """A cache of the server's nodes."""
    api = api_of(server, tmp_path)
    cache = Cache(api, CLOCK, Collection(path="/api/v1/nodes"), lambda before, after: None)
    cache.start()
    try:
        yield cache
    finally:
        server.over.set()
        await cache.close()
        await api.close()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not condition():
            await CLOCK.sleep(0.01)


async def test_a_watch_that_says_nothing_is_opened_again_and_is_no_failure(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, logs: list[Any]
) -> None:
    monkeypatch.setattr(client, "SILENT_SECONDS", 0.1)
    async with followed(server, tmp_path) as cache:
        await until(lambda: server.watches >= 3)
        assert cache.synced.is_set()
        assert cache.failure is None
    assert not [each for each in logs if each["log_level"] != "info"], logs
    assert server.lists == 1


async def test_a_watch_outlives_what_it_does_not_understand(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A proxy's page, or an event without an object: the collection is listed again."""
    monkeypatch.setattr("orchestrator.clusters.kubernetes.cache.PAUSES", (0.01,))
    server.lines = [b"<html>", b'{"type": "MODIFIED"}', added("node-2", 9)]
    async with followed(server, tmp_path) as cache:
        await until(lambda: ("", "node-2") in cache.objects)
        assert ("", "node-1") in cache.objects
        assert cache.synced.is_set()
    assert server.lists == 3


async def test_without_the_right_to_list_pods_of_others_the_inventory_is_known(
    server: Server, tmp_path: Path, logs: list[Any]
) -> None:
    server.forbidden = "/api/v1/pods"
    api = api_of(server, tmp_path)
    watcher = Watcher(api, CLOCK, NodeSettings(), "", "")
    await watcher.ready()
    await watcher.ready()
    assert [info.id for info in watcher.inventory()] == ["node-1"]
    assert [each["event"] for each in logs].count(OTHERS_UNKNOWN) == 1
    server.over.set()
    await watcher.close()
    await api.close()
