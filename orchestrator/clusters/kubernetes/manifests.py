"""The objects of a run: a Service that owns all others, and a Secret and a Pod for each worker."""

from __future__ import annotations

import base64
import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jobs.agent import command as agent_command
from jobs.config import AgentConfig
from jobs.log_files import LogLimit
from jobs.spec import Resources
from monitors.exit_rules import RuleFile
from orchestrator.clusters.kubernetes import names, quantities
from orchestrator.clusters.kubernetes.merge import Json, merge
from orchestrator.clusters.kubernetes.names import label_value, object_name
from orchestrator.clusters.port import WorkerLaunch

NO_IMAGE = (
    "needed on Kubernetes: name the container image in the run's spec, or set"
    " BABYSIT_KUBERNETES_IMAGE for all runs"
)
"""Why a run without an image is refused."""
CONTAINER = "worker"
"""Name of the container in which the agent and the ranks run."""
DIRECTORY = Path("/babysit")
"""Where the volumes of babysit are mounted. Each worker has a directory of its own name below, so
that what a path in a log belongs to is seen."""
SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - a path in the Pod, on a volume of its own
DEFAULT_SHM = 8 * 2**30
LEAVE_SECONDS = 10
"""Seconds that an agent gets beyond the grace of its ranks to store the tail of their logs."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class PodSettings:
    """Settings of the Pods of workers; see :mod:`orchestrator.kubernetes_settings`."""

    namespace: str
    instance: str
    image: str = ""
    agent_image: str = ""
    service_account: str = ""
    priority_class: str = ""
    user: int | None = None
    tolerations: tuple[str, ...] = ()
    shm_bytes: int = 0
    stop_seconds: int = 5
    """Seconds that a stopped agent gets beside its shutdown command: its ranks have ended."""
    template: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    log_limit: LogLimit = dataclasses.field(default_factory=LogLimit)
    log_rules: tuple[RuleFile, ...] = ()


def service(run: str, settings: PodSettings) -> Json:
    """The run's headless Service: it names the Pods of the gang, and owns all that the run has."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": _metadata(object_name(run), run, settings),
        "spec": {
            "clusterIP": "None",
            "publishNotReadyAddresses": True,  # ranks meet before any of them is ready
            "selector": _selector(run, settings),
        },
    }


def secret(launch: WorkerLaunch, owner: Mapping[str, Any], settings: PodSettings) -> Json:
    """The Secret with the agent's configuration and the environment of the submission.

    Raises:
        ValueError: The environment of the submission is lost.
    """
    if launch.environment is None:
        raise ValueError(
            "the environment that was submitted with it is not on this server's disk: submit the"
            " run again"
        )
    files = {
        "config.json": agent_config(launch, settings).model_dump_json(),
        "environment.json": launch.environment.model_dump_json(),
    }
    if launch.ca is not None:
        files["ca.crt"] = launch.ca
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "type": "Opaque",
        "metadata": {
            **_metadata(object_name(launch.worker), launch.run, settings, launch.worker),
            "ownerReferences": [_reference(owner)],
        },
        "data": {name: base64.b64encode(text.encode()).decode() for name, text in files.items()},
    }


def tombstone(worker: str, run: str, owner: Mapping[str, Any], settings: PodSettings) -> Json:
    """The Secret of a worker that was stopped before it started, and that never starts now."""
    metadata = _metadata(object_name(worker), run, settings, worker)
    metadata = merge(metadata, {"ownerReferences": [_reference(owner)]})
    return merge(
        {"apiVersion": "v1", "kind": "Secret", "type": "Opaque", "metadata": metadata},
        mark_gone("agent never started"),
    )


def mark_gone(reason: str, *, told: bool = False) -> Json:
    """The patch of a Secret whose worker is gone: without a configuration no Pod can start."""
    return {
        "metadata": {
            "labels": {names.GONE: "told" if told else "untold"},
            "annotations": {names.REASON: reason},
        },
        "data": None,
    }


