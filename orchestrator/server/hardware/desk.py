"""The desk of node reports: one hardware monitor a machine, and the newest that is known of each.

The problem: reports of a thousand nodes come every few seconds, and most of them say nothing new.
The design: reports stay in memory. Only findings become events, which the core stores; a report is
acknowledged after its findings are stored, so a server that dies loses none, and a report that
comes twice finds nothing twice (:class:`monitors.hardware.node_monitor.NodeMonitor`). Findings that
could not be stored are kept, since the monitor does not find them again.

Limits: a new leader knows of a node what the node has sent to it, and its monitors take the first
readings as history.
"""

from __future__ import annotations

import asyncio
import dataclasses
import datetime as dt
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence

import structlog

from jobs import hardware_rules
from jobs.clock import Clock
from jobs.hardware.port import NAMES
from jobs.yaml_file import SpecError
from monitors.hardware.node_monitor import HardwareSettings, NodeMonitor
from monitors.hardware.types import NodeFinding, NodeReport, Reading
from orchestrator.errors import InvalidError
from orchestrator.settings import Settings

_log = structlog.get_logger(__name__)
MONITOR = "monitor"
"""The name under which the node monitor itself is blind: it has not reported."""
SOURCES = (MONITOR, *NAMES)
"""Sources that are counted; a report may name others, of another version."""
SILENT_SECONDS = 60.0
"""A monitor reports each 10 s; six that are missing are not an accident."""
NEVER = "no node monitor has reported: start babysit-node-monitor there (docs/hardware.md)"
NOT_YET = "the server has not read this machine yet: look again in a few seconds"
OFF = "the server does not read this machine: unset BABYSIT_LOCAL_HARDWARE to have it read"
_MOST_READINGS = 4000
"""Readings of a node that are kept: 16 GPUs with 64 each, four times."""
_MOST_FINDINGS = 20
Raise = Callable[[NodeFinding], Awaitable[object]]


@dataclasses.dataclass(slots=True)
class Known:
    """The newest state of a node's hardware."""

    at: dt.datetime
    """When its newest report arrived, on the server's clock."""
    boot: str = ""
    blind: Mapping[str, str] = dataclasses.field(default_factory=dict)
    readings: dict[tuple[str, str, str], Reading] = dataclasses.field(default_factory=dict)
    """By source, device and name: the newest."""
    findings: deque[NodeFinding] = dataclasses.field(
        default_factory=lambda: deque(maxlen=_MOST_FINDINGS)
    )


def monitor_settings(settings: Settings) -> HardwareSettings | None:
    """The rules with this cluster's changes; None: those that come with babysit.

    Raises:
        InvalidError: The file of changes cannot be used.
    """
    if settings.hardware_rules is None:
        return None
    try:
        catalogue = hardware_rules.read(settings.hardware_rules.expanduser())
    except SpecError as error:
        raise InvalidError(f"BABYSIT_HARDWARE_RULES: {error}") from error
    return HardwareSettings(catalogue=catalogue)


def never_words(settings: Settings, *, runs_here: bool) -> str:
    """Why nothing is known of a node that has never reported.

    Args:
        settings: Whether the server reads its own machine.
        runs_here: The nodes of the cluster are this machine.
    """
    if not runs_here:
        return NEVER
    return NOT_YET if settings.local_hardware else OFF


