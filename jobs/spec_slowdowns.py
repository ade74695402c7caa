"""Slowdowns of a whole run in the run spec: when they are found, and whether people hear of them.

The sources of the defaults are beside the settings of the monitors (:mod:`monitors.slowdowns`).
"""

from __future__ import annotations

from pydantic import Field

from jobs.spec_types import MOST, MOST_STEPS, Model, Seconds
from monitors.data_stalls import DataStallSettings
from monitors.save_stalls import CheckpointStallSettings
from monitors.slowdowns import SlowdownSettings
from monitors.start_stalls import StartupStallSettings
from monitors.throughput import ThroughputSettings

_SHADOW = Field(default=False, description="Nobody is alerted: the incident says what would be.")
_SLOWER = "Time of %s as a multiple of the usual one, above which it counts as a stall."


class DataStall(Model):
    """The search for stalls of the loader. It is recorded and alerted; nothing is restarted."""

    shadow: bool = _SHADOW
    share: float = Field(
        default=0.2, gt=0, le=0.95, description="Share of a step lost to waiting, beyond the usual."
    )
    factor: float = Field(default=2.0, gt=1, le=MOST, description=_SLOWER % "the wait for a batch")
    steps: int = Field(default=64, ge=4, le=MOST_STEPS, description="Steps over which it lasts.")
    after: Seconds = Field(default=240.0, description="Time over which it lasts.")


class CheckpointStall(Model):
    """The search for saves that got slow. It is recorded and alerted; nothing is restarted."""

    shadow: bool = _SHADOW
    factor: float = Field(default=3.0, gt=1, le=MOST, description=_SLOWER % "a save")
    longer: Seconds = Field(default=5.0, description="Time by which a save must be longer.")
    saves: int = Field(default=3, ge=1, le=MOST, description="Saves in a row that are longer.")


class StartupStall(Model):
    """The search for slow starts. It is recorded and alerted; nothing is restarted."""

    shadow: bool = _SHADOW
    factor: float = Field(
        default=3.0,
        gt=1,
        le=MOST,
        description="Time to the first step as a multiple of the longest earlier start.",
    )
    longer: Seconds = Field(default=120.0, description="Time by which a start must be longer.")


class ThroughputDrop(Model):
    """The search for slow steps of the whole run. It is recorded and alerted, nothing else."""

    shadow: bool = _SHADOW
    drop: float = Field(
        default=0.2, gt=0, le=0.95, description="Share of the usual throughput that is lost."
    )
    steps: int = Field(default=96, ge=6, le=MOST_STEPS, description="Reports over which it lasts.")
    after: Seconds = Field(default=360.0, description="Time over which it lasts.")


def slowdown_settings(
    data: DataStall, checkpoint: CheckpointStall, startup: StartupStall, drop: ThroughputDrop
) -> SlowdownSettings:
    """The settings of the monitors."""
    return SlowdownSettings(
        data=DataStallSettings(
            share=data.share, factor=data.factor, steps=data.steps, after_seconds=data.after
        ),
        checkpoint=CheckpointStallSettings(
            factor=checkpoint.factor, seconds=checkpoint.longer, saves=checkpoint.saves
        ),
        startup=StartupStallSettings(factor=startup.factor, seconds=startup.longer),
        throughput=ThroughputSettings(drop=drop.drop, steps=drop.steps, after_seconds=drop.after),
    )
