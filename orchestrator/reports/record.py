"""The history of a run when its report is made, as the API tells it. Pure."""

from __future__ import annotations

import dataclasses
import datetime as dt
from collections.abc import Mapping, Sequence

from orchestrator.core.views.models import (
    AttemptView,
    CheckpointView,
    IncidentView,
    RestartView,
    RunDetail,
    SeriesView,
    StoryView,
)

NOTHING = SeriesView(step=[], attempt=[], loss=[], loss_max=[], grad_norm=[], seconds=[], time=[])
"""The curve of a run without samples."""


@dataclasses.dataclass(frozen=True, slots=True)
class NodeNow:
    """A node as it is now."""

    state: str
    reason: str = ""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RunRecord:
    """The history of a run.

    Lists are as long as the API gives them; a report says what it leaves out.
    """

    run: RunDetail
    now: dt.datetime
    """When it was read."""
    attempts: Sequence[AttemptView] = ()
    """Oldest first."""
    incidents: Sequence[IncidentView] = ()
    """Oldest first."""
    checkpoints: Sequence[CheckpointView] = ()
    """Newest step first; without those that were deleted."""
    nodes: Mapping[str, NodeNow] = dataclasses.field(default_factory=dict)
    """Nodes as they are now, by name; empty if the reader may not see them."""
    spares: str = ""
    """The spares of the cluster, in words; empty if the reader may not see them."""
    curve: SeriesView = NOTHING
    """The losses that count: where steps repeat, those of the newest attempt."""
    undone: Mapping[int, SeriesView] = dataclasses.field(default_factory=dict)
    """Attempt → its losses that a later attempt computed again; of the longest stretches only."""
    story: Sequence[StoryView] = ()
    """The logbook, oldest first."""

    @property
    def end(self) -> dt.datetime:
        """The end of the run, or now."""
        return self.run.ended_at or self.now

    @property
    def wall_seconds(self) -> float:
        """Seconds since the submission."""
        return max(0.0, (self.end - self.run.submitted_at).total_seconds())


def lost_stretches(restarts: Sequence[RestartView], most: int) -> list[tuple[int, int]]:
    """The stretches of steps that were computed again: the `most` longest, oldest first.

    Returns:
        The attempt that computed them first, and the step that it was thrown back to.
    """
    found = [
        (restart.lost_steps, restart.attempt - 1, restart.resumed_step or 0)
        for restart in restarts
        if restart.lost_steps
    ]
    longest = sorted(found, reverse=True)[:most]
    return sorted((attempt, step) for _, attempt, step in longest)
