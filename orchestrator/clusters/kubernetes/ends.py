"""Reads from a Pod object how its worker is: alive, about to leave, unable to start, or gone.

*Gone* is never a guess: the control plane starts the next attempt on it. A phase alone does not
say it, since old kubelets write `Failed` when they begin to evict, and a deletion by force removes
the object and nothing else. The status of the container says it, or the end of the node.
"""

from __future__ import annotations

import signal
from collections.abc import Mapping
from typing import Any, NamedTuple

from jobs.agent.command import PROGRAM
from orchestrator.clusters.kubernetes import nodes
from orchestrator.clusters.kubernetes.manifests import CONTAINER

LOST = "node lost"
"""First words of the reason where the end of a node is the proof."""
_NO_IMAGE = frozenset({"InvalidImageName", "ErrImageNeverPull"})
"""No node can have the image."""
_PULLING = frozenset({"ErrImagePull", "ImagePullBackOff", "RegistryUnavailable"})
_BROKEN = frozenset({"CreateContainerConfigError", "CreateContainerError", "RunContainerError"})
_ABSENT = ("not found", "manifest unknown", "unauthorized", "denied", "forbidden")
"""Words of registries for an image that is not there or not ours to pull, on whichever node. That a
name cannot be resolved may be the trouble of one node."""


class Trouble(NamedTuple):
    """Why a worker does not start, in the words of the kubelet or the scheduler."""

    reason: str
    hopeless: bool = False
    """True if no other node helps: the spec must change, or the image be pushed."""
    elsewhere: bool = False
    """True if another node may do, and this one does not, as far as is known."""


def gone(pod: Mapping[str, Any], node: Mapping[str, Any] | None, *, known: bool) -> str | None:
    """Why no process of the Pod's worker is left; None if there may be one.

    Args:
        pod: The Pod.
        node: The Node on which it was started; None if none is listed.
        known: True if the server has confirmed that there is no such Node: that is proof.
    """
    status, name = pod.get("status", {}), pod.get("spec", {}).get("nodeName")
    ended = _ended(status)
    if ended is not None:
        return _told(pod, ended)
    if not name:
        if _deleting(pod) or status.get("phase") == "Failed":
            return _told(pod, "agent never started")
        return None
    if node is None:
        return _told(pod, f"{LOST}: {name} has left the cluster") if known else None
    if nodes.is_down(node):
        return _told(pod, f"{LOST}: {name} is out of service")
    if not _deleted_for_good(pod):
        return None
    # By the kubelet, which has ended what ran; or by a person who knows that the node is dead.
    if _phase_ended(status):
        return _told(pod, "agent ended")
    if not _started(status):
        return _told(pod, "agent never started")
    return None if nodes.is_ready(node) else _told(pod, f"{LOST}: {name} is not ready")


def needs_confirmation(pod: Mapping[str, Any]) -> bool:
    """True if a Pod has ended by its phase only: a deletion makes its kubelet confirm it."""
    status = pod.get("status", {})
    return _phase_ended(status) and _ended(status) is None and not _deleting(pod)


def leaving(pod: Mapping[str, Any]) -> str | None:
    """Why the worker is about to be ended by somebody else; None if it is not.

    The container runs, and has been or is about to be asked to leave, with a grace to save.
    """
    target = _condition(pod, "DisruptionTarget")
    if target.get("status") == "True":
        return f"{target.get('reason', 'disruption')}: {target.get('message', 'no message')}"
    if _deleting(pod):
        return "its Pod is being deleted"
    return None


def trouble(pod: Mapping[str, Any]) -> Trouble | None:
    """Why the worker cannot start; None if nothing keeps it."""
    if _deleting(pod):
        return None
    placed = _condition(pod, "PodScheduled")
    if placed.get("status") == "False" and placed.get("reason") == "Unschedulable":
        return Trouble(f"unschedulable: {placed.get('message', 'no message')}", elsewhere=True)
    status = pod.get("status", {})
    for each in [*status.get("initContainerStatuses", ()), *status.get("containerStatuses", ())]:
        waiting = (each.get("state") or {}).get("waiting") or {}
        reason, message = waiting.get("reason", ""), waiting.get("message", "no message")
        if reason in _NO_IMAGE | _PULLING | _BROKEN:
            hopeless = _is_hopeless(reason, message.lower())
            return Trouble(f"{reason}: {message}", hopeless, elsewhere=reason in _BROKEN)
    return None


