"""Finds faults of one machine in what its sources report, by the rows of the catalogue.

The problem: a fault is said many times and by several sources, reports come twice, counters hold
the past of weeks, and one line of an application proves nothing about a machine. The design: rows
of the catalogue look at lines and at series; a sign that a row wants several times is counted by
device; what was found is said again only after `quiet_seconds`, and a reading that is fine again
ends it. The monitor decides nothing: the core does, and knows the runs on the node.

Limits: memory is bounded, so the oldest signs are forgotten first. A monitor that is made anew
takes its first readings as history, and finds a condition that holds once more.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Hashable, Iterator
from dataclasses import dataclass

from monitors.hardware import kernel_lines
from monitors.hardware.catalogue import Catalogue, Row, When, condition
from monitors.hardware.catalogue_files import builtin_catalogue
from monitors.hardware.series import Judge, Verdict
from monitors.hardware.types import REBOOT, LogLine, NodeAction, NodeFinding, NodeReport, Reading

_LINES = 4096
"""Lines of which repeats are recognised. Ours: some hours of a noisy log."""
_SERIES = 8192
"""Series that are followed at once: 16 devices with all readings of the catalogue, ten times."""
XID_READING = "xid_code"
"""A reading whose value is the number of an Xid: NVML and DCGM tell of it without a line."""
_SAME_SECONDS = 15.0
"""An Xid in the log and the same number as a reading within this time are one. Ours: readings come
each few seconds."""


@dataclass(frozen=True, slots=True)
class HardwareSettings:
    """The settings of a monitor of a node."""

    catalogue: Catalogue
    quiet_seconds: float = 300.0
    """s; the same finding about the same device and process is not said again within it. Ours: a
    driver repeats an Xid many times a second."""
    burst_seconds: float = 10.0
    """s; signs this close together are one where a row wants a sign several times. Ours."""

    @classmethod
    def default(cls) -> HardwareSettings:
        """The rows that come with babysit."""
        return cls(catalogue=builtin_catalogue())


@dataclass(frozen=True, slots=True)
class _Sign:
    """One sign of a machine, as a row sees it."""

    device: str
    text: str
    time: float
    pid: int | None = None


class NodeMonitor:
    """The monitor of one machine. Not safe for threads.

    Feed it each report once or more often; reports that were seen before change nothing.
    """

    def __init__(self, settings: HardwareSettings | None = None) -> None:
        self._settings = settings or HardwareSettings.default()
        self._boot = ""
        self._lines: OrderedDict[tuple[float, str], None] = OrderedDict()
        self._judges: OrderedDict[Hashable, Judge] = OrderedDict()
        self._others: OrderedDict[tuple[str, str, str], float] = OrderedDict()
        self._signs: OrderedDict[tuple[str, str], deque[float]] = OrderedDict()
        """By row and device: when the sign was seen, no more often than the row wants."""
        self._said: OrderedDict[tuple[str, str], tuple[float, int | None]] = OrderedDict()
        """By row and device: when it was last said, and of which process."""
        self._xids: OrderedDict[str, tuple[float, float]] = OrderedDict()
        """By device: time and value of the newest reading of an Xid."""

    def feed(self, report: NodeReport) -> list[NodeFinding]:
        """Take a report; the findings follow the order of its lines and readings."""
        findings = list(self._start(report))
        for line in report.lines:
            if self._is_new(line):
                findings += self._line(report, line)
        for reading in report.readings:
            if reading.name in self._settings.catalogue.others:
                self._others[reading.source, reading.device, reading.name] = reading.value
        _shorten(self._others, _SERIES)
        for reading in report.readings:
            findings += self._reading(report, reading)
        return findings

    # the start of a machine

    def _start(self, report: NodeReport) -> Iterator[NodeFinding]:
        """Counters begin anew with a machine; what was said before counts no more."""
        if not report.boot or report.boot == self._boot:
            return
        known, self._boot = self._boot, report.boot
        if not known:
            return
        self._judges.clear()
        self._others.clear()
        self._said.clear()
        self._xids.clear()
        for row in self._settings.catalogue.boots:
            sign = _Sign(device="", text=f"boot id {report.boot}", time=report.time)
            yield from self._saw(report, row, sign)

    # lines

    def _is_new(self, line: LogLine) -> bool:
        key = (line.time, line.text)
        if key in self._lines:
            return False
        self._lines[key] = None
        _shorten(self._lines, _LINES)
        return True

    def _line(self, report: NodeReport, line: LogLine) -> Iterator[NodeFinding]:
        catalogue = self._settings.catalogue
        text = kernel_lines.without_names(line.text)
        found = kernel_lines.xid(text)
        if found is not None:
            yield from self._xid(report, found, line.text, line.time)
            return
        for row, pattern in catalogue.lines:
            if pattern.search(text) and not catalogue.is_ruled_out(row, text):
                sign = _Sign(
                    device=kernel_lines.device(line.text),
                    text=line.text,
                    time=line.time,
                    pid=kernel_lines.pid(line.text),
                )
                yield from self._saw(report, row, sign)
                return

    def _xid(
        self, report: NodeReport, found: kernel_lines.Xid, text: str, time: float
    ) -> Iterator[NodeFinding]:
        catalogue = self._settings.catalogue
        for row in catalogue.rows_of_xid(found.code):
            detail = catalogue.details.get(row.id)
            if catalogue.is_ruled_out(row, text):
                continue
            if detail is None or detail.search(found.detail):
                sign = _Sign(device=found.device, text=text, time=time, pid=found.pid)
                yield from self._saw(report, row, sign)
                return

    # readings

    def _reading(self, report: NodeReport, reading: Reading) -> Iterator[NodeFinding]:
        if reading.name == XID_READING:
            yield from self._xid_reading(report, reading)
            return
        for row, when in self._settings.catalogue.readings.get(reading.name, ()):
            if row.sources and reading.source not in row.sources:
                continue
            judge = self._judge(row, when, reading)
            other = (reading.source, reading.device, when.below_reading or "")
            verdict = judge.feed(reading.time, reading.value, self._others.get(other))
            text = f"{reading.name} of {reading.device or 'the node'} is {reading.value:g}"
            text = f"{text} ({reading.source}): {condition(when)}"
            sign = _Sign(device=reading.device, text=text, time=reading.time)
            if verdict is Verdict.FOUND:
                yield from self._saw(report, row, sign)
            elif verdict is Verdict.OVER:
                yield self._finding(report, row, sign, over=True)

    def _judge(self, row: Row, when: When, reading: Reading) -> Judge:
        key = (row.id, reading.source, reading.device)
        judge = self._judges.get(key)
        if judge is None:
            judge = self._judges[key] = Judge(when)
            _shorten(self._judges, _SERIES)
        self._judges.move_to_end(key)
        return judge

    def _xid_reading(self, report: NodeReport, reading: Reading) -> Iterator[NodeFinding]:
        """An Xid that a library tells of: the last number and when it came, or 0 for none."""
        before = self._xids.get(reading.device)
        self._xids[reading.device] = (reading.time, reading.value)
        _shorten(self._xids, _SERIES)
        fresh = before is not None and before[0] < reading.time and before[1] != reading.value
        code = int(reading.value)
        rows = self._settings.catalogue.rows_of_xid(code) if code else []
        if not fresh or not rows or self._in_the_log(rows, reading.time):
            return
        text = f"{reading.source} tells of Xid {code} of {reading.device}"
        found = kernel_lines.Xid(code=code, device=reading.device, pid=None, detail="")
        yield from self._xid(report, found, text, reading.time)

    def _in_the_log(self, rows: list[Row], time: float) -> bool:
        ids = {row.id for row in rows}
        return any(
            row in ids and abs(said - time) <= _SAME_SECONDS
            for (row, _), (said, _) in self._said.items()
        )

    # findings

    def _saw(self, report: NodeReport, row: Row, sign: _Sign) -> Iterator[NodeFinding]:
        """Count a sign; a finding once the row has it often enough, and not again at once."""
        key = (row.id, sign.device)
        seen = self._signs.setdefault(key, deque(maxlen=row.times))
        self._signs.move_to_end(key)
        _shorten(self._signs, _SERIES)
        if row.times > 1 and seen and abs(sign.time - seen[-1]) < self._settings.burst_seconds:
            return
        seen.append(sign.time)
        while seen and sign.time - seen[0] > row.window_hours * 3600:
            seen.popleft()
        enough = len(seen) >= row.times
        if row.times == 1 and self._is_said(key, sign):
            return
        self._said[key] = (sign.time, sign.pid)
        _shorten(self._said, _SERIES)
        if enough and row.times > 1:
            seen.clear()  # the next finding needs as many again
        yield self._finding(report, row, sign, counted=row.times if enough else len(seen))

    def _is_said(self, key: tuple[str, str], sign: _Sign) -> bool:
        """True if the same was said a moment ago: of the same process, or one source names none."""
        time, pid = self._said.get(key, (float("-inf"), None))
        same = pid == sign.pid or (
            None in {pid, sign.pid} and abs(sign.time - time) <= _SAME_SECONDS
        )
        return same and abs(sign.time - time) < self._settings.quiet_seconds

    def _finding(
        self,
        report: NodeReport,
        row: Row,
        sign: _Sign,
        *,
        counted: int = 1,
        over: bool = False,
    ) -> NodeFinding:
        enough = counted >= row.times
        often = ""
        if row.times > 1:
            hours = f"{row.window_hours:g} h"
            often = f", {counted} of {row.times} times within {hours} before anything is done"
            often = f", {row.times} times within {hours}" if enough else often
        where = f" ({sign.device})" if sign.device else ""
        text = f"{row.says}{where}{often}: {sign.text}"
        return NodeFinding(
            node=report.node,
            rule=REBOOT if row.boot else row.id,
            severity=row.severity,
            action=row.action if enough and not over else NodeAction.RECORD,
            shadow=row.shadow,
            device=sign.device,
            reason=f"over: {text}" if over else text,
            time=sign.time,
            evidence=(sign.text,),
            failure_class=row.failure_class,
            runs=row.runs,
            window_seconds=row.window_hours * 3600,
            pid=sign.pid,
            over=over,
            boot=self._boot,
        )


def _shorten(kept: OrderedDict, limit: int) -> None:  # type: ignore[type-arg]
    while len(kept) > limit:
        kept.popitem(last=False)
