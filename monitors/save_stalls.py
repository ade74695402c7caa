"""Checkpoint stalls: saves take far longer than those before, or block the steps for longer.

The design: two times of a save are watched, each against its own past: how long training waited for
it (the reports of the rank that speaks for the run), and how long its slowest rank took to
copy and write its shard (the shards of the directory tier). A stall is what lasts for some saves in
a row: storage has its hiccups, and saves to memory and to the directory take different times.

Limits: only saves that `run.checkpoint` makes are measured. What shards took is not stored, so a
new server learns it anew.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from pydantic import BaseModel, ConfigDict, Field

from monitors.own_past import Change, Episode, OwnPast, Reading, usual
from monitors.slowdown_findings import begun, in_words, over
from monitors.types import Finding, FindingKind, Sample

_FEWEST = 5
"""Saves of the past that must be known."""
_KIND = FindingKind.CHECKPOINT_STALL


class SavedShard(NamedTuple):
    """One rank's shard of a checkpoint, written."""

    attempt: int
    step: int
    rank: int
    world_size: int
    time: float
    """Unix seconds at which it was heard of."""
    seconds: float
    """For the copy out of the device's memory, and for the write."""
    bytes: int


class CheckpointStallSettings(BaseModel):
    """Settings of the search for checkpoint stalls."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    factor: float = Field(default=3.0, gt=1)
    """Time of a save as a multiple of the usual one. Ours: storage that many jobs share doubles its
    times now and then."""
    seconds: float = Field(default=5.0, ge=0)
    """Seconds by which a save must be longer. Ours: less is not worth an alert."""
    saves: int = Field(default=3, ge=1)
    """Saves in a row that must be longer. Ours: a hiccup, or a first save, does not count."""


class _Times:
    """One time of each save: seconds that it blocked, or seconds that it took to write."""

    def __init__(self, settings: CheckpointStallSettings) -> None:
        self._settings = settings
        self.past = OwnPast()
        self.episode = Episode(self.past, settings.saves)
        self.before = 0.0
        """Usual seconds of a save before the stall."""

    def take(self, save: Reading) -> Change | None:
        """Take a save; its `value` is in seconds, its `load` in bytes."""
        s = self._settings
        if save.value <= s.seconds and not self.episode.active:  # as nearly always: cheap
            return self.episode.take(save, slow=False)
        past = self.past.like(save.load)
        if len(past) < _FEWEST:
            return self.episode.take(save, slow=None)
        before = usual(each.value for each in past)
        limit = max(s.factor * before.high, before.high + s.seconds)
        if not self.episode.active:
            self.before = before.median
        return self.episode.take(
            save,
            slow=save.value > limit,
            calm=save.value <= (before.high + limit) / 2,
            lost=save.value - before.median,
        )


class CheckpointStallMonitor:
    """Watches the saves of one run."""

    def __init__(self, settings: CheckpointStallSettings | None = None) -> None:
        settings = settings or CheckpointStallSettings()
        self._blocked, self._written = _Times(settings), _Times(settings)
        self._shards: dict[int, SavedShard] = {}
        """The shards of the newest save, by rank."""
        self._judged = 0
        """The newest step whose save was judged."""
        self._last_blocked = self._apart = self._newest = 0.0
        """Unix seconds of the newest save that blocked, seconds since the one before, and how long
        it blocked."""

    def restart(self) -> None:
        """A new attempt: saves begin anew."""
        self._shards.clear()
        self._judged, self._last_blocked, self._apart = 0, 0.0, 0.0
        self._blocked.episode.forget()
        self._written.episode.forget()

    def forget(self) -> None:
        """Another world size: saves have another size."""
        self._blocked.past.clear()
        self._written.past.clear()

    def observe(self, sample: Sample) -> list[Finding]:
        """Take a report of the rank that speaks for the run."""
        seconds = sample.blocked_seconds
        if not 0 < seconds < float("inf"):
            return []
        self._apart = sample.time - self._last_blocked if self._last_blocked else 0.0
        self._last_blocked, self._newest = sample.time, seconds
        save = Reading(seconds, 0.0, sample.step, sample.step, sample.time - seconds, sample.time)
        change = self._blocked.take(save)
        if change is Change.BEGUN and not self._written.episode.active:
            before = self._blocked.before
            return [
                begun(
                    _KIND,
                    sample.attempt,
                    (self._blocked.episode.first, save),
                    f"a save blocks training for {in_words(seconds)}, against {in_words(before)}"
                    " before",
                    self._cost(seconds),
                    blocked_seconds=round(seconds, 3),
                    usual_blocked_seconds=round(before, 3),
                )
            ]
        if change is Change.OVER and not self._written.episode.active:
            seen = f"a save blocks training for {in_words(seconds)} again"
            return [over(_KIND, sample.attempt, save, seen, self._blocked.episode.lost)]
        return []

    def _cost(self, seconds: float) -> float:
        """Seconds an hour that saves block beyond the usual."""
        return 3600.0 * (seconds - self._blocked.before) / max(self._apart, seconds)

    def saved(self, shards: Sequence[SavedShard]) -> list[Finding]:
        """Take shards of the directory tier, each rank's in order of steps."""
        found: list[Finding] = []
        for shard in shards:
            newest = next(iter(self._shards.values()), None)
            if shard.step <= self._judged:
                continue
            if newest is not None and shard.step > newest.step:
                found += self._judge()
            if newest is None or shard.step >= newest.step:
                self._shards[shard.rank] = shard
            if len(self._shards) >= shard.world_size:
                found += self._judge()
        return found

    def _judge(self) -> list[Finding]:
        """Judge the save that is whole, or that a later one follows, by its slowest rank."""
        if not self._shards:
            return []
        slowest = max(self._shards.values(), key=lambda each: each.seconds)
        size = float(max(each.bytes for each in self._shards.values()))
        self._judged = slowest.step
        self._shards.clear()
        seconds, step, attempt = slowest.seconds, slowest.step, slowest.attempt
        save = Reading(seconds, size, step, step, slowest.time - seconds, slowest.time)
        change = self._written.take(save)
        if change is Change.BEGUN and not self._blocked.episode.active:
            before = self._written.before
            seen = (
                f"a save takes {in_words(seconds)} until it is on disk, against {in_words(before)}"
                f" before; a crash meanwhile loses {seconds - before:.0f} s more"
            )
            cost = None
            if self._blocked.episode.is_suspected:
                seen += f"; the newest one blocked training for {in_words(self._newest)}"
                cost = self._cost(self._newest)
            return [
                begun(
                    _KIND,
                    attempt,
                    (self._written.episode.first, save),
                    seen,
                    cost,
                    rank=slowest.rank,
                    save_seconds=round(seconds, 3),
                    usual_save_seconds=round(before, 3),
                )
            ]
        if change is Change.OVER and not self._blocked.episode.active:
            seen = f"a save takes {in_words(seconds)} again"
            return [over(_KIND, attempt, save, seen, None)]
        return []
