"""NVIDIA GPUs as NVML sees them: ECC, remapped rows, NVLink, PCIe, clocks, power, heat, Xids.

The names of readings are those that drivers give (:data:`jobs.hardware.nvml.CALLS`), and what
follows from them: a name for each bit of the clocks-event reasons, and GPUs that are on the PCI bus
but not in NVML. Devices are named by their UUID.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple, Protocol

from jobs.hardware.port import Readings, Seen
from jobs.hardware.tree import Tree
from monitors.hardware.types import LogLine

PCI = "sys/bus/pci/devices"
_VENDOR, _DISPLAY = 0x10DE, 0x03
CLOCKS_REASONS = {
    0x04: "software_power_cap",
    0x08: "hardware_slowdown",
    0x20: "software_thermal_slowdown",
    0x40: "hardware_thermal_slowdown",
    0x80: "hardware_power_brake",
}
"""Clocks-event reasons of NVML that slow a GPU against its owner's will (nvml.h)."""


class Gpu(NamedTuple):
    """One GPU as a driver read it."""

    uuid: str
    pci: str
    """The PCI address: `0000:3b:00.0`."""
    values: Mapping[str, float]
    """By name of the reading; what the GPU does not support is missing."""


class Xid(NamedTuple):
    """An Xid event."""

    pci: str
    code: int


class NvmlState(NamedTuple):
    """The result of one look at all GPUs."""

    gpus: tuple[Gpu, ...] = ()
    xids: tuple[Xid, ...] = ()
    """Xids since the look before."""
    lost: int = 0
    """GPUs that NVML counts, and cannot talk to."""


class NvmlMissingError(OSError):
    """NVML cannot be used here; the message says why, and what to do."""


class NvmlDriver(Protocol):
    """NVML, live or recorded."""

    def look(self) -> NvmlState:
        """All GPUs now.

        Raises:
            NvmlMissingError: There is no NVML, or it fails.
        """


class RecordedNvml:
    """Values in a JSON file: `{"gpus": [{"uuid", "pci", "values"}], "xids": [[pci, 79]]}`."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def look(self) -> NvmlState:
        """See the protocol. The file is read anew each time."""
        told = json.loads(self._path.read_text())
        if "missing" in told:
            raise NvmlMissingError(told["missing"])
        gpus = tuple(Gpu(each["uuid"], each["pci"], each["values"]) for each in told["gpus"])
        xids = tuple(Xid(pci, code) for pci, code in told.get("xids", ()))
        return NvmlState(gpus, xids, told.get("lost", 0))


class Nvidia:
    """Reads the NVIDIA GPUs of a node.

    An Xid is reported as the line that the driver writes into the kernel's log. A reader of
    the kernel's log too sees it twice: :mod:`jobs.hardware.collector` keeps the lines of the log.
    """

    name = "nvml"

    def __init__(self, tree: Tree, driver: NvmlDriver) -> None:
        self._tree, self._driver = tree, driver

    def read(self, now: float) -> Seen:
        """See the port."""
        on_bus = self._on_bus()
        try:
            state = self._driver.look()
        except NvmlMissingError as error:
            if not on_bus and not self._tree.has("proc/driver/nvidia"):
                return Seen(absent="no NVIDIA GPU")
            return Seen(blind=str(error))
        found = Readings(self.name, now)
        found.add("", "gpus_count", len(state.gpus))
        found.add("", "gpus_lost_count", state.lost)
        if on_bus:
            found.add("", "gpus_on_bus_count", len(on_bus))
        for gpu in state.gpus:
            for name, value in gpu.values.items():
                found.add(gpu.uuid, name, value)
            reasons = gpu.values.get("clocks_event_reasons_bits")
            if reasons is not None:
                for bit, name in CLOCKS_REASONS.items():
                    found.add(gpu.uuid, name, bool(int(reasons) & bit))
        lines = tuple(
            LogLine(text=f"NVRM: Xid (PCI:{xid.pci}): {xid.code}, reported by NVML", time=now)
            for xid in state.xids
        )
        return Seen(readings=found.seen().readings, lines=lines)

    def _on_bus(self) -> list[str]:
        """PCI addresses of NVIDIA's display controllers (GPUs; not their audio or NVSwitches)."""
        number = self._tree.number
        return [
            device
            for device in self._tree.names(PCI)
            if number(f"{PCI}/{device}/vendor") == _VENDOR
            and int(number(f"{PCI}/{device}/class") or 0) >> 16 == _DISPLAY
        ]
