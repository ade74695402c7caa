"""The label by which a Service finds the server that leads.

The problem: several servers share a database, and one leads. A Service over all of them would send
clients to servers that must refuse them. Readiness cannot tell the servers apart: a Deployment with
a Pod that is never ready cannot be rolled out, and a disruption budget would let no node drain.

The design: every server compares once a second whether it leads with the label of its own Pod. A
server that begins to lead also removes the label from the other Pods of its release, since a frozen
server cannot do that itself.

Limits: while the API of Kubernetes is away the labels stay as they are. A client that reaches
another server is refused with `not_leader`, and asks again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import structlog

from jobs.clock import Clock
from orchestrator.errors import BabysitError

LEADER = "babysit/leader"
"""Label of the Pod whose server leads; its value is `true`."""
LOOK_SECONDS = 1.0
REPEAT_SECONDS = 30.0
"""The label of the Pod that leads is set again after this time: somebody may have removed it."""
_REQUEST_SECONDS = 5.0
_INSTANCE = "app.kubernetes.io/instance"
_COMPONENT = "app.kubernetes.io/component"
_log = structlog.get_logger(__name__)


class LabelError(BabysitError):
    """The API of Kubernetes did not answer, or refused."""


class Pods(Protocol):
    """The Pods of this server's release, as the label needs them."""

    async def labelled(self) -> Sequence[str]:
        """Names of the Pods with the label.

        Raises:
            LabelError: Nobody can tell.
        """

    async def label(self, name: str, *, leads: bool) -> None:
        """Set or remove the label of a Pod; a Pod that is gone needs none.

        Raises:
            LabelError: The label may be as it was.
        """


async def keep(own: str, pods: Pods, leads: Callable[[], bool], clock: Clock) -> None:
    """Keep the label of the Pod `own` to `leads`, until cancelled."""
    done: bool | None = None
    failed = ""
    repeat_at = 0.0
    while True:
        wanted = leads()
        if wanted != done or (wanted and clock.monotonic() >= repeat_at):
            try:
                await _apply(own, pods, leads=wanted)
            except LabelError as error:
                if str(error) != failed:
                    _log.warning("labelling failed, will retry", pod=own, error=str(error))
                done, failed = None, str(error)
            else:
                done, failed, repeat_at = wanted, "", clock.monotonic() + REPEAT_SECONDS
        await clock.sleep(LOOK_SECONDS)


async def _apply(own: str, pods: Pods, *, leads: bool) -> None:
    await pods.label(own, leads=leads)
    if leads:
        for name in await pods.labelled():
            if name != own:
                await pods.label(name, leads=False)


def pods_of(pod: str) -> tuple[str, ReleasePods]:
    """Name and release of this server's Pod.

    Args:
        pod: NAMESPACE/NAME.

    Raises:
        LabelError: This is not a Pod, or the client library is missing.
    """
    namespace, _, own = pod.partition("/")
    try:
        from kubernetes import client, config  # noqa: PLC0415 (an optional extra)

        config.load_incluster_config()
    except ModuleNotFoundError as error:
        raise LabelError(
            f"BABYSIT_POD={pod} needs {error.name}: pip install 'babysit[kubernetes]'"
        ) from error
    except config.ConfigException as error:
        raise LabelError(
            f"BABYSIT_POD={pod}, and no service account is mounted here: {error}"
        ) from error
    return own, ReleasePods(client.CoreV1Api(), namespace, own)


class ReleasePods:
    """The Pods of one release, over the API of Kubernetes.

    Args:
        api: A `kubernetes.client.CoreV1Api`.
        namespace: Of the release.
        own: Name of this server's Pod, whose labels tell its release.
    """

    def __init__(self, api: Any, namespace: str, own: str) -> None:
        self._api, self._namespace, self._own = api, namespace, own
        self._selector = ""

    async def labelled(self) -> Sequence[str]:
        """See the protocol."""
        if not self._selector:
            own = await _asked(self._api.read_namespaced_pod, self._own, self._namespace)
            if own is None:
                return []
            labels = own.metadata.labels or {}
            same = [f"{key}={labels.get(key, '')}" for key in (_INSTANCE, _COMPONENT)]
            self._selector = ",".join([f"{LEADER}=true", *same])
        found = await _asked(
            self._api.list_namespaced_pod, self._namespace, label_selector=self._selector
        )
        return [pod.metadata.name for pod in found.items]

    async def label(self, name: str, *, leads: bool) -> None:
        """See the protocol."""
        body = {"metadata": {"labels": {LEADER: "true" if leads else None}}}
        await _asked(self._api.patch_namespaced_pod, name, self._namespace, body)


async def _asked(call: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """The answer of the API; None: there is no such object."""
    from kubernetes.client.exceptions import ApiException  # noqa: PLC0415 (an optional extra)
    from urllib3.exceptions import HTTPError  # noqa: PLC0415

    try:
        return await asyncio.to_thread(
            call, *arguments, _request_timeout=_REQUEST_SECONDS, **options
        )
    except ApiException as error:
        if error.status == 404:
            return None
        raise LabelError(f"the API of Kubernetes answered {error.status} {error.reason}") from error
    except (HTTPError, OSError) as error:
        raise LabelError(f"the API of Kubernetes does not answer: {error}") from error
