"""Steps and losses of a rank that says nothing, read from its output or its files.

Only a rank without a ring is read: a script that calls `babysit.init()` speaks for itself.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from enum import StrEnum

import structlog

from babysit import wire
from babysit.ring import Record
from jobs.agent.metric_files import MetricFiles
from jobs.agent.rank_reader import columns
from jobs.clock import Clock
from jobs.events import RankBeat, RankSamples
from jobs.spec import RunSpec
from jobs.watch import PRESETS, LogReader, Preset, Seen

JOIN_SECONDS = 60.0
"""Patience for `babysit.init()` where the spec has a directory for checkpoints, to which only
scripts that call it save. What they print before may be the steps of a warm-up."""


PREFER_LINES_SECONDS = 10.0
"""Files of which the spec says nothing count only if the output has shown no step for this long
after them: the source is then the same in each attempt, and both may count differently."""


class _Source(StrEnum):
    LINES = "lines"
    FILES = "files"


class LogMetrics:
    """Reads the output of one rank, and the files in which its script keeps its metrics.

    The first source that shows a step is kept for the whole attempt.
    """

    def __init__(
        self, rank: int, spec: RunSpec, clock: Clock, files: MetricFiles | None = None
    ) -> None:
        self._rank = rank
        self._clock = clock
        self._reader = LogReader(_presets(spec), time.thread_time)
        self._log = structlog.get_logger(part="log_metrics", rank=rank)
        self._files = files
        self._from_files: list[Record] = []
        """Reports that wait until it is known whether files are the source."""
        self._files_since: float | None = None
        """Monotonic seconds of the first step in the files."""
        self._source: _Source | None = None
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
        """The newest step of the source."""
        if self._source is _Source.FILES and self._files is not None:
            return self._files.seen
        return self._reader.seen

    @property
    def reads_files(self) -> bool:
        """True while files may say something."""
        return self._files is not None and self._source is not _Source.LINES

    def note_before(self) -> None:
        """Remember what the files hold before the rank starts. Blocks."""
        if self._files is not None:
            self._files.note_before()

    def look_at_files(self, pid: int) -> None:
        """Read what is new in the files of the rank with this process. Blocks; for a thread."""
        if self._files is not None:
            self._files.look(pid, self._now)

    def read(self, output: bytes) -> RankSamples | None:
        """Samples in new output; None: there are none."""
        found = self._reader.feed(output, self._now)
        if self._reader.trouble and not self._is_told:
            self._is_told = True
            self._log.warning("the log is not read any more", reason=self._reader.trouble)
        return self._samples(self._of_source(found))

    def finish(self, output: bytes) -> RankSamples | None:
        """Samples in the last output; None: there are none."""
        found = self._reader.feed(output, self._now)
        found += self._reader.finish(self._now)
        if self._files is not None and self.reads_files:
            self._files.finish(self._now)
        return self._samples(self._of_source(found, last=True))

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

    def _of_source(self, lines: list[Record], *, last: bool = False) -> list[Record]:
        """The reports that count, of those of the output and those that the files have.

        Args:
            lines: New reports of the output.
            last: The rank has ended: nothing is waited for.
        """
        if self._files is None or self._source is _Source.LINES:
            return lines
        self._from_files += self._files.take()
        if self._source is None:
            self._source = self._choose(self._files, last=last)
            if self._source is _Source.LINES:
                self._from_files.clear()
        if self._source is not _Source.FILES:
            return lines
        found, self._from_files = self._from_files, []
        return found

    def _choose(self, files: MetricFiles, *, last: bool) -> _Source | None:
        if self._reader.seen.step:
            return _Source.LINES
        if not files.seen.step:
            return None
        now = self._clock.monotonic()
        self._files_since = now if self._files_since is None else self._files_since
        is_due = now - self._files_since >= PREFER_LINES_SECONDS
        return _Source.FILES if last or files.is_sure or is_due else None

    def _samples(self, records: Sequence[Record]) -> RankSamples | None:
        known = [record for record in records if math.isfinite(record.time)]
        return columns(self._rank, known) if known else None


def _presets(spec: RunSpec) -> list[Preset]:
    if spec.watch == "off":
        return []
    if spec.watch == "auto":
        return list(dict.fromkeys(PRESETS.values()))
    own = spec.watch.preset_or_own
    return [] if own is None else [own]
