"""A node for the API server: a stand-in of the kubelet, whose containers are local processes.

It registers the node, keeps its Lease, runs the Pods that the scheduler binds to it, reports their
status and honours their end. It can be frozen (alive, but not heard of), lost (everything on it is
gone) and restored.

A simulated node has no processes: its Pods are Running as soon as they are bound, and end when they
are deleted.
"""

from __future__ import annotations

import contextlib
import shutil
import threading
from typing import TYPE_CHECKING

import httpx

from jobs.clock import SystemClock
from tests.kubernetes.api import Api, ApiError, Object
from tests.kubernetes.containers import Mount
from tests.kubernetes.pod_run import PodRun, condition, now
from tests.kubernetes.volumes import Places

if TYPE_CHECKING:
    from tests.kubernetes.bed import Bed

_LEASE_SECONDS = 40


class Kubelet:
    """One node.

    Attributes:
        online: Set while the node talks to the API server.
    """

    def __init__(
        self, bed: Bed, name: str, address: str, *, labels: dict[str, str], capacity: Object
    ) -> None:
        self.bed, self.name, self.address = bed, name, address
        self.api: Api = bed.api
        self.api_url = bed.servers.url
        self.image_faults = bed.image_faults
        self.image_environment = bed.image_environment
        self.image_mounts = [*bed.image_mounts, Mount(bed.hosts, "/etc/hosts")]
        self.places = Places(
            disk=bed.directory / name, memory=bed.memory / name, shared=bed.shared, address=address
        )
        self.labels = {
            "kubernetes.io/hostname": name,
            "kubernetes.io/os": "linux",
            "kubernetes.io/arch": "amd64",
            **labels,
        }
        self.capacity = capacity
        self.online = threading.Event()
        self._lock = threading.Lock()
        self._runs: dict[str, PodRun] = {}

    @property
    def path(self) -> str:
        """Of the Node object."""
        return f"/api/v1/nodes/{self.name}"

    # what a test does to it

    def register(self, taints: list[Object] | None = None) -> None:
        """Create the Node, Ready."""
        node = {
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {"name": self.name, "labels": self.labels},
            "spec": {"taints": taints or []},
            "status": self._status(),
        }
        self.api.create("/api/v1/nodes", node)
        self.online.set()
        self.beat()

    def freeze(self) -> None:
        """Stop talking to the API server; the containers run on. In a few seconds the node is
        NotReady.
        """
        self.online.clear()

    def thaw(self) -> None:
        """Talk again, and do what was missed."""
        self.online.set()
        self._report_ready()
        self.bed.resync(self)

    def lose(self) -> None:
        """The node is gone without a word: its processes, and its memory. Its disk and its Node
        object stay.
        """
        self.online.clear()
        with self._lock:
            runs = list(self._runs.values())
            self._runs.clear()
        for run in runs:
            run.lose()
        for run in runs:
            run.join()
        shutil.rmtree(self.places.memory, ignore_errors=True)

    def restore(self) -> None:
        """The lost node starts again, with nothing on it: Pods that were never to restart are
        Failed.
        """
        self.thaw()

    def remove(self) -> None:
        """Take the node out of the cluster: as lose(), and the Node object goes too."""
        self.lose()
        self.api.delete(self.path)
        self.api.delete(self._lease_path)
        shutil.rmtree(self.places.disk, ignore_errors=True)

    def pod(self, name: str) -> PodRun:
        """A Pod on this node, by name. KeyError: there is none."""
        with self._lock:
            return next(run for run in self._runs.values() if run.name == name)

    def pods(self) -> list[PodRun]:
        """All Pods on this node, those included that ended and were not deleted."""
        with self._lock:
            return list(self._runs.values())

    # what the bed does to it

    def beat(self) -> None:
        """Renew the Lease."""
        spec = {
            "holderIdentity": self.name,
            "leaseDurationSeconds": _LEASE_SECONDS,
            "renewTime": SystemClock().now().strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
        }
        try:
            self.api.patch(self._lease_path, {"spec": spec})
        except ApiError as error:
            if error.status != 404:
                raise
            lease = {
                "apiVersion": "coordination.k8s.io/v1",
                "kind": "Lease",
                "metadata": {"name": self.name, "namespace": "kube-node-lease"},
                "spec": spec,
            }
            self.api.create("/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases", lease)

    def sync(self, change: str, pod: Object) -> None:
        """A Pod of this node is so now."""
        if not self.online.is_set():
            return  # thaw() looks at all of them
        uid = pod["metadata"]["uid"]
        leaving = pod["metadata"].get("deletionTimestamp") is not None or change == "DELETED"
        terminal = pod.get("status", {}).get("phase") in {"Succeeded", "Failed"}
        with self._lock:
            run = self._runs.get(uid)
            if run is None and not leaving and not terminal and not _was_here(pod):
                run = self._runs[uid] = self.bed.new_run(self, pod)
                run.start()
                return
            if change == "DELETED":
                self._runs.pop(uid, None)
        if run is not None and leaving:
            grace = pod["metadata"].get("deletionGracePeriodSeconds")
            if change == "DELETED" and grace is None:
                grace = pod["spec"].get("terminationGracePeriodSeconds", 30)
            run.delete(float(grace or 0))
        elif run is None and change != "DELETED":
            self._settle_unknown(pod, leaving=leaving, terminal=terminal)

    def close(self) -> None:
        """End everything at once; the test is over."""
        self.lose()

    # parts

    @property
    def _lease_path(self) -> str:
        return f"/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/{self.name}"

    def _settle_unknown(self, pod: Object, *, leaving: bool, terminal: bool) -> None:
        """A Pod that this node has nothing of: it was lost with the node's last life."""
        metadata = pod["metadata"]
        path = f"/api/v1/namespaces/{metadata['namespace']}/pods/{metadata['name']}"
        if leaving:
            self.api.delete(path, grace=0, uid=metadata["uid"])
        elif not terminal and pod["spec"].get("restartPolicy", "Always") == "Never":
            lost = {"exitCode": 137, "reason": "ContainerStatusUnknown", "finishedAt": now()}
            statuses = [
                {**status, "ready": False, "state": {"terminated": lost}}
                for status in pod["status"].get("containerStatuses", [])
            ]
            body = {"status": {"phase": "Failed", "containerStatuses": statuses}}
            with contextlib.suppress(ApiError):
                self.api.patch(f"{path}/status", body)
        elif not terminal:
            with self._lock:
                run = self._runs[metadata["uid"]] = self.bed.new_run(self, pod)
            run.start()

    def _report_ready(self) -> None:
        self.beat()
        body = {"status": self._status()}
        with contextlib.suppress(httpx.TransportError):
            self.api.patch(
                f"{self.path}/status", body, kind="application/strategic-merge-patch+json"
            )

    def _status(self) -> Object:
        conditions = [
            condition("MemoryPressure", False, "KubeletHasSufficientMemory"),
            condition("DiskPressure", False, "KubeletHasNoDiskPressure"),
            condition("PIDPressure", False, "KubeletHasSufficientPID"),
            condition("Ready", True, "KubeletReady"),
        ]
        stamped = [{**item, "lastHeartbeatTime": now()} for item in conditions]
        return {
            "capacity": self.capacity,
            "allocatable": self.capacity,
            "conditions": stamped,
            "addresses": [
                {"type": "InternalIP", "address": self.address},
                {"type": "Hostname", "address": self.name},
            ],
            "nodeInfo": _NODE_INFO,
        }


