"""Samples and events of the agent, combined into numbered reports."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Sequence

import structlog

from jobs import frames
from jobs.agent.spool import Spool
from jobs.clock import Clock
from jobs.events import AgentEvent, RankFingerprint, RankSamples, Report

_INTERVAL_SECONDS = 0.25
"""Maximum delay of samples, so that they share a report; events are never delayed."""


_COLUMNS = tuple(
    name
    for name in RankSamples.model_fields
    if name not in {"rank", "lost", "expected_until", "metrics"}
)


class Outbox:
    """Builds reports: samples four times a second, events at once and after earlier samples."""

    def __init__(self, spool: Spool, clock: Clock, wake: Callable[[], None]) -> None:
        self._spool = spool
        self._clock = clock
        self._wake = wake
        self._attempt = 0
        self._samples: dict[int, RankSamples] = {}
        self._fingerprints: list[RankFingerprint] = []
        self._dropped: defaultdict[int, int] = defaultdict(int)
        self._flushed = clock.monotonic()

    def take(
        self, attempt: int, samples: Sequence[RankSamples], events: Sequence[AgentEvent]
    ) -> None:
        """Accept samples of an attempt, and events that arose after them."""
        if attempt != self._attempt:
            self._flush(())
            self._attempt = attempt
        for new in samples:
            old = self._samples.get(new.rank)
            self._samples[new.rank] = _joined(old, new) if old else new
        if events:
            self._flush(events)
        else:
            self.tick()

    def compare(self, attempt: int, fingerprints: Sequence[RankFingerprint]) -> None:
        """Accept fingerprints of an attempt; they wait for a report as samples do."""
        if fingerprints and attempt != self._attempt:
            self._flush(())
            self._attempt = attempt
        self._fingerprints += fingerprints

    def tick(self) -> None:
        """Send the samples that have waited for `_INTERVAL_SECONDS`."""
        if self._clock.monotonic() - self._flushed >= _INTERVAL_SECONDS:
            self._flush(())

    def _flush(self, events: Sequence[AgentEvent]) -> None:
        if not self._samples and not self._fingerprints and not events:
            return
        report = Report(
            sequence=self._spool.next_sequence,
            attempt=self._attempt,
            samples=self._samples_that_fit(),
            fingerprints=() if self._spool.full else tuple(self._fingerprints),
            events=tuple(events),
        )
        self._samples.clear()
        self._fingerprints.clear()
        self._flushed = self._clock.monotonic()
        if report.samples or report.fingerprints or report.events:
            self._spool.append(frames.encode("report", report))
            self._wake()

    def _samples_that_fit(self) -> tuple[RankSamples, ...]:
        """All samples; none while the spool is full. Later samples report the gap in `lost`."""
        if self._spool.full:
            if not self._dropped:
                log = structlog.get_logger(part="outbox")
                log.error("spool is full, dropping samples until the control plane is back")
            for rank, samples in self._samples.items():
                self._dropped[rank] += samples.lost + len(samples.step)
            return ()
        return tuple(
            samples.model_copy(update={"lost": samples.lost + self._dropped.pop(rank, 0)})
            for rank, samples in self._samples.items()
        )


def _joined(old: RankSamples, new: RankSamples) -> RankSamples:
    parts = [(old, len(old.step)), (new, len(new.step))]
    columns = {name: getattr(old, name) + getattr(new, name) for name in _COLUMNS}
    if old.expected_until or new.expected_until:
        columns["expected_until"] = [
            step for part, count in parts for step in part.expected_until or [0] * count
        ]
    metrics = {
        name: [
            value for part, count in parts for value in part.metrics.get(name) or [math.nan] * count
        ]
        for name in {**old.metrics, **new.metrics}
    }
    return RankSamples(rank=old.rank, lost=old.lost + new.lost, metrics=metrics, **columns)
