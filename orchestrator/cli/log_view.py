"""Prints logs a piece at a time, several ranks side by side."""

from __future__ import annotations

import dataclasses
import datetime as dt
import re
import sys
from typing import Any

import typer

from orchestrator.cli.errors import CliError, ExitCode
from orchestrator.cli.follow import POLL_SECONDS
from orchestrator.cli.output import human_bytes, say
from orchestrator.cli.paths import path
from orchestrator.cli.session import Session
from orchestrator.core.model.states import TERMINAL_RUN_STATES
from orchestrator.core.text import visible

_OVER = {state.value for state in TERMINAL_RUN_STATES}
Key = tuple[int, int]
"""Attempt and rank."""
_REST_CHARACTERS = 1_000_000
"""Most characters of a line without an end that are kept."""
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")


@dataclasses.dataclass(frozen=True)
class Choice:
    """Which logs."""

    rank: int | None = None
    attempt: int | None = None
    """None: the newest."""
    since: dt.timedelta | None = None
    tail: int | None = None

    def of(self, files: list[dict[str, Any]], now: dt.datetime) -> list[Key]:
        """The logs chosen, in order."""
        newest = max((file["attempt"] for file in files), default=0)
        return [
            (file["attempt"], file["rank"])
            for file in files
            if file["attempt"] == (self.attempt or newest)
            and self.rank in (None, file["rank"])
            and (
                self.since is None
                or now - dt.datetime.fromisoformat(file["written_at"]) <= self.since
            )
        ]


class _Printer:
    """Prints whole lines, each with its attempt and rank where several are shown.

    Of a line that a program rewrites, the last state is printed. Following, a line that has no end
    yet is shown too: on a terminal in place, elsewhere each state as a line of its own.
    """

    def __init__(self, here: Session, run: str, tail: int | None, *, live: bool) -> None:
        self._here, self._run, self._tail = here, run, tail
        self._live = live
        self._offsets: dict[Key, int] = {}
        self._rest: dict[Key, str] = {}
        self._seen: dict[Key, str] = {}
        """State of the unfinished line at the last look."""
        self._printed: dict[Key, str] = {}
        """State of the unfinished line that was printed last."""

    def catch_up(self, keys: list[Key]) -> None:
        """Print what is new in these logs."""
        for key in keys:
            tail = None if key in self._offsets else self._tail
            while True:
                wanted = self._offsets.get(key)
                piece = self._here.patient.get(
                    path("runs", self._run, "logs", *key), offset=wanted or 0, tail=tail
                )
                self._offsets[key], tail = piece["next_offset"], None
                missed = piece["offset"] - wanted if wanted else 0
                if missed > 0:
                    say(f"{human_bytes(missed)} of rank {key[1]} were deleted: the log was rotated")
                self._write(key, piece["text"], prefixed=len(keys) > 1)
                if not piece["text"]:
                    break
            if self._live:
                self._show_state(key, prefixed=len(keys) > 1)

    def flush(self, *, prefixed: bool) -> None:
        """Print last lines that have no end."""
        for key, rest in self._rest.items():
            if rest:
                self._write(key, "\n", prefixed=prefixed)

    def _write(self, key: Key, text: str, *, prefixed: bool) -> None:
        *lines, rest = (self._rest.get(key, "") + text).split("\n")
        self._rest[key] = rest[-_REST_CHARACTERS:]
        for line in lines:
            printed = self._printed.pop(key, "")
            state = _state(line)
            if state != printed or not state or self._in_place(prefixed=prefixed):
                self._print(key, state, prefixed=prefixed, over=bool(printed))
            self._seen.pop(key, None)

    def _show_state(self, key: Key, *, prefixed: bool) -> None:
        """Print the state of the unfinished line if it is new.

        Text without a carriage return is shown at the second look only: its end may be on the way.
        """
        rest = self._rest.get(key, "")
        state = _state(rest)
        known, self._seen[key] = self._seen.get(key), state
        if state and state != self._printed.get(key) and ("\r" in rest or state == known):
            over = key in self._printed
            self._printed[key] = state
            in_place = self._in_place(prefixed=prefixed)
            self._print(key, state, prefixed=prefixed, over=over, end=not in_place)

    def _in_place(self, *, prefixed: bool) -> bool:
        return self._live and not prefixed and sys.stdout.isatty()

    def _print(
        self, key: Key, line: str, *, prefixed: bool, over: bool = False, end: bool = True
    ) -> None:
        before = f"{key[0]}/{key[1]} | " if prefixed else ""
        start = "\r\x1b[K" if over and self._in_place(prefixed=prefixed) else ""
        typer.echo(start + before + visible(line), nl=end)
        if not end:
            sys.stdout.flush()


def _state(line: str) -> str:
    """The last state of a line that carriage returns rewrite, without colour."""
    states = [state for state in line.split("\r") if state.strip()]
    return _COLOUR.sub("", states[-1] if states else "")


def ranks(here: Session, run: str, choice: Choice, *, follow: bool) -> None:
    """Print the logs of ranks; following, go on to new attempts until the run is over."""
    printer = _Printer(here, run, choice.tail, live=follow)
    said_waiting, said_kept = False, False
    while True:
        over = not follow or here.patient.get(path("runs", run))["state"] in _OVER
        files = here.patient.get(path("runs", run, "logs"))
        keys = choice.of(files, here.clock.now())
        if not said_kept and choice.tail is None:
            said_kept = _say_kept(files, keys)
        if not keys and not follow:
            raise CliError(_none(run, choice, files), ExitCode.NOT_FOUND)
        if not keys and not said_waiting:
            say("There is no log yet; waiting ...")
            said_waiting = True
        printer.catch_up(keys)
        if over:
            printer.flush(prefixed=len(keys) > 1)
            return
        here.wait(POLL_SECONDS)


def _say_kept(files: list[dict[str, Any]], keys: list[Key]) -> bool:
    """Say of which of these logs only the end is left; True if there is any log at all."""
    for file in files:
        if (
            (file["attempt"], file["rank"]) in keys
            and not file.get("node")
            and file.get("kept_from")
        ):
            gone, left = file["kept_from"], file["bytes"] - file["kept_from"]
            say(
                f"rank {file['rank']}: the first {human_bytes(gone)} went with its node; its last"
                f" {human_bytes(left)} were kept"
            )
    return bool(keys)


def _none(run: str, choice: Choice, files: list[dict[str, Any]]) -> str:
    if not files:
        return f"{run} has written no log yet; see why: babysit explain {run}"
    have = ", ".join(f"{file['attempt']}/{file['rank']}" for file in files)
    wanted = f"rank {choice.rank}" if choice.rank is not None else "any rank"
    when = f" of attempt {choice.attempt}" if choice.attempt else ""
    return f"{run} has no such log of {wanted}{when}; it has (attempt/rank): {have}"


def controller(here: Session, run: str, *, tail: int | None, follow: bool) -> None:
    """Print the lines of the server's log that name the run."""
    offset, silent = 0, True
    lines: list[str] = []
    while True:
        over = not follow or here.patient.get(path("runs", run))["state"] in _OVER
        while True:
            piece = here.patient.get(path("runs", run, "logs", "controller"), offset=offset)
            lines += piece["text"].splitlines()
            if piece["next_offset"] == offset:
                break
            offset = piece["next_offset"]
        for line in lines if tail is None else lines[max(0, len(lines) - tail) :]:
            typer.echo(visible(line))
        silent = silent and not lines
        lines, tail = [], None
        if over:
            if silent:
                say(f"The server logged nothing about {run}; for decisions: babysit events {run}")
            return
        here.wait(POLL_SECONDS)
