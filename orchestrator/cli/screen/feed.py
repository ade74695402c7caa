"""Reads what the screen shows, and sends its requests; knows nothing of the screen.

A poll asks for the list of runs and for the selected run; curve, attempts and checkpoints only when
the run has moved. So a screen that nobody touches costs two small requests a poll.
"""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Mapping, Sequence
from typing import Any

from orchestrator.cli.errors import CliError, UnreachableError
from orchestrator.cli.paths import path
from orchestrator.cli.session import Session

Data = dict[str, Any]
_RUNS = 200
_POINTS = 400
_LOG_LINES = 200


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """All that the screen shows."""

    runs: Sequence[Data] = ()
    """Newest first."""
    run: Data | None = None
    """The selected run in full."""
    curve: Data | None = None
    ranks: Data | None = None
    log: str = ""
    log_of: str = ""
    """`rank 0 of attempt 2`; empty: there is no log."""
    away_since: float | None = None
    """Monotonic second since which the server has not answered; None: it answers."""
    trouble: str = ""
    """Why something is missing, as the server says."""


class Feed:
    """The control plane, as the screen uses it.

    Its methods block, and may be called from any thread; one runs at a time.
    """

    def __init__(self, here: Session) -> None:
        self._here = here
        self._lock = threading.Lock()
        self._last = Snapshot()
        self._moved: tuple[Any, ...] = ()

    @property
    def now(self) -> float:
        """Monotonic seconds."""
        return self._here.clock.monotonic()

    def poll(self, selected: str | None, *, rank: int, with_log: bool) -> Snapshot:
        """Read the present state. An error is part of the answer: the screen goes on.

        Args:
            selected: Id or name of the run to show in full; None: the newest.
            rank: Whose log is shown.
            with_log: False: the log is not looked at.
        """
        with self._lock:
            try:
                self._last = self._read(selected, rank, with_log=with_log)
            except UnreachableError:
                since = self._last.away_since
                self._last = dataclasses.replace(
                    self._last, away_since=self.now if since is None else since
                )
                self._here.reconnect()
            except CliError as error:
                self._last = dataclasses.replace(self._last, trouble=error.message, away_since=None)
            return self._last

    def _read(self, selected: str | None, rank: int, *, with_log: bool) -> Snapshot:
        api = self._here.api
        runs = api.get(path("runs"), limit=_RUNS)
        if selected is None:
            selected = runs[0]["id"] if runs else None
        if selected is None:
            return Snapshot(runs=runs)
        run = api.get(path("runs", selected))
        last = self._last
        moved = (run["id"], run["attempt"], run["step"], run["state"])
        curve, ranks = last.curve, last.ranks
        if moved != self._moved:
            curve = api.get(path("runs", run["id"], "samples"), points=_POINTS)
            ranks = api.get(path("runs", run["id"], "ranks"))
        log, log_of = self._log(run, rank) if with_log else (last.log, last.log_of)
        self._moved = moved
        return Snapshot(runs=runs, run=run, curve=curve, ranks=ranks, log=log, log_of=log_of)

    def _log(self, run: Data, rank: int) -> tuple[str, str]:
        files = self._here.api.get(path("runs", run["id"], "logs"))
        if not files:
            return "", ""
        attempt = max(file["attempt"] for file in files)
        there = [file["rank"] for file in files if file["attempt"] == attempt]
        chosen = min(there, key=lambda each: (abs(each - rank), each))
        piece = self._here.api.get(
            path("runs", run["id"], "logs", attempt, chosen), tail=_LOG_LINES
        )
        return piece["text"], f"rank {chosen} of attempt {attempt}"

    def checkpoints(self, run: str) -> list[Data]:
        """Checkpoints that a rollback could load, newest first.

        Raises:
            CliError: See :meth:`orchestrator.cli.client.Api.get`.
        """
        with self._lock:
            found = self._here.api.get(path("runs", run, "checkpoints"))
        loadable = {"complete", "verified", "good"}
        return [
            each
            for each in found
            if each["trust"] in loadable
            and not (each["superseded"] or each["doubted"] or each["deleting"])
        ]

    def ask(self, *where: str, body: Mapping[str, Any] | None = None) -> Data:
        """POST, as the caller of this command.

        Raises:
            CliError: It was refused, or not sent.
        """
        with self._lock:
            answer: Data = self._here.api.post(path(*where), **(body or {}))
        return answer
