"""PCIe links of GPUs, network adapters and NVMe disks: width, speed and errors, from sysfs.

A link that trained narrower or slower than its device can is half a node; errors that the link
corrects (AER) come before those that it does not. GPUs lower their speed while they are idle: only
`width` says something about an idle one.
"""

from __future__ import annotations

from jobs.hardware.port import Readings, Seen
from jobs.hardware.tree import Tree

DEVICES = "sys/bus/pci/devices"
_CLASSES = {0x02: "network", 0x03: "display", 0x12: "accelerator"}
"""Base classes of PCI whose links are read; of 0x01 (storage), only NVMe."""
_NVME = 0x0108
_AER = {
    "aer_dev_correctable": "TOTAL_ERR_COR",
    "aer_dev_nonfatal": "TOTAL_ERR_NONFATAL",
    "aer_dev_fatal": "TOTAL_ERR_FATAL",
}


class Pci:
    """Reads the links of devices that a training node needs. Devices are named by their address."""

    name = "pci"

    def __init__(self, tree: Tree) -> None:
        self._tree = tree

    def read(self, now: float) -> Seen:
        """See the port."""
        found = Readings(self.name, now)
        for device in self._tree.names(DEVICES):
            kind = int(self._tree.number(f"{DEVICES}/{device}/class") or 0)
            if kind >> 16 in _CLASSES or kind >> 8 == _NVME:
                self._link(found, device, f"{DEVICES}/{device}")
        if not len(found):
            return Seen(absent="no PCIe link of a GPU, a network adapter or an NVMe disk")
        return found.seen()

    def _link(self, found: Readings, device: str, path: str) -> None:
        number = self._tree.number
        if not (most := number(f"{path}/max_link_width")):
            return  # a device of a virtual machine has no link
        found.add(device, "link_width_lanes", number(f"{path}/current_link_width"))
        found.add(device, "link_width_max_lanes", most)
        speed, fastest = f"{path}/current_link_speed", f"{path}/max_link_speed"
        found.add(device, "link_speed_gigatransfers_per_second", number(speed))
        found.add(device, "link_speed_max_gigatransfers_per_second", number(fastest))
        for file, total in _AER.items():
            words = (self._tree.text(f"{path}/{file}") or "").split()
            if total in words[:-1]:
                count = float(words[words.index(total) + 1])
                found.add(device, f"{file.removeprefix('aer_dev_')}_errors_total", count)
