"""A cluster for one test: nodes with real processes on a real API server.

    with Bed(servers, tmp_path, nodes=3) as bed:
        bed.create(pod)
        bed.until_phase("my-pod", "Running")
        bed.nodes["node-1"].lose()

Differences from a real cluster: see :mod:`tests.kubernetes.containers`. Images are not pulled:
every image has the machine's file system with this checkout and its interpreter on PATH;
`image_faults` makes one fail. Services have no addresses of their own: the name of a Service stands
in `/etc/hosts` for the address of one of its Pods, so that its port has to be the Pod's. Pods that
listen on all addresses collide; they listen on `status.podIP`.
"""

from __future__ import annotations

import itertools
import os
import random
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self, TypeVar

import httpx

from tests.kubernetes.api import ApiError, Object
from tests.kubernetes.containers import Mount
from tests.kubernetes.kubelet import Kubelet, SimulatedKubelet
from tests.kubernetes.pod_run import PodRun
from tests.kubernetes.servers import Servers

ROOT = Path(__file__).parents[2]
BEAT_SECONDS = 1.0
T = TypeVar("T")
_beds = itertools.count(1)

KINDS = {
    "Pod": "/api/v1/namespaces/{}/pods",
    "Secret": "/api/v1/namespaces/{}/secrets",
    "ConfigMap": "/api/v1/namespaces/{}/configmaps",
    "Service": "/api/v1/namespaces/{}/services",
    "ServiceAccount": "/api/v1/namespaces/{}/serviceaccounts",
    "LimitRange": "/api/v1/namespaces/{}/limitranges",
    "ResourceQuota": "/api/v1/namespaces/{}/resourcequotas",
    "PersistentVolumeClaim": "/api/v1/namespaces/{}/persistentvolumeclaims",
    "PersistentVolume": "/api/v1/persistentvolumes",
    "Deployment": "/apis/apps/v1/namespaces/{}/deployments",
    "DaemonSet": "/apis/apps/v1/namespaces/{}/daemonsets",
    "Role": "/apis/rbac.authorization.k8s.io/v1/namespaces/{}/roles",
    "RoleBinding": "/apis/rbac.authorization.k8s.io/v1/namespaces/{}/rolebindings",
    "ClusterRole": "/apis/rbac.authorization.k8s.io/v1/clusterroles",
    "ClusterRoleBinding": "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings",
    "PriorityClass": "/apis/scheduling.k8s.io/v1/priorityclasses",
}


