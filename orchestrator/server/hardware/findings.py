"""Findings about nodes on their way to the core."""

from __future__ import annotations

import structlog

from monitors.hardware.types import NodeFinding

_log = structlog.get_logger(__name__)


async def note(finding: NodeFinding) -> None:
    """Log a finding."""
    _log.warning(
        "hardware finding",
        node=finding.node,
        rule=finding.rule,
        action=finding.action.value,
        reason=finding.reason,
    )
