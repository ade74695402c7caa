"""Memory: how much is left, OOM kills, and the errors that EDAC counts."""

from __future__ import annotations

from jobs.hardware.port import Readings, Seen
from jobs.hardware.tree import Tree

CONTROLLERS = "sys/devices/system/edac/mc"
_KIB = 1024
_MEMINFO = {
    "MemTotal": "total_bytes",
    "MemAvailable": "available_bytes",
    "SwapFree": "swap_free_bytes",
    "HardwareCorrupted": "hardware_corrupted_bytes",
}


class Memory:
    """Reads /proc/meminfo, and the OOM kills of /proc/vmstat."""

    name = "memory"

    def __init__(self, tree: Tree) -> None:
        self._tree = tree

    def read(self, now: float) -> Seen:
        """See the port."""
        found = Readings(self.name, now)
        for line in (self._tree.text("proc/meminfo") or "").splitlines():
            name, _, rest = line.partition(":")
            if name in _MEMINFO and (words := rest.split()):
                found.add("", _MEMINFO[name], float(words[0]) * _KIB)
        for line in (self._tree.text("proc/vmstat") or "").splitlines():
            if line.startswith("oom_kill "):  # since Linux 4.13
                found.add("", "oom_kills_total", float(line.split()[1]))
        if not len(found):
            return Seen(blind="/proc/meminfo is missing or unreadable")
        return found.seen()


class Edac:
    """Reads the memory controllers of EDAC: errors that ECC corrected, and those that it could not.

    Devices are named `mc0`, and `mc0/dimm3` or by the label that the firmware gives.
    """

    name = "edac"

    def __init__(self, tree: Tree) -> None:
        self._tree = tree

    def read(self, now: float) -> Seen:
        """See the port."""
        found = Readings(self.name, now)
        for controller in self._tree.names(CONTROLLERS):
            path = f"{CONTROLLERS}/{controller}"
            self._counts(found, controller, path, "")
            for slot in self._tree.names(path):
                if slot.startswith(("dimm", "rank")):
                    label = self._tree.text(f"{path}/{slot}/dimm_label")
                    name = label or f"{controller}/{slot}"
                    self._counts(found, name, f"{path}/{slot}", "dimm_")
        if len(found):
            return found.seen()
        if " hypervisor" in (self._tree.text("proc/cpuinfo") or ""):
            return Seen(absent="a virtual machine, whose host counts the errors of memory")
        return Seen(
            blind="no memory controller in /sys/devices/system/edac: load the EDAC driver of this"
            " CPU (amd64_edac, i10nm_edac, skx_edac …), or memory has no ECC"
        )

    def _counts(self, found: Readings, device: str, path: str, prefix: str) -> None:
        number = self._tree.number
        found.add(device, "corrected_errors_total", number(f"{path}/{prefix}ce_count"))
        found.add(device, "uncorrected_errors_total", number(f"{path}/{prefix}ue_count"))
