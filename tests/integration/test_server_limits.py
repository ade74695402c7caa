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


HEADERS = {"Authorization": f"Bearer {SECRET}", "Content-Type": "application/json"}
MAINTENANCE = '{"nodes": ["node-1"], "reason": "x", "begins": "%s", "ends": "%s"}'
_SPEC = '{"name": "a", "command": ["true"]}'


@pytest.mark.parametrize(
    ("method", "path", "body", "says"),
    [
        ("POST", "/runs", '{"base_directory": "/", "yaml": "name: \\ud800"}', "halves"),
        ("POST", "/runs", '{"base_directory": "/", "spec": {"env": {"A": "x\\uDFFF"}}}', "halves"),
        ("POST", "/nodes/node-1/cordon", '{"reason": "\\ud800 alone"}', "halves"),
        ("POST", "/tokens", '{"name": "\\udc00\\ud800", "role": "viewer"}', "halves"),
        (
            "POST",
            "/runs",
            f'{{"spec": {_SPEC}, "base_directory": "/{"a" * 300}"}}',
            "File name too long",
        ),
        ("POST", "/runs", f'{{"spec": {_SPEC}, "base_directory": "/{"a/" * 3000}"}}', "4096"),
        (
            "POST",
            "/nodes/maintenance",
            MAINTENANCE % ("0001-01-01T00:00:00+14:00", "2030-01-01T00:00:00Z"),
            "years 1 to 9999",
        ),
        (
            "POST",
            "/nodes/maintenance",
            MAINTENANCE % ("2030-01-01T00:00:00Z", "9999-12-31T23:59:00-14:00"),
            "years 1 to 9999",
        ),
        ("PATCH", "/queues/q", '{"weights": {"p": NaN}}', "finite"),
        ("PATCH", "/queues/q", '{"weights": {"p": 1e999}}', "finite"),
        ("PATCH", "/queues/q", f'{{"gpus": 1{"0" * 30}}}', "1000000"),
        ("PUT", "/spares", f'{{"spares": 1{"0" * 30}}}', "1000000"),
    ],
)
def test_values_beyond_all_bounds_are_refused_in_words(
    plane: Plane, method: str, path: str, body: str, says: str
) -> None:
    with httpx.Client(headers=HEADERS) as http:
        got = http.request(method, f"{plane.url}/api/v1{path}", content=body)
        assert (got.status_code, says in got.json()["error"]["message"]) == (422, True), got.text
        assert "q" not in {queue["name"] for queue in http.get(f"{plane.url}/api/v1/queues").json()}


def test_whole_characters_are_taken(plane: Plane) -> None:
    body = '{"reason": "\\ud83d\\ude00 \\\\ud800"}'
    with httpx.Client(headers=HEADERS) as http:
        got = http.post(f"{plane.url}/api/v1/nodes/node-1/cordon", content=body)
        assert got.json()["reason"] == "\N{GRINNING FACE} \\ud800"
        http.post(f"{plane.url}/api/v1/nodes/node-1/uncordon", content=body)


def test_a_defect_is_told_as_json(plane: Plane, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> None:
        raise RuntimeError("a secret")

    monkeypatch.setattr(plane.context.controller.store, "queues", fails)
    with httpx.Client(headers=HEADERS) as http:
        got = http.get(f"{plane.url}/api/v1/queues")
    assert (got.status_code, got.json()["error"]["kind"]) == (500, "internal")
    assert "secret" not in got.text
