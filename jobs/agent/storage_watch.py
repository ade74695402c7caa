"""Watches the directories that an agent needs: logs, spool, and the ranks' directories on tmpfs.

Each trouble is reported once when it begins and once when it is over. A rank directory that has
vanished (systemd's `RemoveIPC=yes`, a clean-up job, an `rm`) is made again with its plan: ranks and
agent hold their files open, so nothing of what they wrote is lost, but a process that starts later
finds its files by their path.
"""

from __future__ import annotations

import errno
import os

import structlog

from jobs.agent.gang import Gang
from jobs.agent.log_pump import LogPump
from jobs.agent.reporter import Reporter
from jobs.agent.spool import Spool
from jobs.config import AgentConfig
from jobs.events import Place, StorageTrouble

_NO_ROOM = frozenset(map(os.strerror, (errno.ENOSPC, errno.EDQUOT)))


class StorageWatch:
    """Reports what is wrong with an agent's directories."""

    def __init__(
        self, config: AgentConfig, logs: LogPump, spool: Spool, reporter: Reporter
    ) -> None:
        self._config, self._logs, self._spool = config, logs, spool
        self._reporter = reporter
        self._wrong: dict[Place, str] = {}

    def look(self, gang: Gang | None) -> None:
        """Look once; reports what has changed since the last look."""
        attempt = gang.attempt if gang is not None else 0
        failing = self._logs.failing()
        log, why = next(iter(failing.items()), (self._config.log_directory, ""))
        self._logs.retry()
        self._say(attempt, Place.LOGS, str(log), why)
        self._say(attempt, Place.SPOOL, str(self._spool.path), self._spool.trouble)
        if gang is None or gang.dead.is_set():
            return
        for directory in gang.vanished():
            self._say(attempt, Place.RANKS, str(directory), "the directory has vanished")
            try:
                gang.restore_directory(directory)
            except OSError as error:
                structlog.get_logger(part="storage").error(
                    "rank directory cannot be made again", path=str(directory), error=str(error)
                )
                return
        self._say(attempt, Place.RANKS, str(self._config.memory_directory), "")

    def _say(self, attempt: int, place: Place, path: str, error: str) -> None:
        before = self._wrong.get(place, "")
        if bool(error) is bool(before):
            return
        self._wrong[place] = error
        log = structlog.get_logger(part="storage")
        log.warning("storage trouble", place=place.value, path=path, error=error or "over")
        self._reporter.say(
            StorageTrouble(
                place=place,
                path=path,
                error=error or before,
                full=(error or before) in _NO_ROOM,
                over=not error,
                **self._reporter.fields(attempt),
            )
        )
