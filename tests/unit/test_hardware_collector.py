"""The collector: each source at its interval, blindness, and a look that does not come back."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import pytest

from jobs.clock import ManualClock
from jobs.hardware.collector import Collector
from jobs.hardware.port import Readings, Seen
from jobs.hardware.settings import SourceSettings
from jobs.hardware.sources import Machine
from monitors.hardware.types import LogLine

SETTINGS = SourceSettings(
    kernel_log_seconds=1, nvml_seconds=10, memory_seconds=5, report_seconds=10, hung_seconds=60
)


class Scripted:
    """A source whose looks are functions."""

    def __init__(self, name: str, look: Callable[[float], Seen]) -> None:
        self.name, self._look, self.looks = name, look, 0

    def read(self, now: float) -> Seen:
        self.looks += 1
        return self._look(now)


def reading(name: str) -> Callable[[float], Seen]:
    def look(now: float) -> Seen:
        found = Readings(name, now)
        found.add("", "value", now)
        return found.seen()

    return look


def line(text: str) -> Callable[[float], Seen]:
    return lambda now: Seen(lines=(LogLine(text=text, time=now),))


def collector(clock: ManualClock, *sources: Scripted) -> Collector:
    return Collector(Machine(sources, "boot-1", None), SETTINGS, clock)


async def test_each_source_is_read_at_its_interval_and_reports_have_the_newest() -> None:
    clock, memory, nvml = ManualClock(), *(Scripted(n, reading(n)) for n in ("memory", "nvml"))
    here = collector(clock, memory, nvml)
    reports = []
    for _ in range(31):
        await here.look()
        reports.append(here.report("node-1"))
        clock.advance(1.0)
    assert (memory.looks, nvml.looks) == (7, 4)
    sent = [each for each in reports if each is not None]
    assert len(sent) == 4
    assert sent[1].boot == "boot-1"
    ages = {each.source: sent[1].time - each.time for each in sent[1].readings}
    assert ages == {"memory": 0, "nvml": 0}


async def test_lines_wait_for_no_interval() -> None:
    clock = ManualClock()
    here = collector(clock, Scripted("kernel_log", line("fallen off the bus")))
    await here.look()
    assert here.report("node-1") is not None
    clock.advance(1.0)
    await here.look()
    report = here.report("node-1")
    assert report is not None
    assert [each.text for each in report.lines] == ["fallen off the bus"]
    assert here.report("node-1") is None


def blind(_: float) -> Seen:
    return Seen(blind="no permission")


async def test_xids_of_nvml_count_where_the_kernels_log_is_not_read() -> None:
    for log, lines in ((line("Xid in the log"), ["Xid in the log"]), (blind, ["Xid of NVML"])):
        here = collector(
            ManualClock(), Scripted("kernel_log", log), Scripted("nvml", line("Xid of NVML"))
        )
        await here.look()
        report = here.report("node-1")
        assert report is not None
        assert [each.text for each in report.lines] == lines


def refused(_: float) -> Seen:
    raise PermissionError(13, "Permission denied")


def defect(_: float) -> Seen:
    raise KeyError("x")


@pytest.fixture
def stuck() -> Iterator[threading.Event]:
    """Ends looks that hang."""
    released = threading.Event()
    yield released
    released.set()


async def test_blindness_has_a_reason_and_ends_with_its_cause(stuck: threading.Event) -> None:
    def hung(now: float) -> Seen:
        stuck.wait()
        return reading("disk")(now)

    clock = ManualClock()
    disk = Scripted("disk", hung)
    here = collector(clock, disk, Scripted("nvml", refused), Scripted("memory", defect))
    await here.look()
    while here.looking != {"disk"}:  # to log a defect takes a loaded machine longer than one look
        await here.look()
    assert here.blind == {
        "nvml": "cannot be read: [Errno 13] Permission denied",
        "memory": "failed (KeyError): please report this",
    }
    clock.advance(61.0)
    await here.look()
    assert here.blind["disk"] == "has not answered for 61 s: a driver hangs?"
    assert disk.looks == 1
    stuck.set()
    while "disk" in here.blind:
        await here.look()
    report = here.report("node-1")
    assert report is not None
    assert [each.source for each in report.readings] == ["disk"]
