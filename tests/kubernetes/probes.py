"""Readiness, liveness and startup probes of a container: HTTP, TCP and commands."""

from __future__ import annotations

import socket
import ssl
import time
from typing import TYPE_CHECKING

import httpx

from tests.kubernetes.api import Object

if TYPE_CHECKING:
    from tests.kubernetes.pod_run import ContainerRun


class _Probe:
    def __init__(self, spec: Object) -> None:
        self.spec = spec
        self.next = time.monotonic() + spec.get("initialDelaySeconds", 0)
        self.good = 0
        self.bad = 0

    def due(self) -> bool:
        return time.monotonic() >= self.next

    def note(self, good: bool) -> None:
        self.next = time.monotonic() + self.spec.get("periodSeconds", 10)
        self.good, self.bad = (self.good + 1, 0) if good else (0, self.bad + 1)

    @property
    def failed(self) -> bool:
        return self.bad >= self.spec.get("failureThreshold", 3)

    @property
    def succeeded(self) -> bool:
        return self.good >= self.spec.get("successThreshold", 1)


class Probes:
    """The probes of one container; they run in the Pod's thread, one after the other."""

    def __init__(self, run: ContainerRun, address: str) -> None:
        self._run, self._address = run, address
        self._startup: _Probe | None = None
        self._readiness: _Probe | None = None
        self._liveness: _Probe | None = None

    def begin(self) -> None:
        """The container was started."""
        spec = self._run.spec
        self._startup, self._readiness, self._liveness = (
            _Probe(spec[name]) if spec.get(name) else None
            for name in ("startupProbe", "readinessProbe", "livenessProbe")
        )
        self._run.ready = self._startup is None and self._readiness is None

    def look(self) -> bool:
        """Probe what is due; whether readiness changed. A container that is not alive is killed."""
        run = self._run
        if "running" not in run.state or run.container is None:
            return False
        if self._startup is not None:
            if self._startup.due():
                self._startup.note(self._try(self._startup.spec))
            if self._startup.failed:
                run.container.kill()
            if not self._startup.succeeded:
                return False
            self._startup = None
        before = run.ready
        if self._readiness is None:
            run.ready = True
        elif self._readiness.due():
            self._readiness.note(self._try(self._readiness.spec))
            run.ready = (run.ready or self._readiness.succeeded) and not self._readiness.failed
        if self._liveness is not None and self._liveness.due():
            self._liveness.note(self._try(self._liveness.spec))
            if self._liveness.failed:
                run.container.kill()
        return run.ready != before

    def _try(self, spec: Object) -> bool:
        seconds = float(spec.get("timeoutSeconds", 1))
        if get := spec.get("httpGet"):
            return self._get(get, seconds)
        if tcp := spec.get("tcpSocket"):
            address = (tcp.get("host", self._address), self._port(tcp["port"]))
            try:
                socket.create_connection(address, seconds).close()
            except OSError:
                return False
            return True
        container = self._run.container
        return container is not None and container.run(spec["exec"]["command"], seconds)

    def _get(self, get: Object, seconds: float) -> bool:
        scheme = get.get("scheme", "HTTP").lower()
        host = get.get("host") or self._address
        url = f"{scheme}://{host}:{self._port(get['port'])}{get.get('path', '/')}"
        headers = {item["name"]: item["value"] for item in get.get("httpHeaders", [])}
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE  # as a kubelet does
        try:
            with httpx.Client(verify=context, timeout=seconds, trust_env=False) as client:
                return client.get(url, headers=headers).status_code < 400
        except httpx.TransportError:
            return False

    def _port(self, port: int | str) -> int:
        if isinstance(port, int):
            return port
        ports = self._run.spec.get("ports", [])
        return next(item["containerPort"] for item in ports if item.get("name") == port)
