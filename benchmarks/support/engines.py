"""Two engines of `benchmarks/engines.py`: where a run trains, and how a part of it is lost."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

from benchmarks.support.harness import control_plane, median, path, until
from jobs.agent.reaper import ENV_WORKER
from orchestrator.cli.session import Session
from tests.kubernetes.bed import Bed
from tests.kubernetes.proxy import Proxy
from tests.kubernetes.servers import ADMIN_TOKEN, Servers, kubeconfig

NODES = 3
"""Two for the run, and a spare."""
_PLAIN_PODS = 3


class Engine(Protocol):
    """Where a run trains.

    Attributes:
        name: As in the last line.
        session: Its control plane.
        shared: A directory that ranks and the benchmark see alike.
        spec: What the spec of a run has besides.
    """

    name: str
    session: Session
    shared: Path
    spec: dict[str, Any]

    def lose_worker(self, run: str) -> None:
        """End all processes of one worker at once, without a word."""

    def lose_node(self, run: str) -> bool:
        """Lose the node of a worker, with its memory; False: this engine has none to lose."""

    def give_back(self) -> None:
        """Bring lost nodes back, and wait until they are used again."""


class Local:
    """Processes of this machine."""

    name = "local"

    def __init__(self, session: Session, shared: Path) -> None:
        self.session, self.shared = session, shared
        self.spec: dict[str, Any] = {}

    def lose_worker(self, run: str) -> None:
        """SIGKILL to an agent, its fork server and its ranks."""
        mark = f"{ENV_WORKER}={_newest_worker(self.session, run)}".encode()
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and mark in _environment(entry):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(entry.name), signal.SIGKILL)

    def lose_node(self, run: str) -> bool:  # noqa: ARG002 (the protocol's)
        """Virtual nodes share the machine: none is lost alone."""
        return False

    def give_back(self) -> None:
        """Nothing is lost."""


class Kubernetes:
    """Pods of the test bed.

    Attributes:
        proxy: Counts the requests of the control plane.
    """

    name = "kubernetes"

    def __init__(self, session: Session, bed: Bed, proxy: Proxy) -> None:
        self.session, self.bed, self.proxy = session, bed, proxy
        self.shared = bed.shared
        where = str(bed.shared)
        mounted = {"name": "shared", "mountPath": where}
        pod = {
            "volumes": [{"name": "shared", "hostPath": {"path": where}}],
            "containers": [{"name": "worker", "volumeMounts": [mounted]}],
        }
        self.spec = {"image": "tests", "kubernetes": {"pod": {"spec": pod}}}

    def lose_worker(self, run: str) -> None:
        """Delete a Pod without grace, as `kubectl delete pod --force --grace-period=0` does."""
        name = _pod_name(self.bed, _newest_worker(self.session, run))
        self.bed.delete_pod(name, grace=0)

    def lose_node(self, run: str) -> bool:
        """End everything on a node of the run; it says nothing any more."""
        name = _pod_name(self.bed, _newest_worker(self.session, run))
        next(
            node
            for node in self.bed.nodes.values()
            if any(each.name == name for each in node.pods())
        ).lose()
        return True

    def give_back(self) -> None:
        """Start lost nodes again."""
        for node in self.bed.nodes.values():
            if not node.online.is_set():
                node.restore()
        until(lambda: _ready(self.session) == NODES, "all nodes are used again", seconds=300)

    def plain_pod_seconds(self) -> tuple[float, float]:
        """From the creation of a bare Pod to its first command, and from its end to the word of it.

        What the API server, the scheduler and the kubelet's stand-in take by themselves.
        """
        starts, ends = [], []
        for number in range(_PLAIN_PODS):
            name, file = f"plain-{number}", self.shared / f"plain-{number}"
            self.bed.create(_plain_pod(name, file))
            created = time.time()
            until(lambda file=file: file.exists() and file.read_text().endswith("\n"), "a Pod runs")
            starts.append(float(file.read_text()) - created)
            ended = time.time()
            (self.shared / f"plain-{number}.end").touch()
            self.bed.until_phase(name, "Succeeded")
            ends.append(time.time() - ended)
            self.bed.delete_pod(name, grace=0)
        return median(starts), median(ends)


def _plain_pod(name: str, file: Path) -> dict[str, Any]:
    script = f"date +%s.%N > {file}; while [ ! -e {file}.end ]; do sleep 0.01; done"
    container = {
        "name": "main",
        "image": "tests",
        "command": ["/bin/sh", "-c", script],
        "volumeMounts": [{"name": "shared", "mountPath": str(file.parent)}],
    }
    volumes = [{"name": "shared", "hostPath": {"path": str(file.parent)}}]
    spec = {"restartPolicy": "Never", "containers": [container], "volumes": volumes}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec}


def _newest_worker(session: Session, run: str) -> str:
    """The worker of the last rank of a run."""
    return str(session.api.get(path("runs", run, "ranks"))["seats"][-1]["worker"])


def _pod_name(bed: Bed, worker: str) -> str:
    pods = bed.api.get(bed.path("Pod"))["items"]
    return str(
        next(
            pod["metadata"]["name"]
            for pod in pods
            if pod["metadata"].get("annotations", {}).get("babysit/worker") == worker
        )
    )


def _environment(process: Path) -> list[bytes]:
    try:
        return (process / "environ").read_bytes().split(b"\0")
    except OSError:
        return []


def _ready(session: Session) -> int:
    return int(session.api.get(path("info"))["nodes_ready"])


@contextlib.contextmanager
def local(directory: Path) -> Iterator[Local]:
    """A control plane with nodes of this machine."""
    (directory / "shared").mkdir(parents=True)
    with control_plane(directory, nodes=NODES) as session:
        yield Local(session, directory / "shared")


@contextlib.contextmanager
def kubernetes(
    servers: Servers, directory: Path, *, nodes: int = NODES, simulated: int = 0
) -> Iterator[Kubernetes]:
    """A control plane on a cluster of the test bed."""
    shared = directory / "shared"
    shared.mkdir(parents=True)
    with (
        Bed(servers, shared, nodes=nodes, simulated=simulated) as bed,
        Proxy(servers) as proxy,
        _settings(directory, bed, proxy),
        control_plane(directory, idle_seconds=3600) as session,
    ):
        until(lambda: _ready(session) == nodes + simulated, "the nodes are known", seconds=120)
        yield Kubernetes(session, bed, proxy)


@contextlib.contextmanager
def _settings(directory: Path, bed: Bed, proxy: Proxy) -> Iterator[None]:
    """Settings of the server, which the embedded one reads from the environment."""
    file = directory / "kubeconfig"
    file.write_text(kubeconfig(proxy.url, bed.servers.ca, ADMIN_TOKEN, bed.namespace))
    port = free_port()
    given = {
        "BABYSIT_CLUSTER": "kubernetes",
        "BABYSIT_KUBERNETES_KUBECONFIG": str(file),
        "BABYSIT_PORT": str(port),
        "BABYSIT_AGENT_URL": f"ws://127.0.0.1:{port}/agent",
        "BABYSIT_ALLOW_HTTP": "1",
    }
    with environment_set(given):
        yield


def free_port() -> int:
    """A port of this machine that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def environment_set(given: Mapping[str, str]) -> Iterator[None]:
    """Variables for as long as the context lasts."""
    before = {name: os.environ.get(name) for name in given}
    os.environ.update(given)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def since(calls: Counter[str], before: Counter[str]) -> dict[str, int]:
    """Requests since a count, by verb and resource."""
    return dict(sorted((calls - before).items()))


def words(calls: dict[str, int]) -> str:
    """`3 create pods, 1 get nodes`."""
    return ", ".join(f"{count} {call}" for call, count in calls.items()) or "none"


__all__ = [
    "NODES",
    "Engine",
    "Kubernetes",
    "Local",
    "environment_set",
    "free_port",
    "kubernetes",
    "local",
    "since",
    "words",
]
