"""From the columns of a report to the samples and fingerprints of the monitors."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from jobs.events import RankSamples, Report
from monitors.types import Fingerprint, Sample


def fingerprints_of(report: Report) -> list[Fingerprint]:
    """The fingerprints of a report, as the monitors take them."""
    return [
        Fingerprint(f.rank, f.step, f.batch, f.time, f.world_size, f.parts)
        for f in report.fingerprints
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
        strict=True,
    ):
        step, batch, time, loss, grad_norm, tokens, seconds, blocked, rate, until = row
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
        )
