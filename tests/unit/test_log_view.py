"""`babysit logs`: bars that move, lines without an end, rotation, and codes made visible."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest

from jobs.agent.log_file import LogFile
from jobs.clock import ManualClock
from jobs.log_files import LogLimit
from orchestrator.cli import log_view
from orchestrator.cli.output import put
from orchestrator.cli.session import Session
from orchestrator.server.logs import log_files, log_path, read_piece


class Server:
    """The logs of a run as the API gives them; each wait of the command line is a turn."""

    def __init__(self, root: Path, *turns: Callable[[], None]) -> None:
        self.root, self.turns = root, list(turns)
        self.api = self.patient = self
        self.clock = ManualClock()

    def get(self, path: str, **query: Any) -> Any:
        wanted = {key: value for key, value in query.items() if value is not None}
        if path.endswith("/logs"):
            return [file.model_dump(mode="json") for file in log_files(self.root)]
        if "/logs/" in path:
            attempt, rank = map(int, path.split("/")[-2:])
            return read_piece(log_path(self.root, attempt, rank), **wanted).model_dump()
        return {"state": "running" if self.turns else "succeeded"}

    def wait(self, _seconds: float) -> None:
        self.turns.pop(0)()


def show(root: Path, *turns: Callable[[], None], follow: bool = True, **choice: Any) -> None:
    here = cast("Session", Server(root, *turns) if follow else Server(root, lambda: None))
    log_view.ranks(here, "r", log_view.Choice(**choice), follow=follow)


@pytest.fixture
def log(tmp_path: Path) -> LogFile:
    return LogFile(log_path(tmp_path, 1, 0), LogLimit(bytes=4096, files=2))


def test_a_bar_is_seen_to_move_and_a_prompt_is_seen_at_all(
    tmp_path: Path, log: LogFile, capsys: pytest.CaptureFixture[str]
) -> None:
    log.write(b"begin\n 1%")
    show(
        tmp_path,
        lambda: log.write(b"\r 2%"),
        lambda: log.write(b"\r 3%"),
        lambda: log.write(b"\r100%\nLoading ..."),
        lambda: None,
        lambda: None,
        lambda: log.write(b" done\n"),
    )
    said = capsys.readouterr().out.splitlines()
    assert said == ["begin", " 2%", " 3%", "100%", "Loading ...", "Loading ... done"]


def test_the_tail_of_a_bar_is_its_last_state(
    tmp_path: Path, log: LogFile, capsys: pytest.CaptureFixture[str]
) -> None:
    log.write(b"one\ntwo\n" + b"".join(b"\r%d/400" % n for n in range(200)))
    show(tmp_path, follow=False, tail=2)
    assert capsys.readouterr().out.splitlines() == ["two", "199/400"]


def test_following_goes_on_across_rotation_and_says_what_it_missed(
    tmp_path: Path, log: LogFile, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = [b"line %04d\n" % n for n in range(3000)]
    log.write(lines[0])
    show(
        tmp_path,
        lambda: log.write(b"".join(lines[1:500])),  # rotated once
        lambda: log.write(b"".join(lines[500:3000])),  # far beyond two files
        lambda: None,
    )
    said = capsys.readouterr()
    shown = said.out.splitlines()
    assert shown[:500] == [line.decode().strip() for line in lines[:500]]
    assert shown[-1] == "line 2999"
    assert len(shown) == len(set(shown))
    assert "were deleted: the log was rotated" in said.err


def test_codes_of_programs_reach_no_terminal(
    tmp_path: Path, log: LogFile, capsys: pytest.CaptureFixture[str]
) -> None:
    log.write(b"\x1b]0;owned\x07\x1b[2J\x1b[31mred\x1b[0m \x9b\xc2\x9b1A\n")
    show(tmp_path, follow=False)
    put("failed: \x1b[2J gone")
    said = capsys.readouterr().out
    assert "\x1b" not in said
    assert "\x9b" not in said
    assert "red" in said
    assert "failed: \\x1b[2J gone" in said
