"""Reads the sources of a machine, each at its interval, and makes reports of what they see.

The problem: a look may hang for ever (a driver in D state, a dead server of NFS), and must then
neither stop the other looks nor the program; and a source that sees nothing must say so.

The design: each look is a daemon thread of its own, and a source has one look under way at most. A
look that takes too long makes its source blind until it ends. An error of the operating system is
blindness; what else is raised is a defect of ours: it is logged, and is blindness too.

Limits: a hung look keeps its thread. Readings of one report are at most `report_seconds` old.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections import Counter
from collections.abc import Callable
from typing import TypeVar

import structlog

from jobs.clock import Clock
from jobs.hardware.port import Seen, Source
from jobs.hardware.settings import SourceSettings
from jobs.hardware.sources import Machine, interval
from monitors.hardware.types import LogLine, NodeReport, Reading

_log = structlog.get_logger(__name__)
T = TypeVar("T")
_TICK_SECONDS = 0.2
"""A look is late by this at most, where intervals are not multiples of each other."""
_MOST_LINES = 2000
"""Lines that wait for a report; the program is then stuck, and says so by its silence."""
LINES_OF_A_REPORT = 200
"""Lines of one report, which servers read as a whole; more go with the next."""


class _Watch:
    """One source, and its look under way."""

    def __init__(self, source: Source, seconds: float) -> None:
        self.source, self.seconds = source, seconds
        self.due = float("-inf")
        self.began = 0.0
        self.look: asyncio.Future[Seen] | None = None
        self.last = Seen()


class Collector:
    """Looks at a machine, and collects what is new since the report before.

    Args:
        machine: Its sources.
        settings: Intervals.
        clock: The node's clock.
    """

    def __init__(self, machine: Machine, settings: SourceSettings, clock: Clock) -> None:
        self._boot, self._settings, self._clock = machine.boot, settings, clock
        self._watches = [_Watch(s, interval(settings, s.name)) for s in machine.sources]
        self._readings: dict[tuple[str, str, str], Reading] = {}
        self._lines: list[LogLine] = []
        self._reported = float("-inf")

    @property
    def blind(self) -> dict[str, str]:
        """Sources that see nothing, with the reason."""
        return {w.source.name: w.last.blind for w in self._watches if w.last.blind}

    @property
    def absent(self) -> dict[str, str]:
        """Sources that have nothing to see, with the reason."""
        return {w.source.name: w.last.absent for w in self._watches if w.last.absent}

    @property
    def looking(self) -> set[str]:
        """Sources whose look has not ended."""
        return {w.source.name for w in self._watches if w.look is not None}

    @property
    def counts(self) -> Counter[str]:
        """By source: readings that wait for a report."""
        return Counter(source for source, _, _ in self._readings)

    async def look(self) -> None:
        """Begin the looks that are due, and take the results of those that have ended.

        Returns when every look has ended, or a short time later: what is late is taken next time.
        """
        now = self._clock.monotonic()
        for watch in self._watches:
            if watch.look is None and now >= watch.due:
                watch.due, watch.began = now + watch.seconds, now
                watch.look = in_thread(self._reader(watch.source), watch.source.name)
        pending = [watch.look for watch in self._watches if watch.look is not None]
        if pending:
            await asyncio.wait(pending, timeout=_TICK_SECONDS)
        for watch in self._watches:
            self._take(watch)

    def _reader(self, source: Source) -> Callable[[], Seen]:
        now = self._clock.now().timestamp()

        def read() -> Seen:
            try:
                return source.read(now)
            except OSError as error:
                return Seen(blind=f"cannot be read: {error}")
            except Exception as error:  # noqa: BLE001 (logged: the other sources go on)
                _log.exception("a hardware source failed; please report this", source=source.name)
                return Seen(blind=f"failed ({type(error).__name__}): please report this")

        return read

    def _take(self, watch: _Watch) -> None:
        """Take what a look has seen, if it has ended."""
        if watch.look is None:
            return
        if not watch.look.done():
            waited = self._clock.monotonic() - watch.began
            if waited > self._settings.hung_seconds:
                watch.last = Seen(blind=f"has not answered for {waited:.0f} s: a driver hangs?")
            return
        seen, watch.look = watch.look.result(), None
        watch.last = seen._replace(readings=(), lines=())
        for reading in seen.readings:
            self._readings[reading.source, reading.device, reading.name] = reading
        if watch.source.name != "nvml" or not self._sees("kernel_log"):  # the log has its Xids too
            self._lines += seen.lines
            del self._lines[:-_MOST_LINES]

    def _sees(self, name: str) -> bool:
        return any(w.source.name == name and not w.last.blind for w in self._watches)

    def report(self, node: str) -> NodeReport | None:
        """A report of everything new; None: nothing is due."""
        now = self._clock.monotonic()
        if not self._lines and now < self._reported + self._settings.report_seconds:
            return None
        self._reported = now
        report = NodeReport(
            node=node,
            time=self._clock.now().timestamp(),
            boot=self._boot,
            readings=tuple(self._readings.values()),
            lines=tuple(self._lines[:LINES_OF_A_REPORT]),
            blind=self.blind,
        )
        self._readings, self._lines = {}, self._lines[LINES_OF_A_REPORT:]
        return report

    @property
    def waiting(self) -> bool:
        """True if lines wait for another report."""
        return bool(self._lines)

    @property
    def pause(self) -> float:
        """Seconds until the next look or report is due."""
        now = self._clock.monotonic()
        due = [w.due for w in self._watches if w.look is None]
        due.append(now if self._lines else self._reported + self._settings.report_seconds)
        if any(w.look is not None for w in self._watches):
            due.append(now + _TICK_SECONDS)
        return max(_TICK_SECONDS, min(due) - now)


def in_thread(call: Callable[[], T], name: str) -> asyncio.Future[T]:
    """Call a function in a daemon thread, which ends with the process whatever it waits for.

    The function must raise nothing.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def settle(result: T) -> None:
        if not future.done():
            future.set_result(result)

    def work() -> None:
        result = call()
        with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile
            loop.call_soon_threadsafe(settle, result)

    threading.Thread(target=work, name=f"hardware {name}", daemon=True).start()
    return future
