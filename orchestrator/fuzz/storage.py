"""The directory that checkpoints are saved to, as it really is: which shards lie where."""

from __future__ import annotations

import dataclasses

from babysit.wire import Tier
from jobs.commands import RestoreCandidate
from jobs.shards import ShardFile, ShardReport


@dataclasses.dataclass(slots=True)
class Shard:
    """One rank's part of a checkpoint, with its manifest."""

    attempt: int
    step: int
    world_size: int
    batch: int
    sound: bool = True
    """True if the content is as written."""


class Storage:
    """Shards by directory and rank."""

    def __init__(self) -> None:
        self.shards: dict[str, dict[int, Shard]] = {}
        self.room: int | None = None
        """Shards that still fit; None: any number."""
        self.busy = 0
        """Deletions to come that fail, since somebody holds a file open."""

    def write(self, path: str, rank: int, shard: Shard) -> bool:
        """A rank saves; what lay there is gone. False: there is no room."""
        here = self.shards.get(path, {})
        if self.room is not None and rank not in here:
            if self.room <= 0:
                return False
            self.room -= 1
        self.shards.setdefault(path, {})[rank] = shard
        return True

    def fault(self, path: str, attempt: int, ranks: tuple[int, ...]) -> str:
        """The first fault in some shards of a checkpoint, as an agent finds it; empty: none."""
        here = self.shards.get(path, {})
        for rank in ranks:
            shard = here.get(rank)
            if shard is None:
                return f"rank {rank}: missing"
            if shard.attempt != attempt:
                return f"rank {rank}: written by attempt {shard.attempt}, not {attempt}"
            if not shard.sound:
                return f"rank {rank}: content differs from what was written"
        return ""

    def delete(self, path: str, attempt: int) -> bool:
        """Remove a checkpoint; refused where a later attempt has saved there since."""
        if any(shard.attempt > attempt for shard in self.shards.get(path, {}).values()):
            return False
        gone = self.shards.pop(path, {})
        if self.room is not None:
            self.room += len(gone)
        return True

    def left(self, path: str, attempt: int) -> bool:
        """True if shards of an attempt lie at a path, and none of a later one."""
        attempts = {shard.attempt for shard in self.shards.get(path, {}).values()}
        return attempt in attempts and max(attempts) == attempt

    def whole(self, run: str, attempt: int, above: int) -> tuple[ShardReport, ...]:
        """The shards of an attempt's whole checkpoints after a step, the newest first."""
        found = []
        for path, here in sorted(self.shards.items(), reverse=True):
            first = next(iter(here.values()))
            whole = path == path_of(run, first.step) and len(here) == first.world_size
            alike = {(shard.attempt, shard.world_size) for shard in here.values()}
            if whole and alike == {(attempt, first.world_size)} and first.step > above:
                found += [
                    report_of(here[rank], rank, Tier.DIRECTORY, path) for rank in sorted(here)
                ]
        return tuple(found)

    def refuses(self, candidate: RestoreCandidate) -> str:
        """Why a gang cannot load a candidate from here; empty: it can."""
        return self.fault(candidate.path, candidate.attempt, tuple(range(candidate.world_size)))


def path_of(run: str, step: int) -> str:
    """Where a run saves a step: like the real one, the same place for every attempt."""
    return f"/checkpoints/{run}/step-{step:09d}"


def report_of(shard: Shard, rank: int, tier: Tier, path: str) -> ShardReport:
    """A shard as its agent reports it."""
    return ShardReport(
        attempt=shard.attempt,
        step=shard.step,
        rank=rank,
        world_size=shard.world_size,
        tier=tier,
        path=path,
        batch=shard.batch,
        files=(ShardFile(name="data", bytes=10, blake2b="00" * 16),),
    )
