"""Reports that hold samples only, and wait to be stored with those of all other agents.

The problem: with a transaction for each report with samples, a few dozen agents fill the control
plane, and the exit of a rank waits behind the steps of others.

The design: the monitors see samples at once; the reports wait here, not acknowledged, until the
next write of samples (`SAMPLES_SECONDS`), or until a transaction changes their run: samples never
come later than an event of their worker, and the last samples of an attempt come with its end.

Limits: kept in memory. When the server ends, the agents send again what was not acknowledged.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping

from orchestrator.controller.turn_queue import ReportRequest

SAMPLES_SECONDS = 0.5
"""Samples wait this long for others, so that one transaction stores those of all agents."""
RUNS_AT_ONCE = 256
"""Runs whose samples share a transaction, at most: events wait for no longer one."""


class SampleBuffer:
    """Reports in order of arrival, by run."""

    def __init__(self) -> None:
        self._runs: dict[str, list[ReportRequest]] = {}
        self._newest: dict[str, int] = {}

    def __len__(self) -> int:
        """Number of runs with reports here."""
        return len(self._runs)

    def newest(self, worker: str) -> int:
        """Sequence of the newest report of a worker that waits here; 0: none does."""
        return self._newest.get(worker, 0)

    def add(self, requests: Iterable[ReportRequest]) -> None:
        """Keep reports until they are stored; one that is here already waits for the same write."""
        for request in requests:
            self._runs.setdefault(request.run, []).append(request)
            self._newest[request.worker] = max(request.report.sequence, self.newest(request.worker))

    def take(self, runs: Iterable[str]) -> list[ReportRequest]:
        """Take the reports of some runs, to be stored now."""
        return self._taken([each for run in set(runs) for each in self._runs.pop(run, ())])

    def take_some(self) -> list[ReportRequest]:
        """Take the reports of the runs that wait longest, as many as share a transaction."""
        return self.take(list(self._runs)[:RUNS_AT_ONCE])

    def put_back(self, requests: Iterable[ReportRequest]) -> None:
        """Put back reports that were taken and are not stored, in front of all others."""
        before: defaultdict[str, list[ReportRequest]] = defaultdict(list)
        for request in requests:
            before[request.run].append(request)
            self._newest[request.worker] = max(request.report.sequence, self.newest(request.worker))
        self._runs = {run: [*each, *self._runs.pop(run, ())] for run, each in before.items()} | (
            self._runs
        )

    def all(self) -> list[ReportRequest]:
        """All reports that wait here."""
        return [each for requests in self._runs.values() for each in requests]

    def _taken(self, requests: list[ReportRequest]) -> list[ReportRequest]:
        for request in requests:
            self._newest.pop(request.worker, None)
        return requests


def newest_sequences(requests: Iterable[ReportRequest]) -> Mapping[str, int]:
    """Worker to the newest sequence among some reports."""
    newest: dict[str, int] = {}
    for request in requests:
        newest[request.worker] = max(request.report.sequence, newest.get(request.worker, 0))
    return newest
