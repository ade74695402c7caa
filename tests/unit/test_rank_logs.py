"""The output of ranks on its way to the log: folded, rotated, never at the cost of a rank."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.agent import log_file as log_file_module
from jobs.agent.line_folder import LineFolder
from jobs.agent.log_file import LogFile
from jobs.agent.log_pump import BACKLOG_BYTES, LogPump
from jobs.clock import SystemClock
from jobs.log_files import LogLimit
from orchestrator.core.text import visible
from orchestrator.server.logs import log_files, read_piece

BAR = b"".join(b"\r %d%%|###  | %d/1000" % (i // 10, i) for i in range(1, 1001))


def fold(*pieces: bytes, seconds: float = 0.0) -> bytes:
    """What a log has after these pieces, `seconds` apart, and the end of the rank."""
    folder, out = LineFolder(), b""
    for place, piece in enumerate(pieces):
        out += folder.feed(piece, place * seconds)
    return out + folder.rest(len(pieces) * seconds)


def nested(inner: int) -> list[bytes]:
    """Two bars below each other, as tqdm draws them where there is no terminal."""
    return [b"\r 1/3 epochs", *(b"\n\r %d/%d steps\x1b[A" % (i, inner) for i in range(inner + 1))]


@pytest.mark.parametrize(
    ("pieces", "log"),
    [
        ([b"one\ntwo\n"], b"one\ntwo\n"),
        ([b"one\r\ntw", b"o\r", b"\n"], b"one\ntwo\n"),
        ([BAR, b"\nend\n"], b" 100%|###  | 1000/1000\nend\n"),
        ([BAR, b"\r            \rsaved\n"], b"saved\n"),
        ([b"\r\x1b[2K 1%", b"\x1b[2K\x1b[1G 2%\x1b[K\n"], b" 2%\n"),
        ([b"Saving |", b"\b/", b"\b-", b"\b\b: done\n"], b"Saving: done\n"),
        ([b"\x1b[31mred\x1b[0m\n"], b"\x1b[31mred\x1b[0m\n"),
        ([b"Traceback\n  x = 1\n\nValueError"], b"Traceback\n  x = 1\n\nValueError"),
        ([*nested(500), b"\n", b"done\n"], b" 1/3 epochs\n 500/500 steps\ndone\n"),
        ([b"\xff\x00\n"], b"\xff\x00\n"),
    ],
)
def test_a_line_that_is_rewritten_is_kept_in_its_last_state(pieces, log):
    assert fold(*pieces) == log


def test_a_bar_that_moves_for_a_day_takes_little_and_is_seen_to_move():
    folder = LineFolder()
    states = [folder.feed(b"\r%d/1728000" % i, i * 0.05) for i in range(20 * 60 * 10)]
    shown = [state for state in states if state]
    assert shown[1].startswith(b"\r")
    assert all(state.count(b"\r") <= 1 for state in shown)
    in_a_minute = sum(bool(state) for state in states[: 20 * 60])
    assert 30 <= in_a_minute <= 61
    assert len(shown) <= 200  # of 12,000, in ten minutes


def test_a_prompt_without_an_end_is_passed_on_and_not_twice():
    folder = LineFolder()
    assert folder.feed(b"Loading ... ", 0.0) == b""
    assert folder.pending
    assert folder.due(0.5) == b"Loading ... "
    assert not folder.pending
    assert folder.feed(b"done\n", 9.0) == b"done\n"


@given(st.lists(st.binary(max_size=40)), st.floats(0, 3))
def test_lines_that_are_not_rewritten_arrive_byte_by_byte(pieces, seconds):
    codes = bytes(range(32)).replace(b"\n", b"").replace(b"\t", b"")
    plain = [piece.translate(None, codes) for piece in pieces]
    assert fold(*plain, seconds=seconds) == b"".join(plain)


def whole_log(path: Path) -> bytes:
    """All that a reader gets, piece by piece."""
    text, offset = "", 0
    while (piece := read_piece(path, offset=offset)).text:
        text, offset = text + piece.text, piece.next_offset
    return text.encode()


def test_a_log_is_rotated_capped_and_read_across_its_files(tmp_path):
    path = tmp_path / "attempt-0001" / "rank-00000.log"
    limit = LogLimit(bytes=4096, files=3)
    file = LogFile(path, limit)
    lines = [b"line %04d of many\n" % i for i in range(1000)]
    place = 0
    for number, line in enumerate(lines):
        file.write(line)
        if number == 100:
            place = read_piece(path, tail=0).next_offset
    assert sum(f.stat().st_size for f in path.parent.iterdir()) <= 3 * 4096
    assert len(list(path.parent.iterdir())) == 3
    assert b"".join(lines).endswith(whole_log(path))
    assert read_piece(path, tail=3).text == "".join(x.decode() for x in lines[-3:])
    assert read_piece(path, tail=300).text.splitlines()[0] == "line 0700 of many"
    # A reader whose place was deleted goes on at the oldest line that is left.
    behind = read_piece(path, offset=place)
    assert behind.offset > place
    assert behind.text.startswith("line 0")
    [found] = log_files(tmp_path)
    assert found.bytes == len(b"".join(lines))
    # Another agent of the same attempt goes on where this one ended.
    file.close()
    again = LogFile(path, limit)
    again.write(b"more\n")
    assert read_piece(path, offset=found.bytes).text == "more\n"


@pytest.fixture
def full(monkeypatch):
    """A disk that can be filled: writes then take half of the data, and fail."""
    state = {"full": False}
    write = os.write

    def maybe(descriptor: int, data: bytes) -> int:
        if state["full"]:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(descriptor, data)

    monkeypatch.setattr(log_file_module.os, "write", maybe)
    return state


def test_a_full_disk_costs_lines_and_the_log_says_how_many(tmp_path, full):
    path = tmp_path / "rank-00000.log"
    file = LogFile(path, LogLimit())
    file.write(b"before\n")
    full["full"] = True
    file.write(b"a\nb\n")
    file.write(b"c\n")
    assert file.why == "No space left on device"
    full["full"] = False
    file.write(b"after\n")
    gap = b"[babysit: 3 lines are missing here: No space left on device]\n"
    assert path.read_bytes() == b"before\n" + gap + b"after\n"
    assert not file.why


@pytest.fixture
def pump(tmp_path):
    pump = LogPump(SystemClock(), LogLimit())
    yield pump
    pump.finish()


def test_the_last_lines_are_there_when_the_rank_is_dead(tmp_path, pump):
    path = tmp_path / "attempt-0001" / "rank-00000.log"
    with pump.pipe(path) as own:
        output, child = os.dup(own), os.dup(own)  # a child of the rank keeps the pipe open
    text = b"".join(b"line %d\n" % i for i in range(2000)) + b"ValueError: no newline"
    os.write(output, text)
    os.close(output)
    pump.drain(path)
    assert pump.tail(path) == text
    assert path.read_bytes() == text
    os.write(child, b"\nlate\n")
    pump.close(path)
    os.close(child)
    pump.finish()
    assert path.read_bytes() == text + b"\nlate\n"


def test_a_log_that_is_deleted_goes_on_in_a_new_file(tmp_path):
    path = tmp_path / "rank-00000.log"
    file = LogFile(path, LogLimit(bytes=4096, files=2))
    file.write(b"x" * 4090 + b"\n")
    path.unlink()
    file.write(b"the file to rotate is gone\n" * 3)
    file.write(b"after\n")
    gap = "[babysit: 3 lines are missing here: No such file or directory]"
    assert path.read_text().split("\n") == [gap, "after", ""]


def test_a_file_system_that_fails_at_the_close_costs_lines_and_no_other_file(tmp_path, monkeypatch):
    """NFS tells of a full disk when a file is closed; the descriptor is gone all the same."""
    path, stranger = tmp_path / "rank-00000.log", tmp_path / "stranger"
    file = LogFile(path, LogLimit(bytes=4096, files=2))
    close = os.close

    def late(descriptor):
        close(descriptor)
        raise OSError(errno.EDQUOT, "Disk quota exceeded")

    file.write(b"x" * 4090 + b"\n")
    with monkeypatch.context() as patch:
        patch.setattr(log_file_module.os, "close", late)
        file.write(b"these would rotate it\n")
    with stranger.open("wb"):  # has the number of the descriptor that was closed
        file.write(b"after\n")
        with monkeypatch.context() as patch:
            patch.setattr(log_file_module.os, "close", late)
            file.close()
            file.close()
    assert stranger.read_bytes() == b""
    gap = "[babysit: 1 lines are missing here: Disk quota exceeded]"
    assert path.read_text().split("\n") == [gap, "after", ""]


def test_a_disk_that_hangs_stops_no_rank_and_no_verdict(tmp_path, pump, monkeypatch):
    path = tmp_path / "rank-00000.log"
    hung, going = threading.Event(), threading.Event()
    write = LogFile.write

    def hangs(self: LogFile, data: bytes) -> None:
        hung.set()
        going.wait()
        write(self, data)

    monkeypatch.setattr(LogFile, "write", hangs)
    with pump.pipe(path) as own:
        output = os.dup(own)
    hung.wait()  # with nothing in its hands: what it holds counts beside what waits
    line = b"x" * 1023 + b"\n"
    for _ in range(2 * BACKLOG_BYTES // len(line)):  # far more than a pipe holds
        os.write(output, line)
    os.write(output, b"the last words\n")
    os.close(output)
    pump.drain(path)
    assert pump.tail(path).endswith(b"the last words\n")
    going.set()
    pump.finish()
    log = path.read_bytes()
    assert b"lines are missing here: the disk is too slow" in log
    assert len(log) < 1.5 * BACKLOG_BYTES


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b]0;owned\x07title", "\\x1b]0;owned\\x07title"),
        ("\x1b[2J\x1b[31mred\x1b[0m", "\\x1b[2J\\x1b[31mred\\x1b[0m"),
        ("a\tb\nc\r\n", "a\tb\nc\n"),
        ("\x9b2J \u202egpj.exe", "\\x9b2J \\u202egpj.exe"),
        ("Übung 你好 ✓", "Übung 你好 ✓"),
    ],
)
def test_control_characters_are_written_out(text, shown):
    assert visible(text) == shown
