"""The hardware of this machine, read by the server itself: the local cluster has no node monitors.

All virtual nodes are this machine. What is found in it is recorded for each of them, in shadow: to
move a run from one virtual node to another would escape nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import platform
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import structlog

from jobs.clock import Clock
from jobs.hardware.collector import Collector
from jobs.hardware.cursor_file import CursorFile
from jobs.hardware.settings import SourceSettings
from jobs.hardware.sources import live
from monitors.hardware.types import NodeReport
from orchestrator.controller.background_loops import cancel
from orchestrator.errors import BabysitError
from orchestrator.server.context import Context
from orchestrator.server.hardware.desk import NodeDesk

_log = structlog.get_logger(__name__)
RETRY_SECONDS = 2.0


@contextlib.asynccontextmanager
async def watched(here: Context) -> AsyncIterator[None]:
    """Read this machine while entered, if its hardware is that of the cluster's nodes."""
    if not here.controller.runs_here or not here.settings.local_hardware:
        yield
        return

    def nodes() -> tuple[str, ...]:
        return tuple(here.controller.state.nodes) if here.controller.is_leader else ()

    cursor = here.settings.home / "kernel-log.json"
    sources = here.settings.sources or SourceSettings()
    reading = watch(here.hardware, here.clock, sources, cursor, nodes)
    task = asyncio.create_task(reading)
    try:
        yield
    finally:
        await cancel([task])


async def watch(
    desk: NodeDesk,
    clock: Clock,
    settings: SourceSettings,
    cursor: Path,
    nodes: Callable[[], tuple[str, ...]],
) -> None:
    """Read the sources of this machine until cancelled.

    Args:
        desk: Takes the reports.
        clock: The clock of the machine.
        settings: Intervals.
        cursor: File that says how far the kernel's log was read.
        nodes: Names of the virtual nodes; none while this server does not lead, and nothing is then
            read.
    """
    file = CursorFile(cursor)
    machine = live(settings, clock.monotonic, cursor=file.read())
    collector = Collector(machine, settings, clock)
    host = platform.node() or "localhost"
    while True:
        if names := nodes():
            await collector.look()
            report = collector.report(host)
            while report is not None and not await _taken(desk, report, names):
                await clock.sleep(RETRY_SECONDS)
            log = machine.kernel_log
            if report is not None and log is not None and not collector.waiting:
                file.write(log.cursor)
        await clock.sleep(collector.pause)


async def _taken(desk: NodeDesk, report: NodeReport, nodes: tuple[str, ...]) -> bool:
    """True once the findings of a report are stored; False: the lead or the database is lost."""
    try:
        await desk.take(report, nodes)
    except BabysitError as error:
        _log.warning("cannot store findings of this machine, will retry", reason=str(error))
        return False
    return True
