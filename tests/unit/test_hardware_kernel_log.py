"""The kernel's log: real formats, and what a restart of its reader means."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobs.clock import SystemClock
from jobs.hardware.kernel_log import Cursor, KernelLog
from jobs.hardware.kernel_records import CapturedLog, Kmsg, Record, parse

BOOTED = 1_800_000_000.0
NOW = BOOTED + 1000.0
XID = "NVRM: Xid (PCI:0000:3b:00): 79, pid='<unknown>', name=<unknown>, GPU has fallen off the bus."


@pytest.mark.parametrize(
    ("line", "level", "since", "text"),
    [
        (f"3,1201,812345678,-;{XID}", 3, 812.345678, XID),
        (f"2,7,5,-,caller=T12;{XID}\n SUBSYSTEM=pci\n DEVICE=+pci:0000:3b:00.0", 2, 5e-6, XID),
        (f"[  812.345678] {XID}", 6, 812.345678, XID),
        (f"[  812.345678][ T4242] {XID}", 6, 812.345678, XID),
        (f"<3>[  812.345678] {XID}", 3, 812.345678, XID),
        (f"kern  :err   : [  812.345678] {XID}", 3, 812.345678, XID),
        (f"Nov 30 12:00:01 gpu-7 kernel: [  812.345678] {XID}", 6, 812.345678, XID),
        ("6,1,1,-;tab\\x09 and \\xc3\\xa9", 6, 1e-6, "tab\t and é"),
    ],
)
def test_formats(line: str, level: int, since: float, text: str) -> None:
    record = parse(line)
    assert record is not None
    assert (record.level, record.facility, record.text) == (level, 0, text)
    assert record.since_boot == pytest.approx(since)


def test_times_of_day_need_their_zone() -> None:
    found = parse(f"2026-11-30T13:00:00.5+0100 gpu-7 kernel: {XID}")
    assert found is not None
    assert (found.text, found.unix) == (XID, 1796040000.5)
    assert parse(f"[Mon Nov 30 12:00:00 2026] {XID}") is None
    assert parse("") is None
    assert parse("2026-11-30T13:00:00+0100 gpu-7 sshd: NVRM: Xid") is None


class Ring:
    """A log in memory, as the kernel gives it."""

    def __init__(self, *records: Record) -> None:
        self.records = list(records)

    def take(self, most: int) -> list[Record]:
        taken, self.records = self.records[:most], self.records[most:]
        return taken

    def booted(self, now: float) -> float:
        return BOOTED


def at(sequence: int, since: float = 900.0, text: str = "", facility: int = 0) -> Record:
    text = text or f"line {sequence}"
    return Record(text, sequence, facility=facility, since_boot=since)


def texts(log: KernelLog, now: float = NOW) -> list[str]:
    return [line.text for line in log.read(now).lines]


def lost(log: KernelLog) -> float:
    (reading,) = log.read(NOW).readings
    return reading.value


def test_a_reader_begins_near_now_and_a_restarted_one_where_it_was() -> None:
    ring = [at(0, 1.0), at(1, 900.0), at(2, 950.0)]
    first = KernelLog(Ring(*ring), "boot-1", backlog_seconds=100.0)
    assert texts(first) == ["line 1", "line 2"]
    assert first.cursor == Cursor("boot-1", 2)
    again = KernelLog(Ring(*ring, at(3, 1.0)), "boot-1", first.cursor, backlog_seconds=0.0)
    assert texts(again) == ["line 3"]  # however old it is: it has not been read
    rebooted = KernelLog(Ring(*ring), "boot-2", first.cursor, backlog_seconds=100.0)
    assert texts(rebooted) == ["line 1", "line 2"]


def test_lines_have_the_time_of_their_stamp_and_none_is_in_the_future() -> None:
    log = KernelLog(Ring(at(1, 990.0), at(2, 1003.0)), "b")
    assert [line.time for line in log.read(NOW).lines] == [NOW - 10, NOW]


def test_records_that_were_overwritten_unread_are_counted() -> None:
    log = KernelLog(Ring(at(5), at(9)), "b", Cursor("b", 4))
    assert texts(log) == ["line 5", "line 9"]
    assert lost(log) == 3


def test_a_flood_is_cut_and_the_most_severe_lines_stay_in_their_order() -> None:
    noise = [at(n) for n in range(1, 6)]
    severe = at(6)._replace(level=2)
    log = KernelLog(Ring(*noise, severe), "b", Cursor("b", 0), most_lines=3)
    assert texts(log) == ["line 1", "line 2", "line 6"]
    assert lost(log) == 3


def test_what_user_space_writes_is_not_the_kernels_word() -> None:
    log = KernelLog(Ring(at(1, text=XID, facility=1), at(2, text=XID)), "b", Cursor("b", 0))
    assert texts(log) == [XID]


def test_the_log_of_this_machine_is_read_or_said_to_be_unreadable() -> None:
    clock = SystemClock()
    log = KernelLog(Kmsg(Path("/dev/kmsg"), clock.monotonic), "b", backlog_seconds=float("inf"))
    now = clock.now().timestamp()
    seen = log.read(now)
    assert bool(seen.readings) != bool(seen.blind)
    times = [line.time for line in seen.lines]
    assert all(now - clock.monotonic() - 60 <= time <= now for time in times)
    assert not [line for line in log.read(now).lines if line in seen.lines]


def test_a_log_that_is_missing_or_forbidden_is_blind(tmp_path: Path) -> None:
    seen = KernelLog(Kmsg(tmp_path / "kmsg", float), "b").read(NOW)
    assert "kmsg is missing: mount the host's" in seen.blind

    class Forbidden(Ring):
        def take(self, most: int) -> list[Record]:
            raise PermissionError(1, "Operation not permitted")

    assert "capability SYSLOG" in KernelLog(Forbidden(), "b").read(NOW).blind


def test_a_captured_log_is_followed_as_it_grows(tmp_path: Path) -> None:
    file = tmp_path / "kernel.log"
    file.write_text(f"[  1.000000] one\nno record\n[  2.000000] {XID}\n[  3.0")
    log = KernelLog(CapturedLog(file, BOOTED), backlog_seconds=float("inf"))
    seen = log.read(NOW)
    assert [(line.text, line.time) for line in seen.lines] == [
        ("one", BOOTED + 1),
        (XID, BOOTED + 2),
    ]
    with file.open("a") as more:
        more.write("00000] three\n")
    assert texts(log) == ["three"]
    assert texts(log) == []
