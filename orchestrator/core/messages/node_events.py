"""Events about what a node's own machine says."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from jobs.events import Event
from jobs.spec import Action
from monitors.hardware.types import NodeFinding


class NodeFindingRaised(Event):
    """The monitor of a machine has found something, or that it is over."""

    kind: Literal["node_finding_raised"] = "node_finding_raised"
    finding: NodeFinding
    action: Action = Action.ACT
    """How far the core may go with the action of the finding, as the server has it set."""
    ask_seconds: float = Field(default=900.0, ge=0)
    """s after which an action that people were asked about starts by itself; 0: never."""
