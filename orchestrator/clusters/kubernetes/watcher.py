"""Follows the API server's watches: the inventory, and the lives of workers.

Three collections are followed: the nodes, the Pods of workers, and a digest of the Pods of others.
Whatever changes there is judged by :mod:`.nodes` and :mod:`.ends`, which are pure; what follows is
put into a queue, once.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import structlog

from jobs.clock import Clock
from orchestrator.clusters.errors import ClusterError
from orchestrator.clusters.kubernetes import ends, names, nodes
from orchestrator.clusters.kubernetes.cache import Cache, Collection
from orchestrator.clusters.kubernetes.client import Api, ApiError
from orchestrator.clusters.kubernetes.merge import Json
from orchestrator.clusters.kubernetes.nodes import NodeSettings, Used
from orchestrator.clusters.port import (
    Change,
    InventoryChanged,
    WorkerGone,
    WorkerLeaving,
    WorkerStuck,
)
from orchestrator.core.messages.events import NodeInfo

_log = structlog.get_logger(__name__)
SYNC_SECONDS = 20.0
"""How long a call waits for the first lists."""
OTHERS_UNKNOWN = (
    "Pods of others are not subtracted from nodes: grant list and watch of Pods in a ClusterRole"
)


@dataclasses.dataclass(frozen=True, slots=True)
class Other:
    """The Pod of somebody else, on a node."""

    node: str
    used: Used


class Watcher:
    """Follows the cluster.

    Attributes:
        stopping: Workers that babysit itself has stopped: their leaving is not reported.
        confirm: Called with a Pod that has ended by its phase only.
        vanished: Called with a Pod that is not listed any more, and whose end was not seen.
        nodeless: Called with a Pod whose Node is not listed.
    """

    def __init__(
        self, api: Api, clock: Clock, settings: NodeSettings, selector: str, node_selector: str
    ) -> None:
        self._api, self._settings = api, settings
        self.changes: asyncio.Queue[Change | None] = asyncio.Queue()
        self.stopping: set[str] = set()
        self.confirm: Callable[[Json], None] = lambda _: None
        self.vanished: Callable[[Json], None] = lambda _: None
        self.nodeless: Callable[[Json], None] = lambda _: None
        own = Collection(path=f"/api/v1/namespaces/{api.namespace}/pods", selector=selector)
        self._pods = Cache(api, clock, own, self._pod_changed)
        everywhere = Collection(
            path="/api/v1/pods",
            fields="status.phase!=Succeeded,status.phase!=Failed,spec.nodeName!=",
            keep=self._digest,
        )
        self._others = Cache(api, clock, everywhere, self._other_changed)
        inventory = Collection(path="/api/v1/nodes", selector=node_selector)
        self._nodes = Cache(api, clock, inventory, self._node_changed)
        self._used: dict[str, Used] = {}
        """Node -> what the Pods of others request there."""
        self._told: dict[str, str] = {}
        """Worker -> what was last said of it, so that it is said once."""
        self._wanted: Counter[str] = Counter()
        """Worker -> ends that are to be told when it is gone: one for each stop."""
        self._absent: set[str] = set()
        """Nodes without an object. That one is not listed does not say so: it may have lost the
        label that selects it, or be newer than the list of another server."""
        self._blind = False

    def start(self) -> None:
        """Begin to follow the cluster; has no effect the second time."""
        self._nodes.start()
        self._others.start()
        self._pods.start(after=self._nodes.listed)  # Pods are judged by their nodes

    async def close(self) -> None:
        """Stop following, and end the queue."""
        for cache in (self._nodes, self._pods, self._others):
            await cache.close()
        self.changes.put_nowait(None)

    async def ready(self) -> None:
        """Wait until the cluster is known. Later, what was known stays, though it may be old.

        Raises:
            ClusterError: The API server does not answer.
        """
        self.start()
        try:
            async with asyncio.timeout(SYNC_SECONDS):
                for cache in (self._nodes, self._pods):
                    await cache.listed.wait()
                await self._others.answered.wait()
        except TimeoutError:
            failure = self._nodes.failure or self._pods.failure or self._others.failure
            raise ClusterError(
                str(failure) if failure else "Kubernetes: the API server does not answer in time"
            ) from failure
        if not self._others.listed.is_set() and not self._blind:
            self._blind = True
            _log.warning(OTHERS_UNKNOWN, error=str(self._others.failure))

    # --- what is known ------------------------------------------------------------------------

    def inventory(self) -> list[NodeInfo]:
        """The nodes that runs may use, by name."""
        return [
            nodes.node_info(node, self._used.get(name, Used()), self._settings)
            for name, node in sorted(self.nodes().items())
        ]

    def nodes(self) -> dict[str, Json]:
        """The Node objects of the inventory, by name."""
        return {
            name: node
            for (_, name), node in self._nodes.objects.items()
            if nodes.in_use(node, self._settings)
        }

    def node(self, name: str | None) -> tuple[Json | None, bool]:
        """A Node object, and whether it is known to be up to date."""
        return self._nodes.objects.get(("", name or "")), self._nodes.synced.is_set()

    def pods_of(self, run: str) -> list[Json]:
        """The Pods of a run."""
        return [pod for pod in self._pods.objects.values() if _annotation(pod, names.RUN) == run]

    def pod(self, name: str) -> Json | None:
        """A worker's Pod, as last seen."""
        found: Json | None = self._pods.objects.get((self._api.namespace, name))
        return found

    def gone(self, pod: Mapping[str, Any]) -> str | None:
        """Why the worker of a Pod is gone; None if it may be alive."""
        name = _node_name(pod)
        return ends.gone(pod, self._nodes.objects.get(("", name)), known=name in self._absent)

    # --- what requests have found ---------------------------------------------------------------

    async def look_for_node(self, pod: Json) -> None:
        """Ask for the Node of a Pod, if it is not listed. A Pod without a Node is gone.

        Raises:
            ApiError: Nobody can tell.
        """
        name = _node_name(pod)
        if not self._is_nodeless(pod):
            return
        try:
            await self._api.request("GET", f"/api/v1/nodes/{name}")
        except ApiError as error:
            if error.status != 404:
                raise
            if self._is_nodeless(pod):  # still
                self._absent.add(name)
                self._judge_pods_on(name)

    def has_vanished(self, pod: Json) -> None:
        """Take over that a Pod has no object any more."""
        reason = "its Pod was removed together with the finalizer of babysit"
        worker = _annotation(pod, names.WORKER)
        self._gone(worker, pod, reason)
        self._forget(worker)

    def see(self, pod: Json) -> None:
        """Take over a Pod that a request returned."""
        self._pods.put(pod)

    def tell_again(self, worker: str, run: str, pod: Json) -> None:
        """Have the end of a worker told once more: now, or when it has ended."""
        if (reason := self.gone(pod)) is not None:
            self.changes.put_nowait(WorkerGone(worker=worker, run=run, reason=reason))
        else:
            self._wanted[worker] += 1

    def tell_stuck(self, worker: str, run: str, reason: str) -> None:
        """Tell, once, what keeps a Pod from being created."""
        self._once(worker, WorkerStuck(worker=worker, run=run, reason=reason), "stuck uncreated")

    # --- what changes -------------------------------------------------------------------------

    def _pod_changed(self, before: Json | None, after: Json | None) -> None:
        pod = after or before
        if pod is None or not (worker := _annotation(pod, names.WORKER)):
            return
        if after is None:
            self._removed(worker, pod)
        else:
            self._judge(worker, after)

    def _removed(self, worker: str, pod: Json) -> None:
        """A Pod has no object any more: as after every end, or somebody took its finalizer away."""
        if not self._told.get(worker, "").startswith("gone"):
            if (reason := self.gone(pod)) is None:
                self.vanished(pod)  # or it has lost its labels, and lives
                return
            self._gone(worker, pod, reason)
        self._forget(worker)

    def _forget(self, worker: str) -> None:
        self._told.pop(worker, None)
        self.stopping.discard(worker)

    def _judge(self, worker: str, pod: Json) -> None:
        run = _annotation(pod, names.RUN)
        if self._told.get(worker, "").startswith("gone"):
            return
        if (reason := self.gone(pod)) is not None:
            self._gone(worker, pod, reason)
            return
        if self._is_nodeless(pod):
            self.nodeless(pod)
        if ends.needs_confirmation(pod):
            self.confirm(pod)
        elif (why := ends.leaving(pod)) is not None:
            if worker not in self.stopping:
                self._once(worker, WorkerLeaving(worker=worker, run=run, reason=why), "leaving")
        else:
            trouble = ends.trouble(pod)
            if trouble is not None:
                stuck = WorkerStuck(worker=worker, run=run, **trouble._asdict())
                self._once(worker, stuck, f"stuck {trouble.reason}")
            elif self._told.get(worker, "").startswith("stuck"):
                self._once(worker, WorkerStuck(worker=worker, run=run, reason=""), "unstuck")

    def _once(self, worker: str, change: Change, mark: str) -> None:
        if self._told.get(worker) != mark:
            self._told[worker] = mark
            self.changes.put_nowait(change)

    def _gone(self, worker: str, pod: Json, reason: str) -> None:
        self._told[worker] = f"gone {reason}"
        change = WorkerGone(worker=worker, run=_annotation(pod, names.RUN), reason=reason)
        for _ in range(max(1, self._wanted.pop(worker, 0))):
            self.changes.put_nowait(change)

    def _node_changed(self, before: Json | None, after: Json | None) -> None:
        """Heartbeats of nodes change nothing; what does is looked at, with the Pods there."""
        was = before and nodes.state(before, self._settings)
        now = after and nodes.state(after, self._settings)
        if was == now:
            return
        self.changes.put_nowait(InventoryChanged())
        name = (after or before or {})["metadata"]["name"]
        if after is not None:
            self._absent.discard(name)
        self._judge_pods_on(name)

    def _judge_pods_on(self, node: str) -> None:
        for pod in list(self._pods.objects.values()):
            if _node_name(pod) == node:
                self._pod_changed(pod, pod)

    def _is_nodeless(self, pod: Json) -> bool:
        name = _node_name(pod)
        return bool(name) and ("", name) not in self._nodes.objects and name not in self._absent

    def _digest(self, pod: Json) -> Other | None:
        """The part of a Pod that is kept; None for those of this installation's workers."""
        labels = pod["metadata"].get("labels") or {}
        own = (
            labels.get(names.COMPONENT) == "worker"
            and labels.get(names.INSTANCE) == self._settings.instance
            and pod["metadata"]["namespace"] == self._api.namespace
        )
        if own or not (node := pod.get("spec", {}).get("nodeName")):
            return None
        return Other(node, nodes.requests(pod, self._settings))

    def _other_changed(self, before: Other | None, after: Other | None) -> None:
        if before == after:
            return
        for other, sign in ((before, -1), (after, 1)):
            if other is not None:
                used = self._used.get(other.node, Used())
                self._used[other.node] = nodes.plus(used, other.used, sign)


def _node_name(pod: Mapping[str, Any]) -> str:
    return str(pod.get("spec", {}).get("nodeName") or "")


def _annotation(given: Mapping[str, Any], name: str) -> str:
    return str((given["metadata"].get("annotations") or {}).get(name, ""))
