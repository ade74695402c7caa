"""Makes the Kubernetes cluster that the settings describe."""

from __future__ import annotations

import dataclasses

from jobs import log_rules
from jobs.clock import Clock
from jobs.log_files import LogLimit
from jobs.yaml_file import SpecError
from orchestrator.clusters.errors import ClusterError
from orchestrator.clusters.kubernetes import template
from orchestrator.clusters.kubernetes.client import Access, Api
from orchestrator.clusters.kubernetes.cluster import KubernetesCluster
from orchestrator.clusters.kubernetes.manifests import PodSettings, toleration
from orchestrator.clusters.kubernetes.nodes import NodeSettings
from orchestrator.kubernetes_settings import items, levels
from orchestrator.settings import Settings


def from_settings(settings: Settings, clock: Clock) -> KubernetesCluster:
    """The cluster. Nothing is requested yet.

    Raises:
        ClusterError: There is no kubeconfig, or a file that the settings name is wrong.
    """
    pods = pod_settings(settings)
    access = Access(
        kubeconfig=settings.kubernetes_kubeconfig,
        context=settings.kubernetes_context,
        namespace=settings.kubernetes_namespace,
    )
    api = Api(access, clock)
    pods = dataclasses.replace(pods, namespace=api.namespace)
    nodes = node_settings(settings)
    return KubernetesCluster(api, clock, pods, nodes, settings.kubernetes_nodes)


def pod_settings(settings: Settings) -> PodSettings:
    """The settings of Pods; the namespace is not filled in.

    Raises:
        ClusterError: The Pod template or the rules for logs are wrong.
    """
    try:
        path = settings.log_rules
        rules = () if path is None else (log_rules.read(path.expanduser()),)
    except SpecError as error:
        raise ClusterError(f"BABYSIT_LOG_RULES: {error}") from error
    return PodSettings(
        namespace="",
        instance=settings.kubernetes_instance,
        image=settings.kubernetes_image,
        agent_image=settings.kubernetes_agent_image,
        service_account=settings.kubernetes_service_account,
        priority_class=settings.kubernetes_priority_class,
        user=settings.kubernetes_user,
        tolerations=items(settings.kubernetes_tolerations),
        shm_bytes=settings.kubernetes_shm_bytes,
        template=template.read(settings.kubernetes_pod_template),
        log_limit=LogLimit(bytes=settings.log_bytes, files=settings.log_files),
        log_rules=rules,
    )


def node_settings(settings: Settings) -> NodeSettings:
    """The settings of nodes."""
    conditions = (part.partition("=") for part in items(settings.kubernetes_bad_conditions))
    return NodeSettings(
        instance=settings.kubernetes_instance,
        gpu_resources=items(settings.kubernetes_gpu_resource),
        topology=levels(settings.kubernetes_topology),
        bad_conditions={kind: status or "True" for kind, _, status in conditions},
        termination_taints=frozenset(items(settings.kubernetes_termination_taints)),
        tolerations=tuple(toleration(text) for text in items(settings.kubernetes_tolerations)),
    )
