"""Settings of the Kubernetes cluster, a part of :class:`orchestrator.settings.Settings`."""

from __future__ import annotations

import re
from pathlib import Path

from pydantic import Field, field_validator
from pydantic_settings import BaseSettings

TERMINATION_TAINTS = (
    "aws-node-termination-handler/spot-itn",
    "aws-node-termination-handler/scheduled-maintenance",
    "aws-node-termination-handler/asg-lifecycle-termination",
    "cloud.google.com/impending-node-termination",
    "remediator.kubernetes.azure.com/unschedulable",
    "karpenter.sh/disrupted",
    "karpenter.sh/disruption",
    "ToBeDeletedByClusterAutoscaler",
)
"""Taints of a node that is about to go: AWS node termination handler, GKE, AKS, Karpenter (v1 and
v1beta1), cluster-autoscaler. A rebalance recommendation and a mere candidate of the autoscaler
(`DeletionCandidateOfClusterAutoscaler`) do not say that the node goes."""
BAD_CONDITIONS = (
    "KernelDeadlock",
    "ReadonlyFilesystem",
    "GPUMissing",
    "NVLinkStatusInactive",
    "XIDHardwareErrors",
    "AcceleratedHardwareReady=False",
    "KernelReady=False",
)
"""Conditions under which a node takes no new work: of node-problem-detector, of its GPU checks on
AKS, and of the node monitoring agent of EKS."""
_LEVELS = ("zone", "spine", "rack", "nvlink")
_SETTING = re.compile(r"[^\s,=]+(=[^\s,=]+)?")


class KubernetesSettings(BaseSettings):
    """Where the cluster is, which nodes count, and what the Pods of workers look like."""

    kubernetes_kubeconfig: Path | None = Field(
        default=None,
        description="Kubeconfig file of the cluster. Not set: inside a Pod its service account, "
        "elsewhere KUBECONFIG or ~/.kube/config.",
    )
    kubernetes_context: str = Field(
        default="", description="Context of the kubeconfig. Empty: its current context."
    )
    kubernetes_namespace: str = Field(
        default="",
        description="Namespace of the Pods of workers. Empty: that of the server's own Pod or of "
        "the context, else `default`.",
    )
    kubernetes_instance: str = Field(
        default="babysit",
        pattern=r"^[a-z0-9]([-a-z0-9]{0,40}[a-z0-9])?$",
        description="Name of this installation, a label of everything it makes. Two control planes "
        "that share a namespace need two names.",
    )
    kubernetes_image: str = Field(
        default="", description="Image of runs whose spec names none. Empty: those are refused."
    )
    kubernetes_agent_image: str = Field(
        default="",
        description="Image that lends the agent: its /opt/babysit is a whole Python with babysit "
        "(a virtual environment is not: its Python is elsewhere), and an init container copies it "
        "to that path in each Pod. Empty: the images of runs contain `babysit-agent` themselves.",
    )
    kubernetes_gpu_resource: str = Field(
        default="nvidia.com/gpu",
        description="Resource that counts GPUs: `nvidia.com/gpu`, `amd.com/gpu`, "
        "`habana.ai/gaudi`; several with commas between them, where nodes differ.",
    )
    kubernetes_nodes: str = Field(
        default="",
        description="Label selector of the nodes that babysit uses, such as `pool=training`. "
        "Empty: all but those of the control plane.",
    )
    kubernetes_topology: str = Field(
        default="zone=topology.kubernetes.io/zone,nvlink=nvidia.com/gpu.clique",
        description="Labels of nodes that say where a node is, as LEVEL=LABEL with commas between "
        "them; levels are `zone`, `spine`, `rack` and `nvlink`.",
    )
    kubernetes_pod_template: Path | None = Field(
        default=None,
        description="YAML file with `metadata` and `spec` of a Pod, merged into the Pod of every "
        "worker; the container of babysit is named `worker`. Read when the server starts.",
    )
    kubernetes_service_account: str = Field(
        default="",
        description="Service account of the Pods of workers. Empty: the namespace's default. Its "
        "token is not mounted, unless a template says so.",
    )
    kubernetes_priority_class: str = Field(
        default="",
        description="Priority class of the Pods of workers. Empty: the cluster's default.",
    )
    kubernetes_user: int | None = Field(
        default=None,
        ge=1,
        description="Uid and gid of the Pods of workers, without privileges and capabilities. Not "
        "set: those of the image.",
    )
    kubernetes_tolerations: str = Field(
        default="nvidia.com/gpu,amd.com/gpu,habana.ai/gaudi",
        description="Taints that the Pods of workers tolerate: KEY, KEY=VALUE or KEY=VALUE:EFFECT, "
        "with commas between them.",
    )
    kubernetes_shm_bytes: int = Field(
        default=0,
        ge=0,
        description="Size of /dev/shm in the Pod of a worker; it counts as memory of the Pod. "
        "0: half of the run's `memory_per_node`, or 8 GiB.",
    )
    kubernetes_bad_conditions: str = Field(
        default=",".join(BAD_CONDITIONS),
        description="Conditions under which a node takes no new work: TYPE (bad if True) or "
        "TYPE=STATUS, with commas between them. When the condition is gone, the node is used "
        "again.",
    )
    kubernetes_termination_taints: str = Field(
        default=",".join(TERMINATION_TAINTS),
        description="Taints that announce the end of a node, with commas between them: its runs "
        "save and move away.",
    )

    @field_validator("kubernetes_topology")
    @classmethod
    def _levels(cls, value: str) -> str:
        levels(value)
        return value

    @field_validator("kubernetes_bad_conditions")
    @classmethod
    def _conditions(cls, value: str) -> str:
        for part in items(value):
            if not _SETTING.fullmatch(part):
                raise ValueError(f"{part}: expected TYPE or TYPE=STATUS")
        return value


def items(value: str) -> tuple[str, ...]:
    """The items of a setting that are separated by commas."""
    return tuple(part.strip() for part in value.split(",") if part.strip())


def levels(value: str) -> dict[str, str]:
    """Level -> label, of a setting of the topology.

    Raises:
        ValueError: It is not LEVEL=LABEL with commas between them.
    """
    found = {}
    for level, equals, label in (part.partition("=") for part in items(value)):
        if level not in _LEVELS or not equals or not label:
            raise ValueError(
                f"{level}{equals}{label}: expected LEVEL=LABEL, LEVEL one of zone, spine, rack"
                " and nvlink"
            )
        found[level] = label
    return found
