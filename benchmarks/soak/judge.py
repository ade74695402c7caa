"""Finds what babysit did to a healthy run that it should not have done."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

HARMLESS_REMEDIES = frozenset({"recorded", "wait"})
"""Remedies that leave the run alone."""


def complaints_about_run(shown: Mapping[str, Any], *, asked_restarts: int = 0) -> list[str]:
    """Every wrong done to a run that has ended, a sentence each.

    Args:
        shown: The run, as the API shows it.
        asked_restarts: Restarts that a person asked for; fewer are wrong too.
    """
    name, found = shown["name"], []
    if shown["state"] != "succeeded":
        found.append(f"{name} {shown['state']}: {shown['reason']}")
    asked = [restart for restart in shown["restarts"] if restart["remedy"] == "as asked"]
    if len(asked) != asked_restarts:
        found.append(f"{name} was restarted as asked {len(asked)} times, not {asked_restarts}")
    found += [
        f"{name} restarted ({restart['class']}, {restart['remedy']}): {restart['reason']}"
        for restart in shown["restarts"]
        if restart["remedy"] != "as asked"
    ]
    found += [
        f"{name} has an incident that acted ({incident['kind']}, {incident['remedy']}): "
        f"{incident['reason']}"
        for incident in shown["incidents"]
        if incident["remedy"] not in HARMLESS_REMEDIES
    ]
    found += [f"{name} avoids node {node}" for node in shown["avoid"]]
    if shown["skip_batches"]:
        found.append(f"{name} skips batches {shown['skip_batches']}")
    return found


def complaints_about_nodes(nodes: Iterable[Mapping[str, Any]]) -> list[str]:
    """Nodes that take no work, or that a failure is held against."""
    found = []
    for node in nodes:
        if node["state"] != "ready":
            found.append(f"node {node['id']} is {node['state']}: {node['reason']}")
        found += [f"node {node['id']} is blamed for {fault['class']}" for fault in node["faults"]]
    return found
