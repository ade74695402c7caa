"""Shards of checkpoints as agents report them: one by one, and in columns."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from pydantic import BaseModel, ConfigDict

from babysit.wire import Tier


class ShardFile(BaseModel):
    """One file of a shard."""

    model_config = ConfigDict(frozen=True)

    name: str
    bytes: int
    blake2b: str
    """Hex digest, 16 bytes."""


class ShardReport(BaseModel):
    """One rank's part of a checkpoint, written and hashed."""

    model_config = ConfigDict(frozen=True)

    attempt: int
    """The attempt that wrote it. A later attempt may write the same step to the same path."""
    step: int
    rank: int
    world_size: int
    tier: Tier
    path: str
    """The checkpoint's directory (not the rank's)."""
    batch: int
    """Batches drawn so far; the next step draws batch + 1."""
    files: tuple[ShardFile, ...]
    copy_seconds: float = 0.0
    write_seconds: float = 0.0
    run: str = ""
    """The run that wrote it; empty: written by a version that did not record it."""


class Shards(BaseModel):
    """Shards of one checkpoint in columns of equal length: the ShardReports of many ranks."""

    model_config = ConfigDict(frozen=True)

    attempt: int
    step: int
    world_size: int
    tier: Tier
    path: str
    batch: int
    ranks: tuple[int, ...]
    workers: tuple[str, ...]
    """The worker that wrote, or stores, each shard."""
    sizes: tuple[int, ...]
    """Bytes of each shard."""
    files: tuple[tuple[ShardFile, ...], ...]
    copy_seconds: tuple[float, ...]
    write_seconds: tuple[float, ...]

    @classmethod
    def of(cls, worker: str, *reports: ShardReport) -> Shards:
        """The reports of one worker about one checkpoint, as columns.

        Raises:
            IndexError: There are no reports.
        """
        first = reports[0]
        return cls(
            **{name: getattr(first, name) for name in _OF_THE_CHECKPOINT},
            ranks=tuple(report.rank for report in reports),
            workers=(worker,) * len(reports),
            sizes=tuple(sum(file.bytes for file in report.files) for report in reports),
            files=tuple(report.files for report in reports),
            copy_seconds=tuple(report.copy_seconds for report in reports),
            write_seconds=tuple(report.write_seconds for report in reports),
        )

    def reports(self) -> Iterator[ShardReport]:
        """Yield the shards one by one, for the table of shards."""
        shared = {name: getattr(self, name) for name in _OF_THE_CHECKPOINT}
        columns = zip(self.ranks, self.files, self.copy_seconds, self.write_seconds, strict=True)
        for rank, files, copied, wrote in columns:
            yield ShardReport(
                **shared, rank=rank, files=files, copy_seconds=copied, write_seconds=wrote
            )

    def kept(self, places: Sequence[int]) -> Shards:
        """The shards at these indices of the columns."""
        columns = {
            name: tuple(getattr(self, name)[place] for place in places) for name in _OF_EACH_PART
        }
        return self.model_copy(update=columns)


_OF_THE_CHECKPOINT = ("attempt", "step", "world_size", "tier", "path", "batch")
_OF_EACH_PART = ("ranks", "workers", "sizes", "files", "copy_seconds", "write_seconds")
