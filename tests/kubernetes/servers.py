"""etcd, the API server, the scheduler and the controller-manager, for tests: real ones, in a
directory of their own.

`scripts/kubernetes` brings the programs (Kubernetes 1.20.2, built from Debian's source);
KUBEBUILDER_ASSETS names others. Nothing is durable here: etcd's data lie in memory.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Self

import httpx

from tests.kubernetes.api import Api, ApiError
from tests.kubernetes.processes import find_tool, spawn

ADMIN_TOKEN = "the-admin-of-the-tests"

NODE_MONITOR_PERIOD = 1
"""Seconds between two looks of the controller-manager at the nodes (its default: 5)."""
NODE_GRACE_PERIOD = 6
"""Seconds without a heartbeat until a node is NotReady (the default: 40)."""
EVICTION_SECONDS = 5
"""Seconds that a Pod without tolerations of its own stays on a node that is NotReady (the default:
300).
"""


class UnavailableError(Exception):
    """A program is missing; the message says what to do."""


def directory_of_programs() -> Path:
    """Where the built programs are, or would be."""
    given = os.environ.get("KUBEBUILDER_ASSETS")
    if given:
        return Path(given)
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "babysit" / "kubernetes-1.20.2"


def find_program(name: str) -> str:
    """Path of a server's program. UnavailableError: it is not here."""
    built = directory_of_programs() / name
    if os.access(built, os.X_OK):
        return str(built)
    found = shutil.which(name) if name == "etcd" else None
    if found is None:
        raise UnavailableError(f"{name} is not in {built.parent}: run `scripts/kubernetes`")
    return found


def await_build() -> None:
    """Wait for `scripts/kubernetes`, if it builds now, as `make test` lets it beside the tests."""
    programs = directory_of_programs()
    lock = programs.with_name(f"{programs.name}.lock")
    if lock.exists():
        with lock.open() as held:
            fcntl.flock(held, fcntl.LOCK_SH)


def missing_programs() -> str:
    """Why no API server can be started here; empty: it can."""
    try:
        for name in ("etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler"):
            find_program(name)
    except UnavailableError as error:
        return str(error)
    probe = [find_tool("unshare"), "--mount", "--pid", "--uts", "--fork", *as_root(), "true"]
    done = subprocess.run(probe, capture_output=True, text=True, check=False)
    if done.returncode:
        return (
            f"Pods need private namespaces, and this user may not make any: {done.stderr.strip()}"
        )
    return ""


def as_root() -> list[str]:
    """Options of unshare with which any user may mount."""
    return [] if os.geteuid() == 0 else ["--map-root-user"]


