"""Findings about nodes on their way to the core."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Protocol

from ulid import ULID

from jobs.clock import Clock
from monitors.hardware.types import NodeFinding
from orchestrator.core.messages.node_events import NodeFindingRaised
from orchestrator.settings import Settings

ACTOR = "monitor:hardware"


class Core(Protocol):
    """The one thing that is asked of the controller."""

    async def submit(self, event: Any) -> object:
        """Have an event decided on, and return once that is stored."""


def to_the_core(
    core: Core, clock: Clock, settings: Settings
) -> Callable[[NodeFinding], Awaitable[object]]:
    """A function that has the core decide on a finding, and returns once that is stored.

    Args:
        core: The controller.
        clock: The time of the event; the finding has that of the node.
        settings: How far the core may go.
    """

    def raised(finding: NodeFinding) -> Awaitable[object]:
        return core.submit(
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
