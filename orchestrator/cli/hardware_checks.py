"""The rows of `babysit doctor` about hardware sources: each with its view, or why it is blind."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

from jobs import node_monitor
from jobs.hardware.settings import SourceSettings
from orchestrator.cli.errors import CliError
from orchestrator.cli.nodes import all_nodes
from orchestrator.cli.session import Session


def rows(here: Session) -> list[dict[str, Any]]:
    """The sources of this machine, or, with a server elsewhere, those of its nodes."""
    if here.settings.server is not None:
        return _of_the_server(here)
    if here.settings.cluster != "local" or not here.settings.local_hardware:
        return []
    config = node_monitor.MonitorConfig(sources=here.settings.sources or SourceSettings())
    found = asyncio.run(node_monitor.check(config, here.clock))
    return [
        {"name": f"source {name}", "result": result, "detail": detail}
        for name, result, detail in found
    ]


def _of_the_server(here: Session) -> list[dict[str, Any]]:
    """One row for each source that is blind somewhere, and one for all if none is."""
    try:
        nodes = all_nodes(here.api)
    except CliError as error:
        return [{"name": "sources", "result": "absent", "detail": f"not known: {error}"}]
    reasons: dict[str, Counter[str]] = {}
    for node in nodes:
        for source, reason in ((node.get("hardware") or {}).get("blind") or {}).items():
            reasons.setdefault(source, Counter())[reason] += 1
    if not reasons:
        return [
            {"name": "sources", "result": "ok", "detail": f"none is blind on {len(nodes)} nodes"}
        ]
    return [
        {
            "name": f"source {source}",
            "result": "blind",
            "detail": "; ".join(
                f"{count} of {len(nodes)} nodes: {reason}" for reason, count in found.most_common(3)
            ),
        }
        for source, found in sorted(reasons.items())
    ]
