"""Slowdowns of a whole run: data, checkpoint and start-up stalls, and drops of the throughput.

All of them compare the run with its own past and change nothing about it: their findings are
recorded, with what they cost. What is true of all of them is here: the attempt, the world
size, and announced changes, after which the past cannot be compared. One cause is one finding: a
drop of the throughput that a stall, or a straggler, explains is not reported.

Limits: the past does not outlive the control plane, but for the samples that are fed again: the
throughput, the seconds that saves block, and that a start has ended. It outlives an attempt only if
the next one has as many ranks.
"""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict

from monitors.data_stalls import DataStallMonitor, DataStallSettings
from monitors.save_stalls import CheckpointStallMonitor, CheckpointStallSettings, SavedShard
from monitors.start_stalls import StartupStallMonitor, StartupStallSettings
from monitors.throughput import ThroughputMonitor, ThroughputSettings
from monitors.types import Beat, Finding, Sample

_OTHER_LOAD = 0.25
"""Change of the tokens a step after which waits for data cannot be compared."""


class SlowdownSettings(BaseModel):
    """Settings of the search for slowdowns of a whole run."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    data: DataStallSettings = DataStallSettings()
    checkpoint: CheckpointStallSettings = CheckpointStallSettings()
    startup: StartupStallSettings = StartupStallSettings()
    throughput: ThroughputSettings = ThroughputSettings()


class SlowdownMonitors:
    """The four monitors of one run; `known_start`: the longest start of earlier runs of its name.

    The caller passes what belongs to the present attempt only, and calls `restart` before.
    """

    def __init__(self, settings: SlowdownSettings | None = None, known_start: float = 0.0) -> None:
        settings = settings or SlowdownSettings()
        self._data = DataStallMonitor(settings.data)
        self._saves = CheckpointStallMonitor(settings.checkpoint)
        self._starts = StartupStallMonitor(settings.startup, known_start)
        self._throughput = ThroughputMonitor(settings.throughput)
        self._attempt = 0
        self._world = self._world_before = 0
        """Ranks of this attempt, and of the one whose past is known; 0: not known."""
        self._load = 0.0
        self._expected_until = 0

    def restart(self, attempt: int) -> None:
        """A new attempt. A second call for the same one changes nothing."""
        if attempt <= self._attempt:
            return
        is_first = not self._attempt
        self._attempt, self._expected_until = attempt, 0
        for monitor in (self._data, self._saves, self._starts, self._throughput):
            monitor.restart()
        self._world_before, self._world = self._world, 0
        if not self._world_before and not is_first:  # before the first, only `known_start` is known
            self._forget_all()

    def has_ranks(self, world: int) -> None:
        """The present attempt has that many ranks; 0: not known. Later calls change nothing."""
        if world and not self._world:
            self._world = world
            if self._world_before not in {0, world}:
                self._forget_all()

    def _forget_all(self) -> None:
        for monitor in (self._data, self._saves, self._starts, self._throughput):
            monitor.forget()

    def observe(self, sample: Sample, *, straggles: bool) -> list[Finding]:
        """Take a report of the rank that speaks for the run.

        Args:
            sample: The report.
            straggles: A rank is known to keep the others waiting.
        """
        self._starts.stepped()
        self.expect(sample.expected_until)
        if sample.step <= self._expected_until:
            self._data.forget()
            self._throughput.forget()
            return self._saves.observe(sample)
        explained = straggles or self._data.explains
        found = self._throughput.observe(sample, explained=explained)
        load = self._throughput.load
        if abs(load - self._load) > _OTHER_LOAD * max(load, self._load):
            self._load = load
            self._data.forget()
        return found + self._saves.observe(sample)

    def expect(self, until_step: int) -> None:
        """The script announced a change that lasts to a step."""
        self._expected_until = max(self._expected_until, until_step)

    def saved(self, shards: Sequence[SavedShard]) -> list[Finding]:
        """Take shards of the directory tier."""
        return self._saves.saved([each for each in shards if each.attempt == self._attempt])

    def tick(self, now: float, beats: Sequence[Beat], *, world: int, wall: float) -> list[Finding]:
        """Look at the newest beats of all ranks in contact; `world`: ranks of the attempt."""
        self.has_ranks(world)
        current = [beat for beat in beats if beat.attempt == self._attempt]
        self._throughput.pause(current)
        found = self._starts.tick(self._attempt, now, current, wall)
        return found + self._data.tick(self._attempt, now, current, wall)
