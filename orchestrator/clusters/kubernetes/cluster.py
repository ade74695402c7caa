"""Workers as Pods: :class:`orchestrator.clusters.port.Cluster` on an API server.

A launch is two requests, a Secret and a Pod, and one more for the first worker of a run; both names
come from the worker's id, so that a repeated launch is refused by the server itself (409). What
makes a start happen at most once is said in the package's docstring.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Collection, Coroutine, Mapping
from typing import Any

import structlog

from jobs.clock import Clock
from orchestrator.clusters.errors import ClusterError, unknown_node
from orchestrator.clusters.kubernetes import manifests, names, nodes
from orchestrator.clusters.kubernetes.client import Api, ApiError
from orchestrator.clusters.kubernetes.ends import LOST
from orchestrator.clusters.kubernetes.manifests import NO_IMAGE, PodSettings
from orchestrator.clusters.kubernetes.merge import Json
from orchestrator.clusters.kubernetes.names import object_name
from orchestrator.clusters.kubernetes.nodes import NodeSettings
from orchestrator.clusters.kubernetes.requests import Requests
from orchestrator.clusters.kubernetes.watcher import Watcher
from orchestrator.clusters.port import Change, WorkerGone, WorkerLaunch, WorkerLeaving
from orchestrator.core.messages.events import NodeInfo

_log = structlog.get_logger(__name__)
CLOSE_SECONDS = 5.0
"""How long the last acknowledgements may take; an end whose one is cut off is reported again."""


class KubernetesCluster:
    """Implements the port on Kubernetes."""

    ignored_fields: Mapping[str, str] = {"ray": "Kubernetes starts no actor of Ray"}
    runs_here = False
    takes_bundles = True

    def __init__(
        self, api: Api, clock: Clock, pods: PodSettings, of_nodes: NodeSettings, selector: str = ""
    ) -> None:
        self._api, self._requests = api, Requests(api, clock)
        self._settings, self._node_settings = pods, of_nodes
        self.needed_fields: Mapping[str, str] = {} if pods.image else {"image": NO_IMAGE}
        self._ours = f"{names.COMPONENT}=worker,{names.INSTANCE}={pods.instance}"
        self._watcher = Watcher(api, clock, of_nodes, self._ours, selector)
        self._watcher.confirm = lambda pod: self._spawn(self._confirm(pod))
        self._watcher.vanished = lambda pod: self._spawn(self._vanished(pod))
        self._watcher.nodeless = lambda pod: self._spawn(
            self._requests.insist(lambda: self._watcher.look_for_node(pod), "Node is not listed")
        )
        base = f"/api/v1/namespaces/{pods.namespace}"
        self._pods, self._secrets = f"{base}/pods", f"{base}/secrets"
        self._services = f"{base}/services"
        self._owners: dict[str, asyncio.Future[Json]] = {}
        """Run -> its Service."""
        self._runs: set[str] | None = None
        """Runs that have a Service; None: it is not known yet."""
        self._told: Change | None = None
        """The last yielded change, if its reader stored nothing of it; the next reader gets it."""
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed = False

    # --- the port ---------------------------------------------------------------------------

    async def nodes(self) -> list[NodeInfo]:
        """The inventory. While the API server is away, as it was last seen."""
        await self._watcher.ready()
        return self._watcher.inventory()

    async def launch(self, launch: WorkerLaunch) -> None:
        """Create the worker's Secret and Pod, unless they were created before.

        Raises:
            ClusterError: No such node, or the API server is away for longer than a launch can wait,
                or refuses for now (a quota).
            ValueError: The spec has no image, a wrong template, or the API server finds the Pod
                invalid or not admissible.
        """
        await self._watcher.ready()
        resource = nodes.gpu_resource(self._node(launch), self._node_settings)
        placeholder = {"metadata": {"name": object_name(launch.run), "uid": ""}}
        manifests.pod(launch, resource, placeholder, self._settings)  # what is wrong is said first
        owner = await self._owner(launch.run)
        secret = manifests.secret(launch, owner, self._settings)
        made = await self._requests.create(self._secrets, secret)
        if made is None and (ended := await self._tombstone(launch.worker)) is not None:
            self._tell(launch.worker, launch.run, ended)
            return
        wanted = manifests.pod(launch, resource, owner, self._settings)
        pod = await self._requests.create(self._pods, wanted, lambda why: self._waits(launch, why))
        if launch.worker in self._watcher.stopping:  # meanwhile, and did not find this Pod
            await self.stop(launch.worker, launch.run)
        elif pod is not None:
            self._watcher.see(pod)
        elif (pod := await self._requests.get(self._pods, launch.worker)) is not None:
            self._watcher.see(pod)
            if self._watcher.gone(pod) is not None:
                self._watcher.tell_again(launch.worker, launch.run, pod)

    async def stop(self, worker: str, run: str) -> None:
        """Delete the worker's Pod. From then on its kubelet ends it, whatever becomes of us."""
        self._watcher.start()
        self._watcher.stopping.add(worker)
        try:
            pod = await self._api.request(
                "DELETE",
                f"{self._pods}/{object_name(worker)}",
                query={"gracePeriodSeconds": self._settings.stop_seconds},
            )
        except ApiError as error:
            if error.status != 404:
                raise
            await self._never_start(worker, run)
            return
        if pod.get("kind") == "Pod":
            self._watcher.tell_again(worker, run, pod)
            self._watcher.see(pod)

    async def alive(self, worker: str, run: str) -> bool | None:
        """Ask the API server, not the cache. None while the node does not report."""
        await self._watcher.ready()
        pod = await self._requests.get(self._pods, worker)
        if pod is None or _annotation(pod, names.RUN) != run:
            return False
        await self._watcher.look_for_node(pod)
        if self._watcher.gone(pod):
            return False
        name = pod.get("spec", {}).get("nodeName")
        node, known = self._watcher.node(name)
        if name and (not known or not nodes.is_ready(node)):
            return None
        return True

    async def changes(self) -> AsyncIterator[Change]:
        """News of workers; see the port."""
        if self._closed:
            return
        self._watcher.start()
        await self._tell_untold()
        while (change := self._told or await self._watcher.changes.get()) is not None:
            self._told = change
            yield change
            self._told = None
            if isinstance(change, WorkerGone | WorkerLeaving):
                # Somebody may have deleted the Service: what it owned would be deleted too.
                self._owners.pop(change.run, None)
            if isinstance(change, WorkerGone):
                self._spawn(self._acknowledge(change))

    async def keep_runs(self, runs: Collection[str]) -> None:
        """Delete the Services of other runs, once no Pod of theirs is left."""
        await self._watcher.ready()
        if self._runs is None:
            found = await self._api.request(
                "GET", self._services, query={"labelSelector": self._ours}
            )
            named = {_annotation(each, names.RUN) for each in found.get("items") or ()}
            self._runs = named | set(self._owners)
        for run in self._runs - {*runs}:
            if not self._watcher.pods_of(run):
                await self._requests.if_there("DELETE", f"{self._services}/{object_name(run)}")
                self._runs.discard(run)
                self._owners.pop(run, None)

    async def cordon(self, reasons: Mapping[str, str]) -> None:
        """Make these nodes unschedulable for everybody, and take back what was made so before.

        A node that somebody else has cordoned stays as it is.
        """
        await self._watcher.ready()
        instance = self._settings.instance
        for name, node in self._watcher.nodes().items():
            ours, reason = nodes.cordoned_by_us(node, instance), reasons.get(name)
            by_others = node.get("spec", {}).get("unschedulable") and not ours
            if reason is not None and not ours and not by_others:
                patch = nodes.cordon_patch(instance, reason)
            elif reason is None and ours:
                patch = nodes.uncordon_patch()
            else:
                continue
            await self._requests.if_there("PATCH", f"/api/v1/nodes/{name}", patch)

    async def close(self) -> None:
        """Stop watching. Pods continue."""
        self._closed = True
        if self._tasks:  # what a reader has stored need not be told to the next server
            await asyncio.wait(self._tasks, timeout=CLOSE_SECONDS)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._watcher.close()
        await self._api.close()

    # --- starting ---------------------------------------------------------------------------

    def _node(self, launch: WorkerLaunch) -> Json:
        known = self._watcher.nodes()
        if launch.node not in known:
            raise unknown_node(launch.node, launch.worker, sorted(known))
        return known[launch.node]

    def _waits(self, launch: WorkerLaunch, why: str) -> bool:
        """Tell what a launch waits for; False if the worker is not wanted any more."""
        if launch.worker in self._watcher.stopping:
            return False
        self._watcher.tell_stuck(launch.worker, launch.run, why)
        return True

    async def _owner(self, run: str) -> Json:
        """The run's Service. Launches of one run wait for one request."""
        made = self._owners.get(run)
        if made is None or (made.done() and (made.cancelled() or made.exception() is not None)):
            made = self._owners[run] = asyncio.ensure_future(self._make_owner(run))
        return await asyncio.shield(made)

    async def _make_owner(self, run: str) -> Json:
        wanted = manifests.service(run, self._settings)
        owner = await self._requests.create(self._services, wanted) or await self._requests.get(
            self._services, run
        )
        if owner is None or owner["metadata"].get("deletionTimestamp") is not None:
            raise ClusterError(f"the Service of run {run} is being deleted: try again")
        if self._runs is not None:
            self._runs.add(run)
        return owner

    # --- ending -----------------------------------------------------------------------------

    async def _never_start(self, worker: str, run: str) -> None:
        """Leave proof that a worker without a Pod does not start, and tell that it is gone."""
        ended = await self._tombstone(worker)
        if ended is None:
            owner = await self._owner(run)
            stone = manifests.tombstone(worker, run, owner, self._settings)
            if await self._requests.create(self._secrets, stone) is None:
                ended = await self._tombstone(worker)
                if ended is None:
                    # A launch is under way, or has lost its Pod: without its files none starts.
                    await self._api.request(
                        "PATCH",
                        f"{self._secrets}/{object_name(worker)}",
                        manifests.mark_gone("agent never started"),
                    )
        pod = await self._requests.get(self._pods, worker)
        if pod is None:
            self._tell(worker, run, ended or "agent never started")
        else:
            await self.stop(worker, run)

    async def _tombstone(self, worker: str) -> str | None:
        """Why a worker is gone by its Secret; None if it does not say so."""
        secret = await self._requests.get(self._secrets, worker)
        if secret is None or names.GONE not in (secret["metadata"].get("labels") or {}):
            return None
        return _annotation(secret, names.REASON)

    def _tell(self, worker: str, run: str, reason: str) -> None:
        gone = WorkerGone(worker=worker, run=run, reason=reason)
        self._watcher.changes.put_nowait(gone)

    async def _tell_untold(self) -> None:
        """Tell of workers without a Pod whose end an earlier server has not stored."""
        found = await self._api.request(
            "GET", self._secrets, query={"labelSelector": f"{self._ours},{names.GONE}=untold"}
        )
        for secret in found.get("items") or ():
            worker, run = _annotation(secret, names.WORKER), _annotation(secret, names.RUN)
            self._tell(worker, run, _annotation(secret, names.REASON))

    async def _acknowledge(self, gone: WorkerGone) -> None:
        """Leave the proof of the end in the Secret, then let the Pod go. Tried until it is done."""
        name = object_name(gone.worker)

        async def ask() -> None:
            patch = manifests.mark_gone(gone.reason, told=True)
            await self._requests.if_there("PATCH", f"{self._secrets}/{name}", patch)
            pod = self._watcher.pod(name)
            if pod is not None:
                await self._release(pod, force=gone.reason.startswith(LOST))

        await self._requests.insist(ask, f"{gone.worker} is gone, and its Pod is to be released")

    async def _release(self, pod: Json, *, force: bool) -> None:
        """Take babysit's finalizer off, and delete what has ended; by force if its node is lost."""
        path = f"{self._pods}/{pod['metadata']['name']}"
        others = [each for each in pod["metadata"].get("finalizers", ()) if each != names.FINALIZER]
        await self._requests.if_there("PATCH", path, {"metadata": {"finalizers": others}})
        if force:
            await self._requests.if_there("DELETE", path, {"gracePeriodSeconds": 0})
        elif pod["metadata"].get("deletionTimestamp") is None:
            await self._requests.if_there("DELETE", path)

    async def _confirm(self, pod: Json) -> None:
        with contextlib.suppress(ApiError):  # its next change asks again
            await self._requests.if_there("DELETE", f"{self._pods}/{pod['metadata']['name']}")

    async def _vanished(self, pod: Json) -> None:
        """Give a Pod back the labels by which it is watched; without an object it is gone."""
        name = pod["metadata"]["name"]
        patch = {"metadata": {"labels": pod["metadata"]["labels"]}}

        async def ask() -> None:
            found = await self._requests.if_there("PATCH", f"{self._pods}/{name}", patch)
            if found is None:
                self._watcher.has_vanished(pod)
            else:
                _log.warning("Pod had lost its labels, and has them again", pod=name)
                self._watcher.see(found)

        await self._requests.insist(ask, "Pod is not listed any more")

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _annotation(given: Mapping[str, Any], name: str) -> str:
    return str((given["metadata"].get("annotations") or {}).get(name, ""))
