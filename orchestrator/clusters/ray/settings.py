"""Makes the Ray cluster that the settings describe."""

from __future__ import annotations

import importlib.util
import os

from jobs import log_rules
from jobs.clock import Clock
from jobs.log_files import LogLimit
from jobs.yaml_file import SpecError
from orchestrator.clusters.errors import ClusterError
from orchestrator.clusters.ray.cluster import RayCluster, RaySettings
from orchestrator.clusters.ray.edge import Edge
from orchestrator.ray_settings import check_address
from orchestrator.settings import Settings

_LOG = "ray.log"


def from_settings(settings: Settings, clock: Clock) -> RayCluster:
    """The cluster. Nothing is connected yet.

    Raises:
        ClusterError: Ray is not installed, a file that the settings name is wrong, or RAY_ADDRESS
            is not of a Ray cluster's control store.
    """
    if importlib.util.find_spec("ray") is None:
        raise ClusterError(
            "BABYSIT_CLUSTER=ray needs Ray beside the control plane, in the cluster's own version:"
            " pip install 'babysit[ray]' ray==VERSION"
        )
    try:
        path = settings.log_rules
        rules = () if path is None else (log_rules.read(path.expanduser()),)
    except SpecError as error:
        raise ClusterError(f"BABYSIT_LOG_RULES: {error}") from error
    if not settings.ray_address:
        try:
            check_address(os.environ.get("RAY_ADDRESS", ""))
        except ValueError as error:
            raise ClusterError(f"RAY_ADDRESS: {error}") from error
    edge = Edge(settings.ray_address, settings.ray_namespace, settings.home / _LOG, clock)
    return RayCluster(
        edge,
        clock,
        RaySettings(
            topology=settings.ray_levels,
            nodes=settings.ray_labels,
            runtime_env=settings.ray_runtime_env,
            directory=settings.ray_directory,
            log_limit=LogLimit(bytes=settings.log_bytes, files=settings.log_files),
            log_rules=rules,
        ),
    )