class Bed:
    """Nodes and a namespace of their own; all of it goes at the end.

    Attributes:
        nodes: By name.
        namespace: Created for this test.
        shared: A hostPath inside it is the same directory on every node, as on a file server.
        image_faults: Image → reason and message with which its containers wait
            (`{"typo:1": ("ImagePullBackOff", "Back-off pulling image")}`).
        image_environment: Variables of every image.

    Args:
        servers: Where the nodes register.
        shared: See above.
        nodes: How many, `node-1` and so on.
        capacity: Of each node; default 4 CPUs, 8 GiB.
        labels: Node name → labels.
        simulated: So many nodes `simulated-1` and so on besides, of which there are only objects.
    """

    def __init__(
        self,
        servers: Servers,
        shared: Path,
        *,
        nodes: int = 2,
        capacity: Object | None = None,
        labels: dict[str, dict[str, str]] | None = None,
        simulated: int = 0,
    ) -> None:
        self.servers, self.api, self.shared = servers, servers.api, shared
        number = next(_beds)
        self.namespace = f"test-{number}"
        self.directory = Path(tempfile.mkdtemp(prefix="babysit-test-nodes-"))
        base = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
        self.memory = Path(tempfile.mkdtemp(prefix="babysit-test-nodes-", dir=base))
        self.hosts = self.directory / "hosts"
        self.hosts.write_text("127.0.0.1 localhost\n")
        self.image_faults: dict[str, tuple[str, str]] = {}
        self.image_environment = _image_environment()
        self.image_mounts = _image(self.directory / "image")
        self._network = random.randrange(16, 250)
        self._addresses = itertools.count(8 * 250)
        self._closed = threading.Event()
        self._writing = threading.Lock()
        self._services: dict[str, Object] = {}
        self._addressed: dict[str, Object] = {}
        self.nodes: dict[str, Kubelet] = {}
        capacity = {"cpu": "4", "memory": "8Gi", "pods": "110", **(capacity or {})}
        names = [(f"node-{i}", Kubelet) for i in range(1, nodes + 1)]
        names += [(f"simulated-{i}", SimulatedKubelet) for i in range(1, simulated + 1)]
        for place, (name, kind) in enumerate(names):
            own = (labels or {}).get(name, {})
            self.nodes[name] = kind(self, name, self._address(place), labels=own, capacity=capacity)

    def __enter__(self) -> Self:
        try:
            self._open()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._closed.set()
        for node in self.nodes.values():
            node.close()
        self._delete_objects()
        for directory in (self.directory, self.memory):
            shutil.rmtree(directory, ignore_errors=True)

    def _open(self) -> None:
        for node in self.nodes.values():
            node.register()
        self.create_namespace(self.namespace)
        targets = (self._beat, self._watch_pods, self._watch_services, self._watch_addresses)
        for target in targets:
            threading.Thread(target=target, name=f"bed {target.__name__}", daemon=True).start()

    def create_namespace(self, name: str) -> None:
        """Create a namespace, and wait until Pods can be made in it."""
        body = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}
        self.api.create("/api/v1/namespaces", body)
        account = f"/api/v1/namespaces/{name}/serviceaccounts/default"
        self.until(lambda: self.api.find(account), f"namespace {name} has a service account")

    # objects

    def path(self, kind: str, name: str = "", namespace: str = "") -> str:
        """Where objects of a kind are, or one of them."""
        collection = KINDS[kind].format(namespace or self.namespace)
        return f"{collection}/{name}" if name else collection

    def create(self, item: Object) -> Object:
        """Create an object, in the test's namespace if it names none."""
        namespace = item["metadata"].get("namespace", "")
        return self.api.create(self.path(item["kind"], namespace=namespace), item)

    def pod(self, name: str) -> Object | None:
        """A Pod as the API server knows it."""
        return self.api.find(self.path("Pod", name))

    def run(self, name: str) -> PodRun:
        """A Pod as its node knows it. StopIteration: it is on no node."""
        return next(run for node in self.nodes.values() for run in node.pods() if run.name == name)

    def delete_pod(self, name: str, grace: int | None = None) -> None:
        """Delete a Pod, as `kubectl delete pod` does; does not wait."""
        self.api.delete(self.path("Pod", name), grace=grace)

    def evict(self, name: str) -> None:
        """Ask for a Pod's eviction, as `kubectl drain` does. ApiError 429: a disruption budget is
        in the way.
        """
        body = {
            "apiVersion": "policy/v1beta1",
            "kind": "Eviction",
            "metadata": {"name": name, "namespace": self.namespace},
        }
        self.api.create(f"{self.path('Pod', name)}/eviction", body)

    def disrupt(self, name: str, reason: str = "EvictionByEvictionAPI") -> None:
        """Set the condition DisruptionTarget, which servers from 1.26 on set by themselves."""
        found = {"type": "DisruptionTarget", "status": "True", "reason": reason, "message": reason}
        self.api.patch(
            f"{self.path('Pod', name)}/status",
            {"status": {"conditions": [found]}},
            kind="application/strategic-merge-patch+json",
        )

    def until(self, condition: Callable[[], T | None], what: str, seconds: float = 60.0) -> T:
        """Wait until a condition holds, and return what it gave; fail after so many seconds."""
        deadline = time.monotonic() + seconds
        while not (found := condition()):
            assert time.monotonic() < deadline, f"after {seconds:.0f} s, still not: {what}"
            time.sleep(0.05)
        return found

    def until_phase(self, name: str, phase: str, seconds: float = 60.0) -> Object:
        """Wait until a Pod is in a phase; the Pod."""

        def there() -> Object | None:
            found = self.pod(name)
            return found if found and found["status"].get("phase") == phase else None

        return self.until(there, f"{name} is {phase}", seconds)

    def until_gone(self, name: str, seconds: float = 60.0) -> None:
        """Wait until the API has no such Pod."""
        self.until(lambda: self.pod(name) is None, f"{name} is gone", seconds)

    def until_ready(self, node: str, status: str = "True", seconds: float = 60.0) -> None:
        """Wait until the API server says of a node that it is Ready (`False`, `Unknown`: that it is
        not).
        """

        def said() -> bool:
            found = self.api.get(f"/api/v1/nodes/{node}")["status"]["conditions"]
            return any(c["type"] == "Ready" and c["status"] == status for c in found)

        self.until(said, f"node {node} is Ready={status}", seconds)

    # for the nodes

    def new_address(self) -> str:
        """An address of a Pod."""
        return self._address(next(self._addresses))

    def new_run(self, node: Kubelet, pod: Object) -> PodRun:
        """Something that runs a Pod."""
        return PodRun(node, pod, self.new_address())

    def resync(self, node: Kubelet) -> None:
        """Tell a node about all of its Pods."""
        found = self.api.get("/api/v1/pods", fieldSelector=f"spec.nodeName={node.name}")["items"]
        for pod in found:
            node.sync("MODIFIED", pod)
        there = {pod["metadata"]["uid"] for pod in found}
        for run in node.pods():
            if run.uid not in there:
                node.sync("DELETED", run.pod)

    # threads

    def _beat(self) -> None:
        while not self._closed.wait(BEAT_SECONDS):
            for node in self.nodes.values():
                if node.online.is_set() and not self._closed.is_set():
                    self._try(node.beat)

    def _watch_pods(self) -> None:
        def look() -> None:
            for change, pod in self.api.watch("/api/v1/pods", fieldSelector="spec.nodeName!="):
                if self._closed.is_set():
                    return
                node = self.nodes.get(pod["spec"]["nodeName"])
                if node is not None:
                    self._try(lambda n=node, c=change, p=pod: n.sync(c, p))

        self._again(look)

    def _watch_services(self) -> None:
        self._again(lambda: self._follow("/api/v1/services", self._services))

    def _watch_addresses(self) -> None:
        self._again(lambda: self._follow("/api/v1/pods", self._addressed))

    def _follow(self, path: str, known: dict[str, Object]) -> None:
        """Keep the objects of a collection, and the names of Services that follow from them.

        Not the Endpoints: the API server refuses those with addresses of 127.0.0.0/8.
        """
        known.clear()
        for change, item in self.api.watch(path):
            if self._closed.is_set():
                return
            uid = item["metadata"]["uid"]
            if change == "DELETED":
                known.pop(uid, None)
            else:
                known[uid] = item
            if path.endswith("services") or item["status"].get("podIP"):
                self._write_hosts()

    def _again(self, look: Callable[[], None]) -> None:
        while not self._closed.is_set():
            self._try(look)
            self._closed.wait(0.1)

    def _try(self, work: Callable[[], Any]) -> None:
        """The API server may be away."""
        try:
            work()
        except (httpx.TransportError, httpx.StreamError, ApiError, RuntimeError):
            if not self._closed.is_set():
                time.sleep(0.05)

    # parts

    def _address(self, number: int) -> str:
        return f"127.{self._network}.{number // 250}.{number % 250 + 1}"

    def _write_hosts(self) -> None:
        lines = ["127.0.0.1 localhost"]
        pods = [pod for pod in [*self._addressed.values()] if pod["status"].get("podIP")]
        for item in [*self._services.values()]:
            name, namespace = item["metadata"]["name"], item["metadata"]["namespace"]
            for pod in pods:
                if not _leads_to(item, pod):
                    continue
                address, spec = pod["status"]["podIP"], pod["spec"]
                if spec.get("hostname") and spec.get("subdomain") == name:
                    own = f"{spec['hostname']}.{name}"
                    lines.append(f"{address} {_names(own, namespace)}")
                lines.append(f"{address} {_names(name, namespace)}")
        text = ("\n".join(lines) + "\n").encode()
        # In place, in one write: containers have the file itself mounted.
        with self._writing, self.hosts.open("r+b") as file:
            file.write(text.ljust(self.hosts.stat().st_size, b"\n"))

    def _delete_objects(self) -> None:
        for pod in self.api.get("/api/v1/pods", fieldSelector="spec.nodeName!=")["items"]:
            if pod["spec"]["nodeName"] in self.nodes:
                metadata = pod["metadata"]
                path = self.path("Pod", metadata["name"], metadata["namespace"])
                if metadata.get("finalizers"):
                    self._try(lambda p=path: self.api.patch(p, {"metadata": {"finalizers": None}}))
                self.api.delete(path, grace=0)
        for node in self.nodes.values():
            self.api.delete(node.path)
        self.api.delete(f"/api/v1/namespaces/{self.namespace}")


