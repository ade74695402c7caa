"""Strategic merge of Pod templates: what a cluster's owner or a run adds to the Pod of a worker.

Mappings are merged key by key, `null` removes a key. Lists whose items have a name are merged item
by item, as the API server merges patches; `$patch: delete` in an item removes it, and
`$patch: replace` in a mapping replaces it. Tolerations are added to those that are there. Any other
list replaces the one before.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Json = dict[str, Any]

_KEYS = {
    "containers": "name",
    "initContainers": "name",
    "ephemeralContainers": "name",
    "volumes": "name",
    "imagePullSecrets": "name",
    "env": "name",
    "volumeMounts": "mountPath",
    "volumeDevices": "devicePath",
    "ports": "containerPort",
    "hostAliases": "ip",
    "topologySpreadConstraints": "topologyKey",
    "resourceClaims": "name",
}
"""Field of a Pod with a list -> key of its items (patchMergeKey of the API)."""
_ADDED = frozenset({"tolerations", "finalizers", "ownerReferences", "readinessGates"})


def merge(base: Mapping[str, Any], patch: Mapping[str, Any]) -> Json:
    """`base` with `patch` merged into it; neither is changed."""
    if patch.get("$patch") == "replace":
        return {key: value for key, value in patch.items() if key != "$patch"}
    merged = dict(base)
    for key, value in patch.items():
        if value is None:
            merged.pop(key, None)
        elif isinstance(value, Mapping):
            before = merged.get(key)
            merged[key] = merge(before if isinstance(before, Mapping) else {}, value)
        elif isinstance(value, list | tuple):
            before = merged.get(key)
            merged[key] = _lists(key, before if isinstance(before, list) else [], list(value))
        else:
            merged[key] = value
    return merged


def _lists(field: str, base: list[Any], patch: list[Any]) -> list[Any]:
    if field in _ADDED:
        return [*base, *(item for item in patch if item not in base)]
    key = _KEYS.get(field)
    if key is None or not all(isinstance(item, Mapping) for item in patch):
        return patch
    merged: dict[Any, Json] = {item.get(key): item for item in base}
    for item in patch:
        name = item.get(key)
        if item.get("$patch") == "delete":
            merged.pop(name, None)
        else:
            merged[name] = merge(merged.get(name, {}), item)
    return list(merged.values())
