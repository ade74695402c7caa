"""What the agent reports of its ranks: samples, notes, ends."""

from __future__ import annotations

from typing import Any

import structlog
from ulid import ULID

from jobs.agent.errors import NoteError
from jobs.agent.evidence import log_tail
from jobs.agent.gang import Gang, RankProcess
from jobs.agent.note_events import Author, translate
from jobs.agent.outbox import Outbox
from jobs.clock import Clock
from jobs.config import AgentConfig
from jobs.events import AgentEvent, RankExited
from monitors.exits import classify
from monitors.failures import Failure

_KILLED = -9


class Reporter:
    """Turns what happens into events, and hands them to the outbox in order."""

    def __init__(self, config: AgentConfig, clock: Clock, outbox: Outbox) -> None:
        self._config = config
        self.run = config.run
        self.clock = clock
        self._outbox = outbox
        self._log = structlog.get_logger(part="reporter")

    def fields(self, attempt: int, cause: str | None = None) -> dict[str, Any]:
        """What every event bears: a new id, the time, who says it, and the command it answers."""
        config = self._config
        return {
            "id": str(ULID()),
            "at": self.clock.now(),
            "actor": f"worker:{config.worker}",
            "cause": cause,
            "run": config.run,
            "worker": config.worker,
            "attempt": attempt,
        }

    def say(self, event: AgentEvent) -> None:
        """Report one event, now."""
        self._outbox.take(event.attempt, (), [event])

    def collect(self, gang: Gang | None) -> None:
        """Take what the ranks have said since, and send what has waited long enough."""
        if gang is None or gang.dead.is_set():
            self._outbox.tick()
            return
        samples = gang.samples()
        processes = gang.ranks.values()
        events = [event for process in processes for event in self._notes(gang, process)]
        self._outbox.take(gang.attempt, samples, events)

    def exited(self, gang: Gang, process: RankProcess, failure: Failure | None) -> None:
        """Report the end of a rank, after all that it still had to say.

        Args:
            gang: its gang.
            process: the rank; its `code` is known.
            failure: why, where that is known already; otherwise the log and the kernel are asked.
        """
        code = process.code or 0
        samples = process.feed.samples()
        events = self._notes(gang, process)
        failure = failure or classify(
            log_tail(process.log),
            code,
            oom_killed=gang.oom_killed,
            killed_by_agent=process.killed and code == _KILLED,
        )
        exited = RankExited(
            rank=process.rank,
            code=code,
            failure=failure,
            last_step=process.feed.last_step,
            **self.fields(gang.attempt),
        )
        self._log.info("rank exited", rank=process.rank, code=code, attempt=gang.attempt)
        self._outbox.take(gang.attempt, [samples] if samples else [], [*events, exited])

    def _notes(self, gang: Gang, process: RankProcess) -> list[AgentEvent]:
        author = Author(process.rank, gang.world_size)
        events: list[AgentEvent] = []
        for line in process.feed.notes():
            try:
                event = translate(line, author, self.fields(gang.attempt))
            except NoteError as error:
                self._log.warning("note ignored", reason=str(error))
                continue
            if event is not None:
                events.append(event)
        return events
