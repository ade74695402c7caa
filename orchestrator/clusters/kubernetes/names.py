"""Names, labels and annotations of the objects that babysit makes in Kubernetes.

Names are derived from ids, so that a call that is repeated meets the object of the first one.
"""

from __future__ import annotations

import hashlib
import re

INSTANCE = "app.kubernetes.io/instance"
"""Label with the name of the installation: several may share a namespace."""
COMPONENT = "app.kubernetes.io/component"
"""Label that is `worker` on everything that belongs to runs."""
RUN = "babysit/run"
"""Label and annotation with the run's id; the annotation is exact."""
WORKER = "babysit/worker"
"""Label and annotation with the worker's id; the annotation is exact."""
FINALIZER = "babysit/worker"
"""Keeps the object of a Pod until the control plane has stored how its worker ended."""
GONE = "babysit/gone"
"""Label of Secrets of workers that are gone: `told` after the control plane has stored it, before
that `untold`."""
REASON = "babysit/reason"
"""Annotation that says why a worker is gone, or why babysit cordoned a node."""
CORDONED = "babysit/cordoned-by"
"""Annotation of nodes that this installation made unschedulable."""

_MOST = 63
_LABEL = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?")


def object_name(identity: str, prefix: str = "babysit-") -> str:
    """The name of the object of a run or worker: a DNS label, different for different ids."""
    slug = re.sub(r"[^a-z0-9-]+", "-", identity.lower()).strip("-")
    # Two ids may differ in their case or in what has become a dash only: a digest keeps them apart.
    if slug == identity and len(prefix) + len(slug) <= _MOST:
        return prefix + slug
    digest = hashlib.sha256(identity.encode()).hexdigest()[:10]
    room = _MOST - len(prefix) - len(digest) - 1
    return f"{prefix}{slug[:room].rstrip('-')}-{digest}".replace("--", "-")


def label_value(text: str) -> str:
    """The text as the value of a label, or a digest of it where a label cannot hold it."""
    return text if _LABEL.fullmatch(text) else hashlib.sha256(text.encode()).hexdigest()[:32]
