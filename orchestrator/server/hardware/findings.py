"""Findings about nodes on their way to the core."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from ulid import ULID

from jobs.clock import Clock
from monitors.hardware.types import NodeFinding
from orchestrator.core.messages.node_events import NodeFindingRaised
from orchestrator.settings import Settings

ACTOR = "monitor:hardware"
Submit = Callable[[Any], Awaitable[object]]


def to_the_core(
    submit: Submit, clock: Clock, settings: Settings
) -> Callable[[NodeFinding], Awaitable[object]]:
    """A function that has the core decide on a finding, and returns once that is stored.

    Args:
        submit: Of the controller.
        clock: The time of the event; the finding has that of the node.
        settings: How far the core may go.
    """

    def raised(finding: NodeFinding) -> Awaitable[object]:
        return submit(
            NodeFindingRaised(
                id=str(ULID()),
                at=clock.now(),
                actor=ACTOR,
                finding=finding,
                action=settings.hardware_action,
                ask_seconds=settings.hardware_ask_seconds,
            )
        )

    return raised
