"""A control plane whose workers are Pods of the test bed: real server, agents and ranks."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path

from tests.certificates import make_certificate
from tests.control_plane import ControlPlane, Servers, control_plane
from tests.kubernetes.api import Object
from tests.kubernetes.bed import Bed
from tests.kubernetes.servers import ADMIN_TOKEN, kubeconfig
from tests.prometheus import free_port

IMAGE = "registry.example.org/train:1"


@contextlib.contextmanager
def kubernetes_plane(
    servers: Servers, bed: Bed, home: Path, *, url: str = "", **settings: object
) -> Iterator[ControlPlane]:
    """A control plane that leads, outside the cluster, and whose Pods mount the bed's `shared`.

    Args:
        servers: Forks it.
        bed: Where its Pods run.
        home: Its own.
        url: Of the API server, such as a proxy's.
        settings: More of them.
    """
    directory = home.parent / f"{home.name}-files"
    directory.mkdir(mode=0o700)
    config, template = directory / "kubeconfig", directory / "template.json"
    config.write_text(
        kubeconfig(url or bed.servers.url, bed.servers.ca, ADMIN_TOKEN, bed.namespace)
    )
    template.write_text(json.dumps(_template(bed.shared)))
    certificate, port = make_certificate(directory), free_port()
    given = {
        "cluster": "kubernetes",
        "kubernetes_kubeconfig": config,
        "kubernetes_namespace": bed.namespace,
        "kubernetes_image": IMAGE,
        "kubernetes_pod_template": template,
        "port": port,
        "tls_certificate": certificate,
        "tls_key": directory / "key.pem",
        "agent_url": f"wss://127.0.0.1:{port}/agent",
        "agent_ca": certificate,
        **settings,
    }
    with control_plane(servers, home, **given) as plane:
        yield plane


def _template(shared: Path) -> Object:
    """A file server, mounted on every node and in every Pod at the same path."""
    mount = {"name": "shared", "mountPath": str(shared)}
    return {
        "spec": {
            "containers": [{"name": "worker", "volumeMounts": [mount]}],
            "volumes": [{"name": "shared", "hostPath": {"path": str(shared)}}],
        }
    }
