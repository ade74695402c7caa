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

CLOCK = SystemClock()


class Server(http.server.ThreadingHTTPServer):
    """Lists one node, and answers each watch with the next of its lines, or with silence."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.lists, self.watches = 0, 0
        self.lines: list[bytes] = []
        self.over = threading.Event()


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        pass

    def do_GET(self) -> None:
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


@contextlib.asynccontextmanager
async def followed(server: Server, tmp_path: Path) -> Any:
    """A cache of the server's nodes."""
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
    api = Api(Access(kubeconfig=config), CLOCK)
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
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "SILENT_SECONDS", 0.1)
    with structlog.testing.capture_logs() as logs:
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
