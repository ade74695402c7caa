"""The parts of samples that the loss monitor keeps, to wind itself back to a resumed step."""

from __future__ import annotations

from typing import NamedTuple

from monitors.types import Sample


class KeptLoss(NamedTuple):
    """The part of a sample that is kept."""

    step: int
    batch: int
    time: float
    loss: float | None
    grad_norm: float
    tokens: float
    learning_rate: float
    expected_until: int
    place: int
    """Losses before it."""

    @classmethod
    def of(cls, sample: Sample, place: int) -> KeptLoss:
        """Keep the part of a sample before which there were `place` losses."""
        return cls(
            sample.step,
            sample.batch,
            sample.time,
            sample.loss,
            sample.grad_norm,
            sample.tokens,
            sample.learning_rate,
            sample.expected_until,
            place,
        )

    def of_attempt(self, attempt: int) -> Sample:
        """The sample again, of a later attempt; its rank is 0 whatever it was."""
        return Sample.model_construct(
            attempt=attempt,
            rank=0,
            step=self.step,
            batch=self.batch,
            time=self.time,
            loss=self.loss,
            grad_norm=self.grad_norm,
            tokens=self.tokens,
            learning_rate=self.learning_rate,
            expected_until=self.expected_until,
        )