class NodeDesk:
    """Takes reports, and answers what is known.

    Args:
        clock: The server's clock.
        found: Stores a finding; raises where it cannot.
        settings: Of the monitors; None: the rules that come with babysit.
        never: Why nothing is known of a node that has never reported.
    """

    def __init__(
        self,
        clock: Clock,
        found: Raise,
        settings: HardwareSettings | None = None,
        never: str = NEVER,
    ) -> None:
        self._clock, self._found, self._settings = clock, found, settings
        self._never = never
        self._monitors: dict[str, NodeMonitor] = {}
        self._known: dict[str, Known] = {}
        self._unstored: dict[str, list[NodeFinding]] = {}
        """By machine: findings that are not stored yet, oldest first."""
        self._storing: dict[str, asyncio.Lock] = {}
        """By machine: held while they are stored. A monitor whose request timed out comes again."""
        self.reports = 0
        """Reports that were taken since the server started."""

    async def take(self, report: NodeReport, nodes: Sequence[str] = ()) -> None:
        """Take a report. When this returns, its findings are stored.

        Args:
            report: Of a machine.
            nodes: The nodes that the machine is, if it is several; empty: the one that it names.
        """
        names = tuple(nodes) or (report.node,)
        if self._settings is None:  # a quarter of a second: other requests must not wait for it
            self._settings = await asyncio.to_thread(HardwareSettings.default)
        monitor = self._monitors.get(report.node)
        if monitor is None:  # asked after the wait: another report may have come meanwhile
            monitor = self._monitors[report.node] = NodeMonitor(self._settings)
        findings = monitor.feed(report)
        for name in names:
            self._keep(name, report)
        unstored = self._unstored.setdefault(report.node, [])
        for finding in findings:
            for name in names:
                # Virtual nodes are one machine: to move from one to another escapes nothing.
                mine = {"node": name, "shadow": finding.shadow or bool(nodes)}
                unstored.append(finding.model_copy(update=mine))
                self._known[name].findings.append(unstored[-1])
        async with self._storing.setdefault(report.node, asyncio.Lock()):
            while unstored:
                await self._found(unstored[0])
                del unstored[0]
        self.reports += 1

    def _keep(self, name: str, report: NodeReport) -> None:
        known = self._known.get(name)
        if known is None:
            known = self._known[name] = Known(self._clock.now())
        known.at, known.blind = self._clock.now(), report.blind
        if known.boot != report.boot:
            known.boot, known.readings = report.boot, {}
        for reading in report.readings:
            key = reading.source, reading.device, reading.name
            before = known.readings.pop(key, None)
            newer = before is None or reading.time >= before.time
            known.readings[key] = reading if newer or before is None else before
        while len(known.readings) > _MOST_READINGS:
            del known.readings[next(iter(known.readings))]

    def forget_others(self, nodes: Iterable[str]) -> None:
        """Drop what is known of nodes that are gone, if there are any."""
        left = set(nodes)
        if len(self._known) <= len(left):
            return
        for name in [name for name in self._known if name not in left]:
            del self._known[name]
            self._monitors.pop(name, None)

    def of(self, node: str) -> Known | None:
        """The newest state of a node; None: it has never reported."""
        return self._known.get(node)

    def blind(self, node: str) -> dict[str, str]:
        """Blind sources of a node, with the reason; a silent monitor is one of them."""
        known = self._known.get(node)
        if known is None:
            return {MONITOR: self._never}
        silent = (self._clock.now() - known.at).total_seconds()
        if silent > SILENT_SECONDS:
            told = f"silent since {known.at:%Y-%m-%d %H:%M:%S} UTC: look at its log on the node"
            return {MONITOR: told, **known.blind}
        return dict(known.blind)

    def blind_counts(self, nodes: Iterable[str]) -> dict[str, int]:
        """By source: nodes on which it is blind. Every source of :data:`SOURCES` is there."""
        counts = Counter(source for node in nodes for source in self.blind(node))
        return {source: counts[source] for source in SOURCES}

    def blind_words(self, nodes: Sequence[str]) -> list[str]:
        """Sentences for people: each source with its reason, and on how many of the nodes."""
        reasons: dict[tuple[str, str], list[str]] = {}
        for node in nodes:
            for source, reason in self.blind(node).items():
                reasons.setdefault((source, reason), []).append(node)
        return [
            f"{source} on {_words(found, len(nodes))}: {reason}"
            for (source, reason), found in sorted(reasons.items())
        ]


def _words(found: Sequence[str], of: int) -> str:
    """`node-1`, or `3 of 4 nodes`."""
    if len(found) <= 2 and len(found) < of:
        return " and ".join(found)
    return f"{len(found)} of {of} nodes" if of > 1 else found[0]