def _leads_to(service: Object, pod: Object) -> bool:
    """True if the Service leads to the Pod."""
    wanted = service["spec"].get("selector") or {}
    if not wanted or pod["metadata"]["namespace"] != service["metadata"]["namespace"]:
        return False
    if not wanted.items() <= pod["metadata"].get("labels", {}).items():
        return False
    if service["spec"].get("publishNotReadyAddresses"):
        return True
    ready = any(c["type"] == "Ready" and c["status"] == "True" for c in pod["status"]["conditions"])
    return ready and "deletionTimestamp" not in pod["metadata"]


def _names(name: str, namespace: str) -> str:
    return f"{name} {name}.{namespace} {name}.{namespace}.svc {name}.{namespace}.svc.cluster.local"


def _image_environment() -> dict[str, str]:
    """As if an image had this checkout and its interpreter."""
    tools = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    return {
        "PATH": f"/image/bin:{Path(sys.executable).parent}:{tools}",
        "PYTHONPATH": str(ROOT),
        "PYTHONDONTWRITEBYTECODE": "1",
        "HOME": "/root",
    }


def _image(directory: Path) -> list[Mount]:
    """The commands of an installed babysit, and what an empty /tmp would hide from a container."""
    programs = directory / "bin"
    programs.mkdir(parents=True)
    for name, module in (
        ("babysit", "babysit.__main__"),
        ("babysit-agent", "babysit.agent"),
        ("babysit-node-monitor", "babysit.node_monitor"),
    ):
        program = programs / name
        program.write_text(
            f"#!{sys.executable}\nimport sys\nfrom {module} import main\nsys.exit(main())\n"
        )
        program.chmod(0o755)
    hidden = {ROOT, Path(sys.prefix), Path(sys.base_prefix)}
    own = [Mount(path, str(path)) for path in sorted(hidden) if path.is_relative_to("/tmp")]
    return [*own, Mount(directory, "/image", read_only=True)]
