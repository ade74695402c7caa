"""Makes the cluster that `BABYSIT_CLUSTER` names.

An engine is one module with a function `from_settings(settings, clock)`, and one row in
:data:`CLUSTERS`. The module is imported only when it is chosen, so a client library that is an
optional extra is needed by nobody else.
"""

from __future__ import annotations

from jobs.clock import Clock
from orchestrator.clusters.port import Cluster
from orchestrator.registry import make
from orchestrator.settings import Settings

CLUSTERS = {
    "local": "orchestrator.clusters.local.cluster:from_settings",
    "kubernetes": "orchestrator.clusters.kubernetes.settings:from_settings",
    "ray": "orchestrator.clusters.ray.settings:from_settings",
    "simulated": "orchestrator.clusters.simulated:from_settings",
}
"""Name in `BABYSIT_CLUSTER` -> `module:function` that makes the cluster."""


def make_cluster(settings: Settings, clock: Clock) -> Cluster:
    """The cluster that `settings.cluster` names. Nothing is started or connected yet.

    Raises:
        InvalidError: No such cluster; the message lists those that exist.
        ClusterError: The settings describe a cluster that cannot be had.
    """
    cluster: Cluster = make("BABYSIT_CLUSTER", settings.cluster, CLUSTERS)(settings, clock)
    return cluster
