"""The cluster-wide Pod template, a YAML file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from jobs.pod_template import checked
from orchestrator.clusters.errors import ClusterError


def read(path: Path | None) -> Mapping[str, Any]:
    """The cluster's Pod template; empty if there is none.

    Raises:
        ClusterError: The file cannot be read, or is not a template.
    """
    if path is None:
        return {}
    try:
        content = YAML(typ="safe", pure=True).load(path.expanduser().read_text())
        if content is None:
            return {}
        if not isinstance(content, Mapping):
            raise ValueError("expected a mapping with `metadata` and `spec` of a Pod")  # noqa: TRY004, TRY301
        return checked(content)
    except (OSError, ValueError, YAMLError) as error:
        raise ClusterError(f"BABYSIT_KUBERNETES_POD_TEMPLATE: {path}: {error}") from error
