"""A reverse proxy before the API server: it counts requests, refuses them on demand, and cuts
streams.
"""

from __future__ import annotations

import contextlib
import http.client
import http.server
import json
import re
import socket
import ssl
import threading
from collections import Counter
from dataclasses import dataclass
from typing import Any, Self
from urllib.parse import parse_qs, urlsplit

from tests.kubernetes.servers import Servers

_PATH = re.compile(
    r"/(?:api/v1|apis/[^/]+/[^/]+)"
    r"(?:/namespaces/(?P<namespace>[^/]+)(?=/[^/]))?"
    r"/(?P<resource>[^/]+)(?:/(?P<name>[^/]+)(?:/(?P<sub>[^/]+))?)?$"
)
_VERBS = {"POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}


@dataclass
class Fault:
    """What the next matching requests are answered with.

    Attributes:
        call: Which: a pattern over `verb resource`, such as `create pods`.
        status: HTTP status.
        times: How often.
        retry_after: Seconds in the header of that name.
        act: The API server does what was asked all the same; only its answer is lost.
    """

    call: str
    status: int
    times: int = 1
    retry_after: int | None = None
    act: bool = False


class Proxy:
    """`https://127.0.0.1:port`, with the API server's own certificate: use it in a kubeconfig's
    place.

    Attributes:
        calls: How often each `verb resource` was asked for (`list pods`, `watch nodes`, `create
            pods/eviction`).
    """

    def __init__(self, servers: Servers) -> None:
        self.calls: Counter[str] = Counter()
        self._upstream = servers.port
        self._faults: list[Fault] = []
        self._lock = threading.Lock()
        self._streams: set[socket.socket] = set()
        self._away = False
        self._trust = ssl.create_default_context(cafile=str(servers.ca))
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(servers.directory / "server.pem", servers.directory / "server.key")
        self._server = _Server(("127.0.0.1", 0), type("Handler", (_Handler,), {"proxy": self}))
        self._server.context = context
        self.url = f"https://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, name="proxy", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.go_away()
        self._server.shutdown()
        self._server.server_close()

    def refuse(self, call: str, status: int, **options: Any) -> Fault:
        """Answer matching requests with an error, from now on; what it is refused with (see
        :class:`Fault`).
        """
        fault = Fault(call, status, **options)
        with self._lock:
            self._faults.append(fault)
        return fault

    def cut(self) -> int:
        """Cut every open connection in the middle of what it says; how many there were."""
        with self._lock:
            streams = list(self._streams)
        for stream in streams:
            with contextlib.suppress(OSError):
                stream.shutdown(socket.SHUT_RDWR)
        return len(streams)

    def go_away(self) -> None:
        """The API server is not reached any more: connections are cut, new ones closed at once."""
        self._away = True
        self.cut()

    def come_back(self) -> None:
        """The API server is reached again."""
        self._away = False

    def _fault(self, call: str) -> Fault | None:
        with self._lock:
            for fault in self._faults:
                if fault.times > 0 and re.fullmatch(fault.call, call):
                    fault.times -= 1
                    return fault
        return None


class _Handler(http.server.BaseHTTPRequestHandler):
    proxy: Proxy
    protocol_version = "HTTP/1.1"

    def setup(self) -> None:
        if self.proxy._away:
            raise ConnectionError("away")
        super().setup()
        with self.proxy._lock:
            self.proxy._streams.add(self.connection)

    def finish(self) -> None:
        with self.proxy._lock:
            self.proxy._streams.discard(self.connection)
        super().finish()

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        pass

    def forward(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        call = name_of(self.command, self.path)
        with self.proxy._lock:
            self.proxy.calls[call] += 1
        fault = self.proxy._fault(call)
        if fault is not None and not fault.act:
            self.refuse(fault)
            return
        upstream = http.client.HTTPSConnection(
            "127.0.0.1", self.proxy._upstream, context=self.proxy._trust
        )
        try:
            headers = {k: v for k, v in self.headers.items() if k.lower() != "host"}
            upstream.request(self.command, self.path, body or None, headers)
            answer = upstream.getresponse()
            if fault is not None:
                answer.read()
                self.refuse(fault)
                return
            self.copy(answer)
        finally:
            upstream.close()

    def refuse(self, fault: Fault) -> None:
        status = {
            "kind": "Status",
            "apiVersion": "v1",
            "status": "Failure",
            "message": f"the tests refuse this with {fault.status}",
            "reason": {409: "Conflict", 429: "TooManyRequests"}.get(fault.status, ""),
            "code": fault.status,
        }
        text = json.dumps(status).encode()
        self.send_response(fault.status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        if fault.retry_after is not None:
            self.send_header("Retry-After", str(fault.retry_after))
        self.end_headers()
        self.wfile.write(text)

    def copy(self, answer: http.client.HTTPResponse) -> None:
        self.send_response(answer.status)
        length = answer.getheader("Content-Length")
        for name, value in answer.getheaders():
            if name.lower() not in {"transfer-encoding", "connection", "date", "server"}:
                self.send_header(name, value)
        if length is None:
            self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        while data := answer.read1(65536):
            if length is None:
                data = b"%x\r\n%s\r\n" % (len(data), data)
            self.wfile.write(data)
            self.wfile.flush()
        if length is None:
            self.wfile.write(b"0\r\n\r\n")

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = forward  # noqa: N815


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128
    context: ssl.SSLContext

    def finish_request(self, request: Any, client_address: Any) -> None:
        """In the connection's own thread: a handshake must not hold up the others."""
        with self.context.wrap_socket(request, server_side=True) as secure:
            super().finish_request(secure, client_address)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Connections are cut on purpose."""


def name_of(method: str, target: str) -> str:
    """`verb resource` of a request, as RBAC calls them."""
    parts = urlsplit(target)
    found = _PATH.match(parts.path)
    if found is None:
        return f"{method} {parts.path}"
    resource = found["resource"] + (f"/{found['sub']}" if found["sub"] else "")
    if method != "GET":
        verb = _VERBS.get(method, method)
        return (
            f"{verb}collection {resource}"
            if verb == "delete" and not found["name"]
            else f"{verb} {resource}"
        )
    if parse_qs(parts.query).get("watch") in (["true"], ["1"], ["True"]):
        return f"watch {resource}"
    return f"{'get' if found['name'] else 'list'} {resource}"
