"""Ethernet ports: carrier, flaps and errors, from sysfs (Documentation/ABI: sysfs-class-net).

Only interfaces with a device below them count: bridges, tunnels and the ends of containers come and
go with the work.
"""

from __future__ import annotations

from jobs.hardware.port import Readings, Seen
from jobs.hardware.tree import Tree

CLASS = "sys/class/net"
_STATISTICS = (
    "rx_errors",
    "tx_errors",
    "rx_crc_errors",
    "rx_dropped",
    "tx_dropped",
    "rx_missed_errors",
    "tx_carrier_errors",
)


class Network:
    """Reads all interfaces of `/sys/class/net` that are hardware."""

    name = "network"

    def __init__(self, tree: Tree) -> None:
        self._tree = tree

    def read(self, now: float) -> Seen:
        """See the port."""
        found = Readings(self.name, now)
        for device in self._tree.names(CLASS):
            if self._tree.has(f"{CLASS}/{device}/device"):
                self._interface(found, device, f"{CLASS}/{device}")
        if not len(found):
            return Seen(absent="no network interface with a device of its own")
        return found.seen()

    def _interface(self, found: Readings, device: str, path: str) -> None:
        number = self._tree.number
        # An interface that is administratively down answers to `carrier` with EINVAL.
        found.add(device, "link_up", number(f"{path}/carrier"))
        found.add(device, "carrier_changes_total", number(f"{path}/carrier_changes"))
        speed = number(f"{path}/speed", 1e-3)
        if speed is not None and speed > 0:
            found.add(device, "rate_gigabits_per_second", speed)
        for name in _STATISTICS:
            found.add(device, f"{name}_total", number(f"{path}/statistics/{name}"))
