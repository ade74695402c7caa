"""Reports about ranks: samples, notes and exits."""

from __future__ import annotations

import os
from functools import cached_property
from typing import Any

import structlog
from ulid import ULID

from jobs.agent.errors import NoteError
from jobs.agent.evidence import log_tail
from jobs.agent.gang import Gang, RankProcess
from jobs.agent.log_pump import LogPump
from jobs.agent.note_events import Author, translate
from jobs.agent.outbox import Outbox
from jobs.agent.rank_end import after_the_loop, failure_behind_zero
from jobs.checks.results import CheckResult
from jobs.clock import Clock
from jobs.config import AgentConfig
from jobs.events import AgentEvent, RankExited, WorkerJoined
from jobs.log_rules import rule_set
from monitors.exit_rules import RuleFile, RuleSet
from monitors.exits import classify
from monitors.failures import Failure

_KILLED = -9


class Reporter:
    """Turns what happens to ranks into events, and passes them to the outbox in order."""

    def __init__(self, config: AgentConfig, clock: Clock, outbox: Outbox, logs: LogPump) -> None:
        self._config = config
        self._logs = logs
        self.run = config.run
        self.clock = clock
        self._outbox = outbox
        self._log = structlog.get_logger(part="reporter")

    @cached_property
    def log_rules(self) -> RuleSet:
        """Which words of a log mean what, for this run. Takes about 0.3 s the first time."""
        config = self._config
        files = (file for file in config.spec.monitors.logs if isinstance(file, RuleFile))
        return rule_set(files, config.log_rules)

    def fields(self, attempt: int, cause: str | None = None) -> dict[str, Any]:
        """Fields common to all events: new id, time, actor, and the command that caused it."""
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

    def joined(self, port: int, checks: tuple[CheckResult, ...]) -> None:
        """Report that the agent is ready to start ranks, with a free port and what was checked."""
        config = self._config
        joined = WorkerJoined(
            checks=checks,
            node=config.node,
            address=config.address,
            port=port,
            pid=os.getpid(),
            **self.fields(0),
        )
        self.say(joined)

    def say(self, event: AgentEvent) -> None:
        """Report one event at once."""
        self._outbox.take(event.attempt, (), [event])

    def collect(self, gang: Gang | None) -> None:
        """Read new samples and notes of the ranks, and send samples that are due."""
        if gang is None or gang.dead.is_set():
            self._outbox.tick()
            return
        samples = gang.samples(self._logs)
        self._outbox.compare(gang.attempt, gang.fingerprints())
        processes = gang.ranks.values()
        events = [event for process in processes for event in self._notes(gang, process)]
        self._outbox.take(gang.attempt, samples, events)

    def exited(self, gang: Gang, process: RankProcess, failure: Failure | None) -> None:
        """Report the exit of a rank, after its last samples and notes.

        Args:
            gang: The gang of the rank.
            process: The rank; its `code` is set.
            failure: The cause, if known; None: classify it by log, exit code and OOM kills.
        """
        code = process.code or 0
        self._outbox.compare(gang.attempt, process.reader.fingerprints())
        samples = process.reader.samples()
        if process.prints_steps:
            self._logs.drain(process.log)  # its last lines may still be in the pipe
            samples = process.metrics.finish(self._logs.unread(process.log))
        events = self._notes(gang, process)
        if code or not process.words.is_done:  # it may come to its end in the grace
            failure = failure or process.failure
        failure = failure or self._failure(gang, process, code)
        exited = RankExited(
            rank=process.rank,
            code=code,
            failure=failure,
            remark="" if failure else process.words.crash_after_end(code),
            last_step=process.last_step,
            **self.fields(gang.attempt),
        )
        self._log.info("rank exited", rank=process.rank, code=code, attempt=gang.attempt)
        self._outbox.take(gang.attempt, [samples] if samples else [], [*events, exited])

    def _failure(self, gang: Gang, process: RankProcess, code: int) -> Failure | None:
        self._logs.drain(process.log)  # its last lines may still be in the pipe
        log = log_tail(self._logs.tail(process.log))
        if (recorded := process.reader.exit_code) is not None:
            process.words.code = recorded
        if process.words.crash_after_end(code):
            return None
        if code != 0:
            process.words.read_error_file(process.reader.recorded_error)
        wrapped = process.python_pid != process.pid
        if code == 0:
            if gang.stopping:  # asked to leave, it may end in the middle
                return None
            failure = failure_behind_zero(process.words, log, self.log_rules, wrapped=wrapped)
            return failure or (None if process.words.is_done else process.excuse)
        failure = classify(
            process.words.completed(log),
            code,
            oom_killed=gang.oom_killed,
            killed_by_agent=process.killed and code == _KILLED,
            own_code=process.words.is_own(code, wrapped=wrapped),
            rules=self.log_rules,
        )
        failure = after_the_loop(process.words, failure, code)
        said = process.words.recorded
        if failure is None or not said or process.killed:
            return failure
        return failure.model_copy(update={"evidence": (*failure.evidence, said)})

    def _notes(self, gang: Gang, process: RankProcess) -> list[AgentEvent]:
        author = Author(process.rank, gang.world_size)
        events: list[AgentEvent] = []
        for line in process.reader.notes():
            process.words.hear(line)
            try:
                event = translate(line, author, self.fields(gang.attempt))
            except NoteError as error:
                self._log.warning("invalid note ignored", reason=str(error))
                continue
            if event is not None:
                events.append(event)
        return events
