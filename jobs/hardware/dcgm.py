"""Fields of DCGM, by `dcgmi dmon`: what NVML does not have, above all what the GPU's units do.

Tensor cores and NVLink at zero while a collective is under way tell a stall from work. DCGM refuses
a list of fields as a whole if a GPU lacks one of them, so they are asked for in groups.
"""

from __future__ import annotations

from jobs.hardware.port import Readings, Seen
from jobs.hardware.programs import Program
from jobs.hardware.tree import Tree

GROUPS: tuple[dict[int, str], ...] = (
    {
        1002: "sm_active_ratio",
        1004: "tensor_active_ratio",
        1005: "dram_active_ratio",
        1009: "pcie_sent_bytes_per_second",
        1010: "pcie_received_bytes_per_second",
        1011: "nvlink_sent_bytes_per_second",
        1012: "nvlink_received_bytes_per_second",
    },
    {
        230: "xid_code",
        140: "memory_temperature_celsius",
        240: "power_violation_nanoseconds_total",
        241: "thermal_violation_nanoseconds_total",
    },
)
"""Numbers of fields (dcgm_fields.h), with the names of the readings."""


class Dcgm:
    """Reads fields of DCGM. Devices are named as DCGM does: `GPU 0`."""

    name = "dcgm"

    def __init__(self, tree: Tree, dcgmi: Program) -> None:
        self._tree, self._dcgmi = tree, dcgmi

    def read(self, now: float) -> Seen:
        """See the port."""
        if not self._dcgmi.there:
            if not self._tree.has("proc/driver/nvidia"):
                return Seen(absent="no NVIDIA driver")
            return Seen(blind="dcgmi is missing: install DCGM (NVML is read without it)")
        found, silent = Readings(self.name, now), []
        for group in GROUPS:
            fields = ",".join(map(str, group))
            answer = self._dcgmi.run("dmon", "-e", fields, "-c", "1")
            before = len(found)
            self._take(found, answer, list(group.values()))
            if len(found) == before:
                silent.append(fields)
        fields = " and ".join(silent)
        told = f"dcgmi dmon has no values for the fields {fields}: is nv-hostengine up?"
        return found.seen(blind=told if silent else "")

    @staticmethod
    def _take(found: Readings, answer: str, names: list[str]) -> None:
        """The readings of a table: `GPU 0  0.123  N/A …`, a column for each field."""
        for line in answer.splitlines():
            words = line.split()
            if len(words) != len(names) + 2 or words[0] != "GPU":
                continue
            for name, word in zip(names, words[2:], strict=True):
                found.add(f"GPU {words[1]}", name, _number(word))


def _number(word: str) -> float | None:
    try:
        return float(word)
    except ValueError:  # N/A
        return None