class SimulatedKubelet(Kubelet):
    """A node of which there are only objects."""

    def register(self, taints: list[Object] | None = None) -> None:
        """Create the Node, Ready.

        The API server taints a new node `not-ready`; where the controller-manager does not watch
        nodes, nobody else takes that away.
        """
        super().register(taints)
        self.api.patch(self.path, {"spec": {"taints": taints or None}})

    def sync(self, change: str, pod: Object) -> None:
        """A bound Pod runs at once; a deleted one is gone at once."""
        metadata = pod["metadata"]
        path = f"/api/v1/namespaces/{metadata['namespace']}/pods/{metadata['name']}"
        if change == "DELETED":
            return
        if metadata.get("deletionTimestamp") is not None:
            self.api.delete(path, grace=0, uid=metadata["uid"])
        elif pod.get("status", {}).get("phase") == "Pending":
            statuses = [
                {
                    "name": item["name"],
                    "image": item.get("image", ""),
                    "imageID": "",
                    "ready": True,
                    "restartCount": 0,
                    "state": {"running": {"startedAt": now()}},
                }
                for item in pod["spec"]["containers"]
            ]
            status = {
                "phase": "Running",
                "podIP": self.bed.new_address(),
                "startTime": now(),
                "conditions": [condition("Ready", True), condition("ContainersReady", True)],
                "containerStatuses": statuses,
            }
            with contextlib.suppress(ApiError):  # it went meanwhile
                self.api.patch(
                    f"{path}/status",
                    {"metadata": {"uid": metadata["uid"]}, "status": status},
                    kind="application/strategic-merge-patch+json",
                )

    def beat(self) -> None:
        """Nothing: the servers of simulated nodes do not look at heartbeats."""


def _was_here(pod: Object) -> bool:
    """Whether a kubelet had begun with a Pod."""
    return bool(pod.get("status", {}).get("containerStatuses"))


_NODE_INFO = {
    "architecture": "amd64",
    "bootID": "",
    "containerRuntimeVersion": "tests://1",
    "kernelVersion": "",
    "kubeProxyVersion": "v1.20.2",
    "kubeletVersion": "v1.20.2",
    "machineID": "",
    "operatingSystem": "linux",
    "osImage": "",
    "systemUUID": "",
}
