"""Agents' reports that wait for their turn: those that have come together are taken together.

A gang of 2,000 nodes answers one order with 2,000 reports at once. One transaction for each would
keep the last of them waiting for minutes.
"""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Callable

from jobs.events import Event, Report
from orchestrator.core.gathering import gather

MOST_TOGETHER = 4096
"""Reports in one transaction at most."""


@dataclasses.dataclass(slots=True, eq=False)
class Waiting:
    """One report, and what became of it."""

    worker: str
    report: Report
    taken: bool = False
    error: Exception | None = None
    """Why it was not stored, though its turn has come."""


def next_group(waiting: deque[Waiting]) -> list[Waiting]:
    """Take the oldest off the queue, with those behind it that can go into one turn.

    A report with samples goes alone: what they mean depends on what the core made of all before.
    """
    group = [waiting.popleft()]
    while (
        waiting
        and len(group) < MOST_TOGETHER
        and not group[0].report.samples
        and not waiting[0].report.samples
    ):
        group.append(waiting.popleft())
    return group


def events_of(
    group: list[Waiting], last_sequence: Callable[[str], int]
) -> tuple[list[Event], dict[str, int]]:
    """The events of what is new in a group, put together, and the last sequence of each worker."""
    events: list[Event] = []
    sequences: dict[str, int] = {}
    for each in group:
        before = sequences.get(each.worker, last_sequence(each.worker))
        if each.report.sequence > before:
            events += each.report.events
            sequences[each.worker] = each.report.sequence
    return gather(events), sequences
