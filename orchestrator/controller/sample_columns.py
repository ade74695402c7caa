"""From a report to the samples, fingerprints and saves that the monitors take."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from babysit.wire import Tier
from jobs.events import RankSamples, Report, ShardWritten
from monitors.save_stalls import SavedShard
from monitors.types import Fingerprint, Sample


def fingerprints_of(report: Report) -> list[Fingerprint]:
    """The fingerprints of a report, as the monitors take them."""
    return [
        Fingerprint(f.rank, f.step, f.batch, f.time, f.world_size, f.parts)
        for f in report.fingerprints
    ]


def shards_of(report: Report) -> list[SavedShard]:
    """The shards of the directory tier that a report tells of."""
    return [
        SavedShard(
            attempt=shard.attempt,
            step=shard.step,
            rank=shard.rank,
            world_size=shard.world_size,
            time=event.at.timestamp(),
            seconds=shard.copy_seconds + shard.write_seconds,
            bytes=sum(file.bytes for file in shard.files),
        )
        for event in report.events
        if isinstance(event, ShardWritten) and (shard := event.shard).tier is Tier.DIRECTORY
    ]


def sort_samples(attempt: int, ranks: Sequence[RankSamples]) -> list[Sample]:
    """The samples of several ranks, by step, then by rank."""
    samples = [sample for columns in ranks for sample in unpack(attempt, columns)]
    return sorted(samples, key=lambda sample: (sample.step, sample.rank))


def unpack(attempt: int, columns: RankSamples) -> Iterator[Sample]:
    """One sample for each row of the columns; not validated again."""
    for row in zip(
        columns.step,
        columns.batch,
        columns.time,
        columns.loss,
        columns.grad_norm,
        columns.tokens,
        columns.seconds,
        columns.blocked_seconds,
        columns.learning_rate,
        columns.expected_until or [0] * len(columns.step),
        _mfu(columns) or [0.0] * len(columns.step),
        strict=True,
    ):
        step, batch, time, loss, grad_norm, tokens, seconds, blocked, rate, until, mfu = row
        yield Sample.model_construct(
            attempt=attempt,
            rank=columns.rank,
            step=step,
            batch=batch,
            time=time,
            loss=loss,
            grad_norm=grad_norm,
            tokens=tokens,
            seconds=seconds,
            blocked_seconds=blocked,
            learning_rate=rate,
            expected_until=until,
            mfu=mfu if mfu > 0 else 0.0,
        )


def _mfu(columns: RankSamples) -> list[float] | None:
    """Model FLOPs utilisation, where the script reports it as a metric of its own."""
    return next((v for name, v in columns.metrics.items() if name.lower() == "mfu"), None)
