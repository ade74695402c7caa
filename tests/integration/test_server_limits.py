"""A peer that has not said who it is can hold nothing of the server: real sockets."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosedError

from jobs import frames
from jobs.events import Hello
from orchestrator.server import gateway, http_server
from tests.plane import SECRET, Plane


@pytest.fixture(scope="module")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Plane]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gateway, "HELLO_SECONDS", 0.3)
        patch.setattr(http_server, "HEAD_SECONDS", 0.3)
        with Plane(tmp_path_factory.mktemp("home")) as running:
            yield running


@pytest.fixture
def peer(plane: Plane) -> Iterator[socket.socket]:
    parts = urlsplit(plane.url)
    with socket.create_connection((parts.hostname or "", parts.port or 0), timeout=20) as made:
        yield made


def head(*lines: str) -> bytes:
    return "\r\n".join(["POST /api/v1/runs HTTP/1.1", "Host: x", *lines, "", ""]).encode()


def answer(peer: socket.socket) -> tuple[int, Any]:
    response = b""
    while part := peer.recv(65536):
        response += part
        before, _, body = response.partition(b"\r\n\r\n")
        sizes = [
            line for line in before.split(b"\r\n") if line.lower().startswith(b"content-length")
        ]
        if sizes and len(body) >= int(sizes[0].split(b":")[1]):
            break
    return int(response.split()[1]), json.loads(body)


@pytest.mark.parametrize(
    "header", [[], ["Authorization: Bearer wrong"], ["Authorization: Basic eA"]]
)
def test_the_caller_is_asked_for_before_the_body(peer: socket.socket, header: list[str]) -> None:
    """The body is announced, and never sent: an answer means that nobody waits for it."""
    peer.sendall(head("Content-Type: application/json", "Content-Length: 50000000", *header))
    status, body = answer(peer)
    assert (status, body["error"]["kind"]) == (401, "unauthenticated")


def test_a_body_that_is_too_large_is_not_read(peer: socket.socket) -> None:
    peer.sendall(head(f"Authorization: Bearer {SECRET}", "Content-Length: 50000000"))
    status, body = answer(peer)
    assert (status, body["error"]["kind"]) == (413, "too_large")
    assert "1,048,576 bytes" in body["error"]["message"]


def test_a_body_without_a_length_is_cut_off(peer: socket.socket) -> None:
    peer.sendall(head(f"Authorization: Bearer {SECRET}", "Transfer-Encoding: chunked"))
    chunk = b"10000\r\n" + b"x" * 65536 + b"\r\n"
    for _ in range(17):
        peer.sendall(chunk)
    status, _ = answer(peer)
    assert status == 413


def test_a_connection_without_a_request_is_closed(peer: socket.socket) -> None:
    assert peer.recv(1) == b""


def test_half_a_head_is_no_request(peer: socket.socket) -> None:
    peer.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\nX-Slow: ")
    assert peer.recv(1) == b""


def hello() -> bytes:
    return frames.encode("hello", Hello(worker="w", run="r", node="n", attempt=0, next_sequence=1))


@pytest.mark.parametrize(
    ("first", "code"),
    [
        (None, gateway.REFUSED),
        (b"x" * (http_server.FIRST_FRAME_BYTES + 1), 1009),
        (b"x" * 100, gateway.BAD_FRAME),
    ],
)
async def test_an_agent_says_hello_soon_and_briefly(
    plane: Plane, first: bytes | None, code: int
) -> None:
    async with connect(plane.url.replace("http", "ws") + "/agent", proxy=None) as agent:
        if first is not None:
            await agent.send(first)
        with pytest.raises(ConnectionClosedError) as closed:
            await asyncio.wait_for(agent.recv(), 20)
    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code == code


def test_the_kernel_vouches_for_processes_of_this_user(plane: Plane) -> None:
    transport = httpx.HTTPTransport(uds=str(plane.settings.socket))
    with httpx.Client(transport=transport, base_url="http://babysit/api/v1") as local:
        info = local.get("/info").json()
        assert info["role"] == "admin"
        made = local.post("/tokens", json={"name": "looker", "role": "viewer"}).json()
        as_viewer = {"Authorization": f"Bearer {made['secret']}"}
        assert local.post("/hold", json={}, headers=as_viewer).status_code == 403, (
            "the token counts"
        )
        wrong = {"Authorization": "Bearer wrong"}
        assert local.get("/runs", headers=wrong).status_code == 401
        local.delete(f"/tokens/{made['id']}")
