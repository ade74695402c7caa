"""Steps and losses of a rank that says nothing, read from its output.

Only a rank without a ring is read: a script that calls `babysit.init()` speaks for itself.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence

import structlog

from babysit import wire
from babysit.ring import Record
from jobs.agent.rank_reader import columns
from jobs.clock import Clock
from jobs.events import RankBeat, RankSamples
from jobs.spec import RunSpec
from jobs.watch import PRESETS, LogReader, Preset, Seen

JOIN_SECONDS = 60.0
"""Patience for `babysit.init()` where the spec has a directory for checkpoints, to which only
scripts that call it save. What they print before may be the steps of a warm-up."""


class LogMetrics:
    """Reads the output of one rank."""

    def __init__(self, rank: int, spec: RunSpec, clock: Clock) -> None:
        self._rank = rank
        self._clock = clock
        self._reader = LogReader(_presets(spec), time.thread_time)
        self._log = structlog.get_logger(part="log_metrics", rank=rank)
        self._is_told = False
        expected = spec.checkpoint.directory is not None and spec.watch == "auto"
        patience = JOIN_SECONDS if expected else 0.0
        self._waits_until = clock.monotonic() + patience

    @property
    def waits(self) -> bool:
        """True while the script is expected to call `babysit.init()` yet."""
        return self._clock.monotonic() < self._waits_until

    @property
    def seen(self) -> Seen:
        """The newest step in the output."""
        return self._reader.seen

    def read(self, output: bytes) -> RankSamples | None:
        """Samples in new output; None: there are none."""
        found = self._reader.feed(output, self._now)
        if self._reader.trouble and not self._is_told:
            self._is_told = True
            self._log.warning("the log is not read any more", reason=self._reader.trouble)
        return self._samples(found)

    def finish(self, output: bytes) -> RankSamples | None:
        """Samples in the last output; None: there are none."""
        found = self._reader.feed(output, self._now)
        return self._samples([*found, *self._reader.finish(self._now)])

    def beat(self, newest: Seen, *, alive: bool) -> RankBeat:
        """A sign of life of the rank.

        Args:
            newest: The newest step of all ranks on this node: most scripts print on one rank, while
                all train.
            alive: As for :meth:`jobs.agent.rank_reader.RankReader.beat`.
        """
        return RankBeat(
            rank=self._rank,
            step=newest.step,
            phase=wire.Phase.TRAINING,
            beat=newest.time,
            alive=alive,
            moved=True,
            first_step=newest.first_step,
            printed=True,
        )

    @property
    def _now(self) -> float:
        return self._clock.now().timestamp()

    def _samples(self, records: Sequence[Record]) -> RankSamples | None:
        known = [record for record in records if math.isfinite(record.time)]
        return columns(self._rank, known) if known else None


def _presets(spec: RunSpec) -> list[Preset]:
    if spec.watch == "off":
        return []
    if spec.watch == "auto":
        return list(dict.fromkeys(PRESETS.values()))
    return [spec.watch.preset_or_own]
