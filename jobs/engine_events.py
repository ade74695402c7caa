"""Events of a run whose processes another engine starts: Ray Train, say.

The rank is then the driver of that engine. It reports the steps, and these events, on behalf of
processes that babysit did not start. The engine restarts them; babysit watches.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

from jobs.event_base import WorkerEvent
from monitors.failures import Failure


class EngineNamed(WorkerEvent):
    """An engine of its own starts the processes of the run, and restarts them."""

    kind: Literal["engine_named"] = "engine_named"
    engine: str
    """The name of the engine in lower case, such as `ray`."""


class ProcessFailure(BaseModel):
    """The failure of one process of an engine."""

    model_config = ConfigDict(frozen=True)

    rank: int
    """As the engine counts its processes."""
    node: str = ""
    """Address of its node, as the engine has it; empty: not known."""
    failure: Failure


class EngineFailed(WorkerEvent):
    """Processes of the engine have failed. It restarts them, or gives up and ends the driver."""

    kind: Literal["engine_failed"] = "engine_failed"
    engine: str
    step: int
    """The last step that was reported; 0: none."""
    failures: tuple[ProcessFailure, ...]


class EngineResumed(WorkerEvent):
    """Processes that the engine restarted have ended a first step."""

    kind: Literal["engine_resumed"] = "engine_resumed"
    engine: str
    step: int
    """That step; at or below the last one reported, steps are computed again."""


class EngineSaved(WorkerEvent):
    """The engine has a new checkpoint. It alone reads and deletes its checkpoints."""

    kind: Literal["engine_saved"] = "engine_saved"
    engine: str
    step: int
    path: str
    """A directory, or an address that the engine understands."""
    bytes: int = 0
    gone: tuple[int, ...] = ()
    """Steps of earlier checkpoints that the engine has deleted since."""


EngineEvent = EngineNamed | EngineFailed | EngineResumed | EngineSaved
