"""Settings of the hardware sources: how often each is read, and what bounds a report."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class SourceSettings(BaseModel):
    """Intervals are seconds; 0 leaves a source out, and it is then neither read nor blind."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kernel_log_seconds: float = Field(default=1.0, ge=0)
    """A kernel fault is known in 2 s elsewhere (`FAILURES.md`, class 7); one look costs 20 µs."""
    nvml_seconds: float = Field(default=10.0, ge=0)
    """A lost GPU is known in 10 s elsewhere (ByteRobust); gpud looks every 60 s."""
    dcgm_seconds: float = Field(default=60.0, ge=0)
    """Each look starts two processes of dcgmi."""
    amd_seconds: float = Field(default=10.0, ge=0)
    """As NVML."""
    infiniband_seconds: float = Field(default=5.0, ge=0)
    """gpud calls a port flapping that was down for 25 s three times: so five looks fit in one."""
    network_seconds: float = Field(default=5.0, ge=0)
    """As InfiniBand. Shorter flaps show in `carrier_changes`."""
    pci_seconds: float = Field(default=60.0, ge=0)
    """Links train at the start, and again after errors; a choice of ours."""
    disk_seconds: float = Field(default=30.0, ge=0)
    """A checkpoint may fill a disk in minutes; a choice of ours."""
    smart_seconds: float = Field(default=3600.0, ge=0)
    """smartd's own default is 30 min; each look wakes the disks."""
    memory_seconds: float = Field(default=10.0, ge=0)
    """A choice of ours."""
    edac_seconds: float = Field(default=60.0, ge=0)
    """The drivers of EDAC look every second, and rates are judged by the hour."""
    clock_seconds: float = Field(default=60.0, ge=0)
    """NTP daemons look every 64 s at their quickest."""
    report_seconds: float = Field(default=10.0, gt=0)
    """Readings are sent together at this interval. Lines of the kernel's log wait for no other."""
    hung_seconds: float = Field(default=60.0, gt=0)
    """A source that does not answer in this time is blind until it does: a driver that hangs."""
    backlog_seconds: float = Field(default=600.0, ge=0)
    """How far back the kernel's log is read the first time; later, the reader goes on where it was.
    Older faults have been seen by somebody, or show again."""
    spool_bytes: int = Field(default=16 * 2**20, ge=2**16)
    """Reports that are kept while no server takes them: about half a day at these intervals. Beyond
    it, readings are dropped; beyond twice as much, lines too."""
