"""AMD GPUs, from the sysfs of amdgpu, and from amd-smi where it is installed.

Devices are named by their unique id (`/sys/class/drm/card0/device/unique_id`), or by their PCI
address without one.
"""

from __future__ import annotations

import json
import re
from typing import Any

from jobs.hardware.port import Readings, Seen
from jobs.hardware.programs import Program
from jobs.hardware.tree import Tree

CARDS = "sys/class/drm"
_VENDOR = 0x1002
_CARD = re.compile(r"card\d+")
_ERRORS = re.compile(r"^(ue|ce|de):\s*(\d+)", re.MULTILINE)
_KINDS = {"ue": "uncorrected", "ce": "corrected", "de": "deferred"}
_FILES = {
    "gpu_busy_percent": ("utilization_percent", 1.0),
    "mem_info_vram_used": ("memory_used_bytes", 1.0),
    "mem_info_vram_total": ("memory_total_bytes", 1.0),
    "pcie_replay_count": ("pcie_replays_total", 1.0),
    "current_link_width": ("pcie_width_lanes", 1.0),
    "max_link_width": ("pcie_width_max_lanes", 1.0),
    "current_link_speed": ("pcie_speed_gigatransfers_per_second", 1.0),
    "max_link_speed": ("pcie_speed_max_gigatransfers_per_second", 1.0),
}
"""File of the device, reading, and what its number is multiplied by."""
_POWER = ("power1_average", "power1_input")
_SMI = {
    "total_correctable_count": "ecc_corrected_total",
    "total_uncorrectable_count": "ecc_uncorrected_total",
    "total_deferred_count": "ecc_deferred_total",
}
"""Values of `amd-smi metric --ecc`, where sysfs has none."""


class Amd:
    """Reads the AMD GPUs of a node."""

    name = "amd"

    def __init__(self, tree: Tree, amd_smi: Program) -> None:
        self._tree, self._amd_smi = tree, amd_smi

    def read(self, now: float) -> Seen:
        """See the port."""
        found = Readings(self.name, now)
        cards = [
            f"{CARDS}/{card}/device"
            for card in self._tree.names(CARDS)
            if _CARD.fullmatch(card)
            and self._tree.number(f"{CARDS}/{card}/device/vendor") == _VENDOR
        ]
        if not cards:
            return Seen(absent="no AMD GPU")
        for path in cards:
            self._card(found, path)
        found.add("", "gpus_count", len(cards))
        if any(self._tree.names(f"{path}/ras") for path in cards):
            return found.seen()
        if not self._amd_smi.there:
            return found.seen(
                blind="no RAS counters in sysfs, and amd-smi is missing: errors of memory are not"
                " counted. Install amd-smi"
            )
        return found.seen(blind=self._ask(found))

    def _card(self, found: Readings, path: str) -> None:
        """The readings of one card."""
        address = self._tree.target(path)
        device = self._tree.text(f"{path}/unique_id") or address or path.split("/")[-2]
        for file, (name, scale) in _FILES.items():
            found.add(device, name, self._tree.number(f"{path}/{file}", scale))
        for sensor in self._tree.names(f"{path}/hwmon"):
            self._sensor(found, device, f"{path}/hwmon/{sensor}")
        totals: dict[str, float] = {}
        for file in self._tree.names(f"{path}/ras"):
            if file.endswith("_err_count"):
                for kind, count in _ERRORS.findall(self._tree.text(f"{path}/ras/{file}") or ""):
                    block = f"ras_{file.removesuffix('_err_count')}_{_KINDS[kind]}_total"
                    found.add(device, block, float(count))
                    name = f"ecc_{_KINDS[kind]}_total"
                    totals[name] = totals.get(name, 0.0) + float(count)
        for name, total in totals.items():
            found.add(device, name, total)
        bad = self._tree.text(f"{path}/ras/gpu_vram_bad_pages")
        if bad is not None:
            found.add(device, "retired_pages_total", len(bad.splitlines()))

    def _sensor(self, found: Readings, device: str, path: str) -> None:
        """Temperatures (thousandths of a degree) and power (millionths of a watt) of hwmon."""
        for file in self._tree.names(path):
            if re.fullmatch(r"temp\d+_input", file):
                label = self._tree.text(f"{path}/{file.replace('_input', '_label')}") or "edge"
                prefix = "" if label == "edge" else {"mem": "memory_"}.get(label, f"{label}_")
                value = self._tree.number(f"{path}/{file}", 1e-3)
                found.add(device, f"{prefix}temperature_celsius", value)
        power = [self._tree.number(f"{path}/{file}", 1e-6) for file in _POWER]
        found.add(device, "power_watts", next((each for each in power if each is not None), None))
        found.add(device, "power_limit_watts", self._tree.number(f"{path}/power1_cap", 1e-6))

    def _ask(self, found: Readings) -> str:
        """Add the error counts of amd-smi, under its own numbers; why there are none, or empty."""
        try:
            told = json.loads(self._amd_smi.run("metric", "--ecc", "--json"))
        except ValueError:
            return "amd-smi metric --ecc --json gives no JSON: look at the driver"
        rows = told.get("gpu_data", []) if isinstance(told, dict) else told
        before = len(found)
        for row in rows:
            for key, reading in _SMI.items():
                found.add(f"GPU {row.get('gpu')}", reading, _value(row.get("ecc", {}).get(key)))
        return "" if len(found) > before else "amd-smi counts no errors of memory: has it ECC?"


def _value(told: Any) -> float | None:
    """A number of amd-smi, which is bare, or `{"value": 1, "unit": "…"}`, or `N/A`."""
    value = told.get("value") if isinstance(told, dict) else told
    return float(value) if isinstance(value, int | float) else None
