"""The words of the hardware monitors: what a node reports, and what is found in it."""

from __future__ import annotations

from enum import StrEnum

from pydantic import BaseModel, ConfigDict, Field

from monitors.failures import FailureClass
from monitors.types import Severity

REBOOT = "reboot"
"""The rule of the finding that a machine was started anew; its faults of before may be over."""


class NodeAction(StrEnum):
    """Deeds that a rule may ask for, the mildest first."""

    RECORD = "record"  # on record only
    PAGE = "page"  # a person must look; nothing is done to the node
    DRAIN_AFTER_JOB = "drain_after_job"  # no new work; what runs there runs on
    DRAIN_NOW = "drain_now"  # its runs save and leave
    RESET = "reset"  # drained, then the device is reset
    REBOOT = "reboot"  # drained, then the machine is started anew
    NEVER_USE = "never_use"  # drained, and only an operator takes it back


class Reading(BaseModel):
    """One number that a source read from a device of a node."""

    model_config = ConfigDict(frozen=True)

    source: str
    """`nvml`, `dcgm`, `infiniband`, `amd`, `disk`, `memory`, `clock` …"""
    device: str
    """The device in the source's own words: a GPU's UUID, `mlx5_0/1`, `/dev/nvme0n1`; empty: the
    node itself."""
    name: str
    """The quantity, with its unit as the last word: `temperature_celsius`,
    `ecc_uncorrected_total`."""
    value: float
    time: float
    """Unix seconds on the node's clock."""


class LogLine(BaseModel):
    """One line of the kernel's log, without its prefix."""

    model_config = ConfigDict(frozen=True)

    text: str
    time: float
    """Unix seconds on the node's clock, from the line's own stamp."""


class NodeReport(BaseModel):
    """All that the sources of a node have seen since its report before."""

    model_config = ConfigDict(frozen=True)

    node: str
    time: float
    """Unix seconds on the node's clock."""
    boot: str = ""
    """Id of this start of the machine; counters begin anew with another one."""
    readings: tuple[Reading, ...] = ()
    lines: tuple[LogLine, ...] = ()
    blind: dict[str, str] = Field(default_factory=dict)
    """Source → why it sees nothing: what is missing, and what to do about it."""


class NodeFinding(BaseModel):
    """The statement of a hardware monitor about a node. Pure data; the core decides."""

    model_config = ConfigDict(frozen=True)

    node: str
    rule: str
    """The row of the catalogue or the name of the detector: `xid-79`, `link-flap`."""
    severity: Severity
    action: NodeAction
    """As the catalogue asks."""
    shadow: bool = False
    """True if the action is recorded as what would have been done."""
    device: str = ""
    reason: str
    """One sentence a person can read, with the figures and the machine's own words."""
    time: float
    """Unix seconds of what was seen, on the node's clock."""
    evidence: tuple[str, ...] = ()
    """The lines and readings behind it, the newest last."""
    failure_class: FailureClass = FailureClass.GPU_HARDWARE
    """The class of failure of a run whose end the finding explains."""
    runs: int = 1
    """Different runs that must have met the finding on the same device before the action; fewer:
    it is only recorded."""
    window_seconds: float = 86400.0
    """s within which the runs must have met it."""
    pid: int | None = None
    """The process that the kernel names; None: it names none."""
    over: bool = False
    """True: what was found before is over, by the same readings. Nothing is asked for."""
    boot: str = ""
    """Id of the start of the machine in which it was seen."""
