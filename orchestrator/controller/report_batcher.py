"""Agents' reports that wait for their turn: those that have come together are taken together.

A gang of 2,000 nodes answers one order with 2,000 reports at once. One transaction for each would
keep the last of them waiting for minutes.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections import deque
from collections.abc import Awaitable, Callable

import structlog

from jobs.events import Event, Report
from orchestrator.core.messages.batching import coalesce
from orchestrator.database.port import WorkerSamples
from orchestrator.errors import InternalError, NotLeaderError

_log = structlog.get_logger(__name__)

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


def samples_of(run: str, worker: str, report: Report) -> WorkerSamples | None:
    """The samples of a report, if it has any."""
    if not report.samples:
        return None
    return WorkerSamples(
        run=run,
        attempt=report.attempt,
        ranks=report.samples,
        worker=worker,
        sequence=report.sequence,
    )


class ReportBatcher:
    """The queue of reports, and how it is worked off.

    Args:
        alone: Takes one report, whatever it takes.
        together: Takes the events of several, with the last sequence of each worker.
        last_sequence: Of the last report of a worker that is stored; None: nobody knows it.
    """

    def __init__(
        self,
        *,
        alone: Callable[[str, Report], Awaitable[object]],
        together: Callable[[list[Event], dict[str, int]], Awaitable[object]],
        last_sequence: Callable[[str], int | None],
    ) -> None:
        self._alone, self._together, self._last_sequence = alone, together, last_sequence
        self._waiting: deque[Waiting] = deque()

    async def store(
        self,
        worker: str,
        report: Report,
        exclusively: Callable[[Callable[[], Awaitable[None]]], Awaitable[None]],
    ) -> None:
        """Queue a report up; returns when it is stored.

        Args:
            worker: Whose it is.
            report: The report.
            exclusively: Waits for the turn, and then takes it.

        Raises:
            Exception: Why it could not be stored: it must not be acknowledged.
        """
        own = Waiting(worker, report)
        self._waiting.append(own)
        try:
            await exclusively(lambda: self._take_until(own))
        except Exception:  # its turn will not come: the agent sends it again
            with contextlib.suppress(ValueError):
                self._waiting.remove(own)
            raise

    async def _take_until(self, own: Waiting) -> None:
        """Take what waits, in order, until one's own report is taken: perhaps it was already."""
        while self._waiting and not own.taken:
            group = self._next_group()
            try:
                await self._take(group)
            except Exception as error:  # noqa: BLE001 (each of the group raises it in its own turn)
                for each in group:
                    each.error = error
            for each in group:
                each.taken = True
        if own.error is not None:
            raise own.error
        if not own.taken:
            raise NotLeaderError("the report was not stored: send it again")

    def _next_group(self) -> list[Waiting]:
        """The oldest, with those behind it that can go into one turn.

        A report with samples goes alone: what they mean depends on what the core made of all
        before.
        """
        waiting = self._waiting
        group = [waiting.popleft()]
        while (
            waiting
            and len(group) < MOST_TOGETHER
            and not group[0].report.samples
            and not waiting[0].report.samples
        ):
            group.append(waiting.popleft())
        return group

    async def _take(self, group: list[Waiting]) -> None:
        """In one transaction; or, where the core fails over that, each in one of its own."""
        events, sequences = self._events(group)
        if len(sequences) > 1:
            try:
                await self._together(events, sequences)
            except InternalError:
                _log.warning("reports are taken one by one", count=len(group))
            else:
                return
        for each in group:
            await self._alone(each.worker, each.report)

    def _events(self, group: list[Waiting]) -> tuple[list[Event], dict[str, int]]:
        """The events of what is new, put together, and the last sequence of each worker."""
        events: list[Event] = []
        sequences: dict[str, int] = {}
        for each in group:
            stored = sequences.get(each.worker, self._last_sequence(each.worker))
            if stored is not None and each.report.sequence > stored:
                events += each.report.events
                sequences[each.worker] = each.report.sequence
        return coalesce(events), sequences