class Servers:
    """One control plane of Kubernetes, on ports of 127.0.0.1.

    Attributes:
        api: A client that may do everything.
        kubeconfig: A file for `kubectl`, `helm` and the product, with the same rights.

    Args:
        watch_nodes: The controller-manager marks nodes NotReady whose heartbeats stop. Without it
            the nodes stay as
            they were last reported: for many simulated nodes, which have no heartbeats.
    """

    def __init__(self, *, watch_nodes: bool = True) -> None:
        self._watch_nodes = watch_nodes
        memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
        self.directory = Path(tempfile.mkdtemp(prefix="babysit-test-kubernetes-", dir=memory))
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self.port, self._etcd, self._etcd_peer, *self._secure = _free_ports(5)
        self.url = f"https://127.0.0.1:{self.port}"
        self.ca = self.directory / "ca.pem"
        self.kubeconfig = self.directory / "kubeconfig"
        _make_certificates(self.directory)
        (self.directory / "tokens.csv").write_text(f'{ADMIN_TOKEN},admin,admin,"system:masters"\n')
        self.kubeconfig.write_text(kubeconfig(self.url, self.ca, ADMIN_TOKEN))
        self.api = Api(self.url, self.ca, ADMIN_TOKEN)

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.api.close()
        for process in self._processes.values():
            process.kill()  # nothing is kept: no reason to wait for a good-bye
        for process in self._processes.values():
            process.wait()
        shutil.rmtree(self.directory, ignore_errors=True)

    def start(self) -> None:
        """Start all four, and wait until they work."""
        self._start_etcd()
        self._run("kube-apiserver", *self._api_flags())
        self._until("kube-apiserver", lambda: self.api.text("/version"))
        self._start_managers()
        self._until("kube-apiserver", self._answers)
        # The first namespaces get their service account from the controller-manager: from then on
        # Pods can be made.
        self._until("the controller-manager", self._works)

    def _answers(self) -> bool:
        return self.api.text("/readyz") == "ok"

    def log(self, program: str) -> str:
        """What a program printed."""
        return (self.directory / f"{program}.log").read_text(errors="replace")

    def _works(self) -> bool:
        path = "/api/v1/namespaces/default/serviceaccounts/default"
        root = "/api/v1/namespaces/default/configmaps/kube-root-ca.crt"
        return self.api.find(path) is not None and self.api.find(root) is not None

    def _start_etcd(self) -> None:
        client, peer = (f"http://127.0.0.1:{port}" for port in (self._etcd, self._etcd_peer))
        self._run(
            "etcd",
            f"--data-dir={self.directory / 'etcd'}",
            f"--listen-client-urls={client}",
            f"--advertise-client-urls={client}",
            f"--listen-peer-urls={peer}",
            f"--initial-advertise-peer-urls={peer}",
            f"--initial-cluster=default={peer}",
            "--snapshot-count=1000000000",
            "--quota-backend-bytes=4294967296",
        )
        self._until("etcd", lambda: httpx.get(f"{client}/health", trust_env=False).is_success)

    def _api_flags(self) -> list[str]:
        keys = self.directory
        return [
            f"--etcd-servers=http://127.0.0.1:{self._etcd}",
            f"--secure-port={self.port}",
            "--bind-address=127.0.0.1",
            "--advertise-address=127.0.0.1",
            "--insecure-port=0",
            f"--cert-dir={keys}",
            f"--tls-cert-file={keys / 'server.pem'}",
            f"--tls-private-key-file={keys / 'server.key'}",
            f"--client-ca-file={self.ca}",
            f"--token-auth-file={keys / 'tokens.csv'}",
            "--authorization-mode=RBAC",
            "--service-account-issuer=https://kubernetes.default.svc",
            f"--service-account-key-file={keys / 'server.key'}",
            f"--service-account-signing-key-file={keys / 'server.key'}",
            "--service-cluster-ip-range=10.0.0.0/16",
            "--kubelet-preferred-address-types=InternalIP",
            "--allow-privileged=true",
            # As newer versions do by themselves: tokens that expire, in projected volumes.
            "--feature-gates=BoundServiceAccountTokenVolume=true",
            f"--default-not-ready-toleration-seconds={EVICTION_SECONDS}",
            f"--default-unreachable-toleration-seconds={EVICTION_SECONDS}",
            "--endpoint-reconciler-type=none",
            "--watch-cache=true",
        ]

    def _start_managers(self) -> None:
        common = (f"--kubeconfig={self.kubeconfig}", "--leader-elect=false", "--port=0")
        flags = "*" if self._watch_nodes else "*,-nodelifecycle"
        self._run(
            "kube-controller-manager",
            *common,
            f"--secure-port={self._secure[0]}",
            "--bind-address=127.0.0.1",
            f"--cert-dir={self.directory}",
            f"--controllers={flags}",
            f"--service-account-private-key-file={self.directory / 'server.key'}",
            f"--root-ca-file={self.ca}",
            f"--node-monitor-period={NODE_MONITOR_PERIOD}s",
            f"--node-monitor-grace-period={NODE_GRACE_PERIOD}s",
            f"--node-startup-grace-period={NODE_GRACE_PERIOD}s",
            f"--pod-eviction-timeout={EVICTION_SECONDS}s",
            f"--flex-volume-plugin-dir={self.directory / 'flex'}",
            "--kube-api-qps=200",
            "--kube-api-burst=400",
            "--feature-gates=BoundServiceAccountTokenVolume=true",
        )
        self._run(
            "kube-scheduler",
            *common,
            f"--secure-port={self._secure[1]}",
            "--bind-address=127.0.0.1",
            f"--cert-dir={self.directory}",
            "--kube-api-qps=200",
            "--kube-api-burst=400",
        )

    def _run(self, name: str, *arguments: str) -> None:
        with (self.directory / f"{name}.log").open("ab") as log:
            self._processes[name] = spawn(
                [find_program(name), *arguments],
                cwd=self.directory,
                env={"PATH": os.environ["PATH"], "HOME": str(self.directory)},
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def _until(self, what: str, ready: object, seconds: float = 120.0) -> None:
        deadline = time.monotonic() + seconds
        while True:
            try:
                if callable(ready) and ready():
                    return
            except (httpx.TransportError, ApiError):
                pass  # not yet
            for name, process in self._processes.items():
                if process.poll() is not None:
                    raise RuntimeError(f"{name} ended: {self.log(name)[-2000:]}")
            if time.monotonic() > deadline:
                raise RuntimeError(f"{what} is not ready after {seconds:.0f} s")
            time.sleep(0.05)


def kubeconfig(url: str, ca: Path, token: str, namespace: str = "default") -> str:
    """The text of a kubeconfig file (JSON is YAML)."""
    cluster = {"server": url, "certificate-authority": str(ca)}
    context = {"cluster": "tests", "user": "tests", "namespace": namespace}
    body = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "tests", "cluster": cluster}],
        "users": [{"name": "tests", "user": {"token": token}}],
        "contexts": [{"name": "tests", "context": context}],
        "current-context": "tests",
    }
    return json.dumps(body)


def _free_ports(count: int) -> list[int]:
    probes = [socket.socket() for _ in range(count)]
    for probe in probes:
        probe.bind(("127.0.0.1", 0))
    ports = [probe.getsockname()[1] for probe in probes]
    for probe in probes:
        probe.close()
    return ports


def _make_certificates(directory: Path) -> None:
    """A certificate authority (`ca.pem`), and a certificate of it for 127.0.0.1 (`server.pem`,
    `server.key`).
    """
    hosts = ("localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc")
    names = ",".join([*(f"DNS:{host}" for host in hosts), "IP:127.0.0.1"])
    (directory / "names.cnf").write_text(
        f"subjectAltName={names}\nkeyUsage=critical,digitalSignature,keyEncipherment\n"
        "extendedKeyUsage=serverAuth\nauthorityKeyIdentifier=keyid\n"
    )
    new = ["-newkey", "rsa:2048", "-nodes"]
    for arguments in (
        [
            *("req", "-x509", *new, "-days", "2", "-subj", "/CN=tests", "-keyout", "ca.key"),
            *("-out", "ca.pem", "-addext", "keyUsage=critical,keyCertSign,cRLSign"),
        ],
        ["req", *new, "-subj", "/CN=kubernetes", "-keyout", "server.key", "-out", "server.csr"],
        [
            *(
                "x509",
                "-req",
                "-in",
                "server.csr",
                "-CA",
                "ca.pem",
                "-CAkey",
                "ca.key",
                "-days",
                "2",
            ),
            *("-CAcreateserial", "-extfile", "names.cnf", "-out", "server.pem"),
        ],
    ):
        subprocess.run(["openssl", *arguments], cwd=directory, check=True, capture_output=True)
