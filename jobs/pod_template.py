"""Pod templates: what a run, or a cluster's owner, adds to the Pods of workers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, JsonValue, field_validator

_OURS = {
    "metadata": ("name", "generateName", "namespace"),
    "spec": ("nodeName", "restartPolicy"),
}
"""Fields that babysit decides: what a Pod is called, where it runs, and that it starts once."""


def checked(pod: Mapping[str, Any]) -> Mapping[str, Any]:
    """The template: its `metadata` and `spec`. The API server checks the fields below them.

    Raises:
        ValueError: It has other fields, or one that babysit decides.
    """
    for field in pod:
        if field not in {"apiVersion", "kind", "metadata", "spec"}:
            raise ValueError(f"{field}: a Pod template has `metadata` and `spec` alone")
    for part, fields in _OURS.items():
        content = pod.get(part) or {}
        if not isinstance(content, Mapping):
            raise ValueError(f"{part}: expected a mapping")  # noqa: TRY004 - pydantic's kind
        for field in fields:
            if field in content:
                raise ValueError(f"{part}.{field}: babysit decides it; leave it out")
    return {part: pod[part] for part in ("metadata", "spec") if pod.get(part)}


class Kubernetes(BaseModel):
    """Wishes of a run for Kubernetes; without effect on other clusters."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    pod: dict[str, JsonValue] = Field(
        default_factory=dict,
        description="`metadata` and `spec` of a Pod, merged strategically into the Pod of each "
        "worker, after the cluster's template: host network, devices, capabilities, annotations, "
        "volumes. The container of babysit is named `worker`.",
    )

    @field_validator("pod")
    @classmethod
    def _a_template(cls, pod: dict[str, JsonValue]) -> dict[str, JsonValue]:
        return dict(checked(pod))
