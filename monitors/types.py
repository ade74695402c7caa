"""The words of the monitors: what goes in (samples, ticks) and what comes out (findings)."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Any, NamedTuple

from pydantic import BaseModel, ConfigDict, Field


class Severity(StrEnum):
    """How much a finding matters to the person on call."""

    INFO = "info"  # on record only
    WARNING = "warning"  # worth a look in the morning
    CRITICAL = "critical"  # the run is losing time now


class FindingKind(StrEnum):
    """The kinds of finding."""

    HANG = "hang"  # no step ends
    SLOW = "slow"  # silent beyond its pace, but it moves or waits for what may come
    NON_FINITE = "non_finite"  # the loss or the gradient norm is NaN or infinite
    LOSS_SPIKE = "loss_spike"  # the loss jumped and stays up
    LOSS_BLIP = "loss_blip"  # the loss jumped and came back by itself, or has time to
    GRAD_NORM_SPIKE = "grad_norm_spike"  # the gradient norm jumped; alone it proves nothing
    STRAGGLER = "straggler"  # one rank, or one node, works longer at each step than the others
    DATA_STALL = "data_stall"  # the run waits for its loader far more than it used to
    CHECKPOINT_STALL = "checkpoint_stall"  # saves take, or block training, far longer than before
    STARTUP_STALL = "startup_stall"  # no first step for far longer than in earlier attempts
    THROUGHPUT_DROP = "throughput_drop"  # steps take longer than the run's own past explains
    CORRUPTION = "corruption"  # replicas that agreed bit for bit hold different values
    REPLAY = "replay"  # steps that were computed again say what was at fault


class Sample(BaseModel):
    """The report of one rank for one step (see :class:`babysit.ring.Record` for units)."""

    model_config = ConfigDict(frozen=True)

    attempt: int
    rank: int
    step: int
    batch: int
    time: float
    """Unix seconds."""
    loss: float | None
    """None: the rank has no loss for the step."""
    grad_norm: float = -1.0
    tokens: float = 0.0
    seconds: float = 0.0
    blocked_seconds: float = 0.0
    learning_rate: float = -1.0
    expected_until: int = 0
    """The script has announced a change that lasts to this step (`run.expect`); 0: none."""
    mfu: float = 0.0
    """Model FLOPs utilisation, where the script reports a metric of this name; 0: it does not."""


class Fingerprint(NamedTuple):
    """Digests of one rank's state after a step (see :class:`jobs.events.RankFingerprint`)."""

    rank: int
    step: int
    batch: int
    time: float
    """Unix seconds."""
    world_size: int
    parts: Mapping[str, str]
    """Digest by part, equal on true replicas."""


class Beat(NamedTuple):
    """The last sign of life of one rank, as its agent saw it.

    Not validated: a run of many thousand ranks makes one of each rank and second.
    """

    attempt: int
    rank: int
    step: int
    phase: str
    """A :class:`babysit.wire.Phase` value."""
    beat: float
    """Unix seconds of the last progress (a report or a change of phase)."""
    alive: bool = True
    moved: bool = True
    """True if the rank has shown progress in this attempt; see `jobs.events.RankBeat`."""
    printed: bool = False
    """True if that was read from its output."""
    parts: tuple[float, ...] = ()
    """Seconds of its process so far, by :class:`babysit.wire.Part`; empty: not measured."""


class Pace(BaseModel):
    """The longest pauses of a run that ended by themselves, in seconds; 0: none was seen.

    Kept with the run, and read by later attempts and by later runs of the same name. Never a
    promise: data, nodes and code may have changed since.
    """

    model_config = ConfigDict(frozen=True)

    start: float = 0.0
    """From the start of an attempt to its first step, or between two of its first steps."""
    pause: float = 0.0
    """Silence in training."""
    evaluation: float = 0.0
    save: float = 0.0
    """The blocking part of a save."""

    def joined(self, other: Pace) -> Pace:
        """The longer of each."""
        mine, others = self.model_dump(), other.model_dump()
        return Pace(**{name: max(mine[name], others[name]) for name in mine})


class Finding(BaseModel):
    """The statement of a monitor. Pure data; the core decides on a remedy."""

    model_config = ConfigDict(frozen=True)

    kind: FindingKind
    severity: Severity
    attempt: int
    rank: int | None = None
    """The suspect rank, where one can be named."""
    onset_step: int
    """First step that was off (for a hang: the last step that ended)."""
    onset_batch: int = 0
    """Batch consumed by the onset step; 0 where batches mean nothing."""
    detected_step: int
    onset_time: float
    """Unix seconds."""
    detected_time: float
    reason: str
    """One sentence a person can read, with the figures."""
    evidence: dict[str, Any] = Field(default_factory=dict)