def agent_config(launch: WorkerLaunch, settings: PodSettings) -> AgentConfig:
    """The configuration of the agent, with the paths that it has in its Pod."""
    home = DIRECTORY / launch.worker
    return AgentConfig(
        run=launch.run,
        worker=launch.worker,
        node=launch.node,
        address="",  # the Pod's, by the environment
        server_url=launch.server_url,
        ca=home / "config" / "ca.crt" if launch.ca is not None else None,
        token=launch.token,
        bundle=launch.bundle,
        checks=launch.checks,
        peer=launch.peer,
        directory=home / "work",
        log_directory=home / "work" / "logs",
        memory_directory=SHARED_MEMORY / f"babysit-{launch.worker}",
        environment_file=home / "config" / "environment.json",
        spec=launch.spec,
        grace_seconds=launch.grace_seconds,
        log_limit=settings.log_limit,
        log_rules=settings.log_rules,
    )


def pod(
    launch: WorkerLaunch, gpu_resource: str, owner: Mapping[str, Any], settings: PodSettings
) -> Json:
    """The Pod of a worker, with the templates of the cluster and of the run merged into it.

    Args:
        launch: The worker.
        gpu_resource: The resource that counts GPUs on its node.
        owner: The run's Service, as the API server returned it.
        settings: What all Pods have.

    Raises:
        ValueError: There is no image, or a template takes the container of babysit away.
    """
    made = merge(_plain_pod(launch, gpu_resource, settings), settings.template)
    made = merge(made, launch.spec.kubernetes.pod)
    if not any(each.get("name") == CONTAINER for each in made["spec"].get("containers", ())):
        raise ValueError(f"the Pod template removes the container `{CONTAINER}`: keep it")
    # A template must not change what makes the Pod this worker's.
    metadata = _metadata(object_name(launch.worker), launch.run, settings, launch.worker)
    metadata = merge(made["metadata"], metadata)
    metadata["ownerReferences"] = [_reference(owner)]
    if names.FINALIZER not in metadata.get("finalizers", ()):
        metadata["finalizers"] = [*metadata.get("finalizers", ()), names.FINALIZER]
    spec = {**made["spec"], "restartPolicy": "Never"}
    spec["affinity"] = _pinned(spec.get("affinity") or {}, launch.node)
    return {**made, "metadata": metadata, "spec": spec}


def _plain_pod(launch: WorkerLaunch, gpu_resource: str, settings: PodSettings) -> Json:
    image = launch.spec.image or settings.image
    if not image:
        raise ValueError(f"image: {NO_IMAGE}")
    container = _container(launch, image, gpu_resource, settings)
    spec: Json = {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": int(launch.grace_seconds) + LEAVE_SECONDS,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,  # variables for every service of the namespace
        "subdomain": object_name(launch.run),
        "hostname": object_name(launch.worker),
        "containers": [container],
        "volumes": _volumes(launch, settings),
        "tolerations": [toleration(text) for text in settings.tolerations],
    }
    if settings.service_account:
        spec["serviceAccountName"] = settings.service_account
    if settings.priority_class:
        spec["priorityClassName"] = settings.priority_class
    if settings.user is not None:
        spec["securityContext"] = _unprivileged(settings.user)
        container["securityContext"] = _without_privileges()
    if settings.agent_image:
        _inject_agent(spec, container, settings)
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {}, "spec": spec}


def _container(launch: WorkerLaunch, image: str, gpu_resource: str, settings: PodSettings) -> Json:
    home = DIRECTORY / launch.worker
    amounts = _amounts(launch.spec.resources, gpu_resource)
    program = agent_command.PROGRAM
    agent = agent_command.LENT / "bin" / program if settings.agent_image else program
    return {
        "name": CONTAINER,
        "image": image,
        "command": [str(agent)],
        "args": [str(home / "config" / "config.json")],
        "env": [
            {
                "name": "BABYSIT_NODE_ADDRESS",
                "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}},
            },
            {"name": "BABYSIT_WORKER", "value": launch.worker},
        ],
        "resources": {"requests": amounts, "limits": amounts},
        "volumeMounts": [
            {"name": "config", "mountPath": str(home / "config"), "readOnly": True},
            {"name": "work", "mountPath": str(home / "work")},
            {"name": "shm", "mountPath": str(SHARED_MEMORY)},
        ],
        "terminationMessagePolicy": "FallbackToLogsOnError",
    }


def _amounts(resources: Resources, gpu_resource: str) -> dict[str, str]:
    amounts = {"cpu": quantities.of_cpus(resources.cpus_per_node)}
    if resources.memory_per_node:
        amounts["memory"] = str(resources.memory_per_node)
    if resources.gpus_per_node:
        amounts[gpu_resource] = str(resources.gpus_per_node)
    return amounts


