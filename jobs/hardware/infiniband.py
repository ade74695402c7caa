"""InfiniBand and RoCE ports: their state, their rate, and their counters, from sysfs.

The counters are those of Linux (Documentation/ABI/stable/sysfs-class-infiniband) and, below
`hw_counters`, those of mlx5. A counter of 32 bits or fewer stops at its maximum.
"""

from __future__ import annotations

from jobs.hardware.port import Readings, Seen
from jobs.hardware.tree import Tree

CLASS = "sys/class/infiniband"
COUNTERS = (
    "link_downed",
    "link_error_recovery",
    "symbol_error",
    "port_rcv_errors",
    "port_rcv_remote_physical_errors",
    "port_xmit_discards",
    "port_xmit_wait",
    "local_link_integrity_errors",
    "excessive_buffer_overrun_errors",
    "VL15_dropped",
)
HARDWARE_COUNTERS = (
    "out_of_sequence",
    "packet_seq_err",
    "local_ack_timeout_err",
    "rnr_nak_retry_err",
    "implied_nak_seq_err",
    "roce_adp_retrans",
    "roce_slow_restart",
    "np_cnp_sent",
    "rp_cnp_handled",
    "rx_icrc_encapsulated",
)
_WORDS = 4
"""Bytes in a word of `port_rcv_data` and `port_xmit_data`."""
_ACTIVE, _LINK_UP = 4, 5
"""States of a port: `4: ACTIVE`; of its link: `5: LinkUp`."""


class Infiniband:
    """Reads all ports of `/sys/class/infiniband`. Devices are named `mlx5_0/1`: device and port."""

    name = "infiniband"

    def __init__(self, tree: Tree) -> None:
        self._tree = tree

    def read(self, now: float) -> Seen:
        """See the port."""
        found = Readings(self.name, now)
        for device in self._tree.names(CLASS):
            for port in self._tree.names(f"{CLASS}/{device}/ports"):
                self._port(found, f"{device}/{port}", f"{CLASS}/{device}/ports/{port}")
        if not len(found):
            return Seen(absent="no InfiniBand or RoCE device")
        return found.seen()

    def _port(self, found: Readings, device: str, path: str) -> None:
        number = self._tree.number
        state, link = number(f"{path}/state"), number(f"{path}/phys_state")
        found.add(device, "port_active", None if state is None else state == _ACTIVE)
        found.add(device, "link_up", None if link is None else link == _LINK_UP)
        found.add(device, "link_state_code", link)
        found.add(device, "rate_gigabits_per_second", number(f"{path}/rate"))
        for name in COUNTERS:
            found.add(device, f"{name.lower()}_total", number(f"{path}/counters/{name}"))
        for name in HARDWARE_COUNTERS:
            found.add(device, f"{name}_total", number(f"{path}/hw_counters/{name}"))
        for name, file in (("received", "port_rcv_data"), ("sent", "port_xmit_data")):
            found.add(device, f"{name}_bytes", number(f"{path}/counters/{file}", _WORDS))
