"""File systems and disks: what is free, what became read-only, and what SMART says."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from jobs.hardware.port import Readings, Seen
from jobs.hardware.programs import Program
from jobs.hardware.tree import Tree

_LOCAL = {"btrfs", "ext2", "ext3", "ext4", "f2fs", "xfs", "zfs"}
"""File systems of local disks."""
_SHARED = {"beegfs", "ceph", "fuse.s3fs", "gpfs", "lustre", "nfs", "nfs4", "wekafs"}
"""File systems of others: their space counts, but `statvfs` may hang with their server."""
_TMPFS = {"/dev/shm", "/tmp"}  # noqa: S108 (names of mounts, not of files)
_MOST_MOUNTS = 64
_OCTAL = re.compile(r"\\([0-7]{3})")


class Space(NamedTuple):
    """Free and whole space of a file system."""

    free_bytes: float
    total_bytes: float
    free_inodes: float
    total_inodes: float


def space_of(root: Path, mount: str) -> Space:
    """The space of a live file system.

    Raises:
        OSError: It cannot be asked.
    """
    found = os.statvfs(root / mount.lstrip("/"))
    return Space(
        found.f_bavail * found.f_frsize,
        found.f_blocks * found.f_frsize,
        found.f_favail,
        found.f_files,
    )


def recorded_space(path: Path) -> Callable[[Path, str], Space]:
    """The spaces of a recorded tree: JSON, `{"/": [free, total, free inodes, inodes]}`."""
    known: Mapping[str, list[float]] = json.loads(path.read_text())

    def space(_root: Path, mount: str) -> Space:
        if mount not in known:
            raise FileNotFoundError(mount)
        return Space(*known[mount])

    return space


class Disks:
    """Reads the file systems of /proc/self/mountinfo, and the I/O errors of SCSI disks.

    `read_only` is that of the file system, not of a mount of it: a container may see a disk through
    a mount that is read-only on purpose. Some file systems are read-only from the start: what
    counts is the change.

    Args:
        tree: The machine.
        space: How much is free; blocks where a server of NFS does.
    """

    name = "disk"

    def __init__(self, tree: Tree, space: Callable[[Path, str], Space] = space_of) -> None:
        self._tree, self._space = tree, space

    def read(self, now: float) -> Seen:
        """See the port. Devices are named by their mount, and disks by `/dev/sda`."""
        found = Readings(self.name, now)
        for mount, read_only in self._mounts().items():
            found.add(mount, "read_only", read_only)
            try:
                space = self._space(self._tree.root, mount)
            except OSError:
                continue  # unmounted meanwhile, or not ours to see
            found.add(mount, "free_bytes", space.free_bytes)
            found.add(mount, "total_bytes", space.total_bytes)
            if space.total_inodes:
                found.add(mount, "free_inodes", space.free_inodes)
                found.add(mount, "total_inodes", space.total_inodes)
        for disk in self._tree.names("sys/block"):
            errors = self._tree.number(f"sys/block/{disk}/device/ioerr_cnt")
            found.add(f"/dev/{disk}", "input_output_errors_total", errors)
        if not len(found):
            return Seen(blind="/proc/self/mountinfo names no file system of a disk")
        return found.seen()

    def _mounts(self) -> dict[str, bool]:
        """Mounts that count, each file system once; True for one that is read-only."""
        found: dict[str, bool] = {}
        devices: set[str] = set()
        for line in (self._tree.text("proc/self/mountinfo") or "").splitlines():
            mounted, _, rest = line.partition(" - ")
            words, kinds = mounted.split(), rest.split()
            if len(words) < 6 or len(kinds) < 2:
                continue
            device, mount, kind = words[2], _OCTAL.sub(_character, words[4]), kinds[0]
            wanted = kind in _LOCAL | _SHARED or (kind == "tmpfs" and mount in _TMPFS)
            if wanted and device not in devices:
                devices.add(device)
                found[mount] = "ro" in kinds[-1].split(",")
            if len(found) >= _MOST_MOUNTS:
                break
        return found


def _character(escaped: re.Match[str]) -> str:
    return chr(int(escaped[1], 8))


class Smart:
    """Reads what disks say of themselves, by `smartctl --json`.

    Args:
        tree: The machine, for the names of its disks.
        smartctl: Runs it.
    """

    name = "smart"

    def __init__(self, tree: Tree, smartctl: Program) -> None:
        self._tree, self._smartctl = tree, smartctl

    def read(self, now: float) -> Seen:
        """See the port."""
        disks = [name for name in self._tree.names("sys/block") if self._is_disk(name)]
        if not disks:
            return Seen(absent="no disk of SATA, SAS or NVMe")
        if not self._smartctl.there:
            return Seen(blind="smartctl is missing: install smartmontools")
        found, troubles = Readings(self.name, now), []
        for disk in disks:
            # Exit codes of smartctl are bits: 1 and 2 say that the disk could not be asked.
            answer = self._smartctl.run("--json", "--all", f"/dev/{disk}")
            try:
                told = json.loads(answer)
            except ValueError:
                told = {}
            before = len(found)
            _smart(found, f"/dev/{disk}", told if isinstance(told, dict) else {})
            if len(found) == before:
                messages = told.get("smartctl", {}).get("messages", []) if told else []
                words = "; ".join(str(each.get("string", "")) for each in messages)
                troubles.append(f"/dev/{disk}: {words or 'no answer'}")
        return found.seen(blind="; ".join(troubles))

    def _is_disk(self, name: str) -> bool:
        """True for SATA, SAS and NVMe; disks of virtual machines have nothing to say."""
        return name.startswith(("sd", "nvme")) and self._tree.has(f"sys/block/{name}/device")


_NVME_LOG = {
    "media_errors": "media_errors_total",
    "percentage_used": "used_percent",
    "available_spare": "spare_percent",
    "available_spare_threshold": "spare_threshold_percent",
    "num_err_log_entries": "error_log_entries_total",
}
_HOT = 0x02
"""The bit of the critical warning of NVMe for a temperature out of bounds (NVM Express base
specification, SMART log): it ends when the disk cools down, and says nothing of its health."""
_ATA = {
    5: "reallocated_sectors_total",
    187: "uncorrectable_errors_total",
    197: "pending_sectors",
    198: "offline_uncorrectable_sectors",
    199: "link_crc_errors_total",
}
"""Attributes of ATA that go with failing disks, by number."""


def _smart(found: Readings, device: str, told: Mapping[str, Any]) -> None:
    """The readings of one answer of smartctl."""
    passed = told.get("smart_status", {}).get("passed")
    warning = told.get("nvme_smart_health_information_log", {}).get("critical_warning")
    if warning is not None:
        found.add(device, "temperature_warning", bool(warning & _HOT))
        found.add(device, "critical_warning_bits", warning & ~_HOT)
    # smartctl lets an NVMe disk fail for any bit of the warning.
    found.add(device, "health_passed", True if warning == _HOT else passed)
    found.add(device, "temperature_celsius", told.get("temperature", {}).get("current"))
    log = told.get("nvme_smart_health_information_log", {})
    for key, name in _NVME_LOG.items():
        found.add(device, name, log.get(key))
    for row in told.get("ata_smart_attributes", {}).get("table", []):
        if row.get("id") in _ATA:
            found.add(device, _ATA[row["id"]], row.get("raw", {}).get("value"))
    found.add(device, "uncorrected_read_errors_total", _uncorrected(told, "read"))
    found.add(device, "uncorrected_write_errors_total", _uncorrected(told, "write"))


def _uncorrected(told: Mapping[str, Any], way: str) -> float | None:
    value = told.get("scsi_error_counter_log", {}).get(way, {}).get("total_uncorrected_errors")
    return None if value is None else float(value)