def _volumes(launch: WorkerLaunch, settings: PodSettings) -> list[Json]:
    memory = launch.spec.resources.memory_per_node
    shm = settings.shm_bytes or (memory // 2 if memory else DEFAULT_SHM)
    config = {
        "secretName": object_name(launch.worker),
        "defaultMode": 0o444,  # the user of the image; nothing else runs in the Pod
        # By name, so that a Pod whose Secret has been emptied never starts.
        "items": [
            {"key": name, "path": name}
            for name in ("config.json", "environment.json", *(("ca.crt",) if launch.ca else ()))
        ],
    }
    return [
        {"name": "config", "secret": config},
        {"name": "work", "emptyDir": {}},
        {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": str(shm)}},
    ]


def _inject_agent(spec: Json, container: Json, settings: PodSettings) -> None:
    """Have an init container copy the agent from its image into a volume of the Pod.

    The copy gets a directory of its own: the volume belongs to root, and `cp -a` onto it fails for
    every other user, as only an owner may set its time.
    """
    lent = agent_command.LENT
    mount = {"name": "agent", "mountPath": str(DIRECTORY / "agent")}
    container["volumeMounts"].append(
        {"name": "agent", "mountPath": str(lent), "subPath": lent.name}
    )
    spec["volumes"].append({"name": "agent", "emptyDir": {}})
    copy: Json = {
        "name": "agent",
        "image": settings.agent_image,
        "command": ["cp", "-a", str(lent), mount["mountPath"]],
        "resources": container["resources"],  # what the Pod reserves anyway
        "volumeMounts": [mount],
    }
    if "securityContext" in container:
        copy["securityContext"] = container["securityContext"]
    spec["initContainers"] = [copy]


def _unprivileged(user: int) -> Json:
    return {
        "runAsNonRoot": True,
        "runAsUser": user,
        "runAsGroup": user,
        "fsGroup": user,
        "seccompProfile": {"type": "RuntimeDefault"},
    }


def _without_privileges() -> Json:
    return {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}


def toleration(text: str) -> Json:
    """The toleration that a setting writes as KEY, KEY=VALUE or KEY=VALUE:EFFECT."""
    rest, _, effect = text.partition(":")
    key, equals, value = rest.partition("=")
    toleration: Json = {"key": key, "operator": "Equal" if equals else "Exists"}
    if equals:
        toleration["value"] = value
    if effect:
        toleration["effect"] = effect
    return toleration


def _pinned(affinity: Mapping[str, Any], node: str) -> Json:
    """The affinity of a template, narrowed to one node. Terms are alternatives: each is narrowed.

    The scheduler places the Pod, so that taints and resources of the node count; a Pod with a
    `nodeName` would pass it by.
    """
    pin = {"key": "metadata.name", "operator": "In", "values": [node]}
    of_nodes = affinity.get("nodeAffinity") or {}
    required = "requiredDuringSchedulingIgnoredDuringExecution"
    terms = (of_nodes.get(required) or {}).get("nodeSelectorTerms") or [{}]
    terms = [{**term, "matchFields": [*term.get("matchFields", ()), pin]} for term in terms]
    return {
        **affinity,
        "nodeAffinity": {**of_nodes, required: {"nodeSelectorTerms": terms}},
    }


def _metadata(name: str, run: str, settings: PodSettings, worker: str = "") -> Json:
    labels = {**_selector(run, settings), "app.kubernetes.io/managed-by": "babysit"}
    annotations = {names.RUN: run}
    if worker:
        labels[names.WORKER] = label_value(worker)
        annotations[names.WORKER] = worker
    return {
        "name": name,
        "namespace": settings.namespace,
        "labels": labels,
        "annotations": annotations,
    }


def _selector(run: str, settings: PodSettings) -> dict[str, str]:
    return {
        "app.kubernetes.io/name": "babysit",
        names.INSTANCE: settings.instance,
        names.COMPONENT: "worker",
        names.RUN: label_value(run),
    }


def _reference(owner: Mapping[str, Any]) -> Json:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "name": owner["metadata"]["name"],
        "uid": owner["metadata"]["uid"],
    }
