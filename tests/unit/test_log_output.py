"""The log never fails the program that writes it."""

from __future__ import annotations

import errno
import io
import json
import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import structlog

from jobs import log_output


class Full(io.StringIO):
    """A file on a disk that is full for a time."""

    def __init__(self) -> None:
        super().__init__()
        self.full = False

    def write(self, text: str) -> int:
        if self.full:
            raise OSError(errno.ENOSPC, "No space left on device")
        return super().write(text)

    def flush(self) -> None:
        if self.full:
            raise OSError(errno.ENOSPC, "No space left on device")


class UnspeakableError(Exception):
    def __repr__(self) -> str:
        raise ValueError("no text")

    __str__ = __repr__


@pytest.fixture
def file() -> Any:
    before = structlog.get_config()
    file = Full()
    log_output.configure(file, level=logging.INFO)
    yield file
    structlog.configure(**before)


def lines(file: Full) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.getvalue().splitlines()]


def test_lines_of_a_full_disk_are_counted_and_what_comes_after_is_written(file: Full) -> None:
    log = structlog.get_logger()
    log.info("before")
    file.full = True
    log.info("lost")
    log.error("lost too")
    file.full = False
    log.info("after")
    assert [line["event"] for line in lines(file)] == ["before", "lines of the log lost", "after"]
    assert lines(file)[1]["count"] == 2


def test_a_closed_file_is_no_error(file: Full) -> None:
    file.close()
    structlog.get_logger().error("nobody reads this")


@pytest.mark.parametrize(
    "value", ["\ud800", b"\xff", UnspeakableError(), {1: {(2, 3): object()}}, float("nan"), {1, 2}]
)
def test_any_value_is_written_as_a_line(file: Full, value: object) -> None:
    structlog.get_logger().info("event", value=value)
    (line,) = lines(file)
    assert line["event"] == "event" or "event" in line["fields"]


def test_an_exception_without_text_is_written(file: Full) -> None:
    try:
        raise UnspeakableError
    except UnspeakableError:
        structlog.get_logger().exception("failed")
    (line,) = lines(file)
    assert line["event"] == "failed"
    assert "UnspeakableError" in line["exception"]


@pytest.mark.parametrize("target", ["/dev/full", "a pipe without a reader"])
def test_a_process_goes_on_whose_log_cannot_be_written(target: str, tmp_path: Path) -> None:
    code = (
        "import sys, structlog\n"
        "from jobs import log_output\n"
        "log_output.configure(sys.stderr)\n"
        "for _ in range(20000): structlog.get_logger().error('x' * 100)\n"
        "open(sys.argv[1], 'w').write('alive')\n"
    )
    if target.startswith("/"):
        error = os.open(target, os.O_WRONLY)
    else:
        read, error = os.pipe()
        os.close(read)
    subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "done")], stderr=error, check=False, timeout=60
    )
    os.close(error)
    assert (tmp_path / "done").read_text() == "alive"