def _is_hopeless(reason: str, message: str) -> bool:
    """True if the image or the spec is at fault. The same words of a runtime may be of its node."""
    if reason in _PULLING:
        return any(word in message for word in _ABSENT)
    if reason == "CreateContainerConfigError":  # of a Secret or ConfigMap that the Pod names
        return "not found" in message
    no_agent = f'{PROGRAM}"' in message and ("not found" in message or "no such file" in message)
    return reason in _NO_IMAGE or no_agent


def _ended(status: Mapping[str, Any]) -> str | None:
    """How the container of the worker ended; None if its status does not say that it did."""
    for each in status.get("containerStatuses") or ():
        if each.get("name") == CONTAINER and (end := (each.get("state") or {}).get("terminated")):
            return _how(end)
    for each in status.get("initContainerStatuses") or ():
        end = (each.get("state") or {}).get("terminated")
        if end and end.get("exitCode") and _phase_ended(status):
            return f"agent never started: init container {each['name']} {_exit(end)}"
    if _phase_ended(status) and status.get("startTime") is None:
        return "agent never started"  # no kubelet has taken the Pod
    return None


def _how(end: Mapping[str, Any]) -> str:
    reason = end.get("reason", "")
    if reason == "OOMKilled":
        return "agent was killed by SIGKILL: OOMKilled: the container exceeded its memory limit"
    words = _exit(end)
    message = str(end.get("message") or "").strip()
    if message and words.startswith("exited"):
        words = f"{words}: {message.splitlines()[-1]:.300}"
    if reason not in {"", "Error", "Completed"}:
        words = f"{words} ({reason})"
    return f"agent {words}"


def _exit(end: Mapping[str, Any]) -> str:
    code = int(end.get("exitCode", 0))
    number = int(end.get("signal") or 0) or (code - 128 if 128 < code < 128 + signal.NSIG else 0)
    try:
        return f"was killed by {signal.Signals(number).name}"
    except ValueError:
        return f"exited with code {code}"


def _told(pod: Mapping[str, Any], how: str) -> str:
    """How the worker ended, with what the cluster says that led there."""
    status = pod.get("status", {})
    if status.get("reason") in {
        "Evicted",
        "Preempting",
        "NodeLost",
        "Shutdown",
        "NodeShutdown",
    } or (status.get("reason") and "never started" in how):
        return f"{how} ({status['reason']}: {status.get('message', 'no message')})"
    target = _condition(pod, "DisruptionTarget")
    if target.get("status") == "True":
        return f"{how} ({target.get('reason')}: {target.get('message', 'no message')})"
    return how


def _phase_ended(status: Mapping[str, Any]) -> bool:
    return status.get("phase") in {"Succeeded", "Failed"}


def _deleting(pod: Mapping[str, Any]) -> bool:
    return pod["metadata"].get("deletionTimestamp") is not None


def _deleted_for_good(pod: Mapping[str, Any]) -> bool:
    """True once a Pod was deleted without a grace: by its kubelet after its end, or by force."""
    return _deleting(pod) and pod["metadata"].get("deletionGracePeriodSeconds") == 0


def _started(status: Mapping[str, Any]) -> bool:
    """True if a container of the Pod has run, or may run."""
    every = [*status.get("initContainerStatuses", ()), *status.get("containerStatuses", ())]
    return any("running" in (each.get("state") or {}) or each.get("containerID") for each in every)


def _condition(pod: Mapping[str, Any], kind: str) -> Mapping[str, Any]:
    for condition in pod.get("status", {}).get("conditions") or ():
        if condition.get("type") == kind:
            return dict(condition)
    return {}
