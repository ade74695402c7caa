"""The Pods of this server's release, over the API of Kubernetes."""

from __future__ import annotations

from collections.abc import Sequence

from jobs.clock import Clock
from orchestrator.clusters.kubernetes import names
from orchestrator.clusters.kubernetes.client import Access, Api, ApiError
from orchestrator.clusters.kubernetes.leader_label import LEADER, LabelError
from orchestrator.clusters.kubernetes.merge import Json
from orchestrator.settings import Settings


def from_settings(settings: Settings, clock: Clock) -> ReleasePods:
    """The Pods of the release that `settings.pod` belongs to. Nothing is requested yet.

    Raises:
        ClusterError: There is no access to Kubernetes.
    """
    access = Access(kubeconfig=settings.kubernetes_kubeconfig, context=settings.kubernetes_context)
    return ReleasePods(Api(access, clock), settings.pod)


class ReleasePods:
    """The Pods of one release, over the API of Kubernetes.

    Args:
        api: The API server.
        pod: NAMESPACE/NAME of this server's Pod, whose labels tell its release.
    """

    def __init__(self, api: Api, pod: str) -> None:
        namespace, _, self.own = pod.partition("/")
        self._api, self._path = api, f"/api/v1/namespaces/{namespace}/pods"
        self._selector = ""

    async def labelled(self) -> Sequence[str]:
        """See the protocol."""
        if not self._selector:
            own = await self._request("GET", f"{self._path}/{self.own}")
            labels = own.get("metadata", {}).get("labels", {})
            same = [f"{key}={labels.get(key, '')}" for key in (names.INSTANCE, names.COMPONENT)]
            self._selector = ",".join([f"{LEADER}=true", *same])
        found = await self._request("GET", self._path, labelSelector=self._selector)
        return [pod["metadata"]["name"] for pod in found.get("items", ())]

    async def label(self, name: str, *, leads: bool) -> None:
        """See the protocol."""
        body = {"metadata": {"labels": {LEADER: "true" if leads else None}}}
        await self._request("PATCH", f"{self._path}/{name}", body)

    async def close(self) -> None:
        """See the protocol."""
        await self._api.close()

    async def _request(
        self, method: str, path: str, body: Json | None = None, **query: str
    ) -> Json:
        """The answer of the API; empty: there is no such object."""
        try:
            return await self._api.request(method, path, body, query=query, patience=0.0)
        except ApiError as error:
            if error.status == 404:
                return {}
            raise LabelError(str(error)) from error
