"""NVML of this machine, by the package nvidia-ml-py. The one place that imports it.

A call that a GPU does not support has no value. A GPU that does not answer is counted as lost, and
NVML is started anew at the next look after any error that is not about one GPU alone.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from typing import Any

from jobs.hardware.nvidia import Gpu, NvmlMissingError, NvmlState, Xid

_MILLI = 1e-3
_LINKS = 18
"""Links of NVLink that a GPU has at most (Hopper and Blackwell: 18)."""
_MOST_EVENTS = 64


def _memory(nvml: Any, gpu: Any) -> Mapping[str, float]:
    info = nvml.nvmlDeviceGetMemoryInfo(gpu)
    return {"memory_used_bytes": info.used, "memory_total_bytes": info.total}


def _ecc(nvml: Any, gpu: Any) -> Mapping[str, float]:
    kinds = {"corrected": nvml.NVML_MEMORY_ERROR_TYPE_CORRECTED}
    kinds["uncorrected"] = nvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED
    found = {}
    for kind, number in kinds.items():
        count = nvml.nvmlDeviceGetTotalEccErrors
        # Volatile: since the driver was loaded. Aggregate: of the GPU's life.
        found[f"ecc_{kind}_total"] = count(gpu, number, nvml.NVML_VOLATILE_ECC)
        found[f"ecc_{kind}_lifetime_total"] = count(gpu, number, nvml.NVML_AGGREGATE_ECC)
    return found


def _rows(nvml: Any, gpu: Any) -> Mapping[str, float]:
    corrected, uncorrected, pending, failed = nvml.nvmlDeviceGetRemappedRows(gpu)
    return {
        "remapped_rows_corrected_total": corrected,
        "remapped_rows_uncorrected_total": uncorrected,
        "row_remap_pending": pending,
        "row_remap_failed": failed,
    }


def _pcie(nvml: Any, gpu: Any) -> Mapping[str, float]:
    return {
        "pcie_width_lanes": nvml.nvmlDeviceGetCurrPcieLinkWidth(gpu),
        "pcie_width_max_lanes": nvml.nvmlDeviceGetMaxPcieLinkWidth(gpu),
        "pcie_generation": nvml.nvmlDeviceGetCurrPcieLinkGeneration(gpu),
        "pcie_generation_max": nvml.nvmlDeviceGetMaxPcieLinkGeneration(gpu),
    }


def _clocks(nvml: Any, gpu: Any) -> Mapping[str, float]:
    new = getattr(nvml, "nvmlDeviceGetCurrentClocksEventReasons", None)
    ask = new or nvml.nvmlDeviceGetCurrentClocksThrottleReasons
    return {"clocks_event_reasons_bits": ask(gpu)}


def _fields(nvml: Any, gpu: Any) -> Mapping[str, float]:
    """Values that NVML has as fields alone; each of them may be unsupported."""
    fields = {
        "memory_temperature_celsius": "NVML_FI_DEV_MEMORY_TEMP",
        "nvlink_crc_flit_errors_total": "NVML_FI_DEV_NVLINK_CRC_FLIT_ERROR_COUNT_TOTAL",
        "nvlink_crc_data_errors_total": "NVML_FI_DEV_NVLINK_CRC_DATA_ERROR_COUNT_TOTAL",
        "nvlink_replay_errors_total": "NVML_FI_DEV_NVLINK_REPLAY_ERROR_COUNT_TOTAL",
        "nvlink_recovery_errors_total": "NVML_FI_DEV_NVLINK_RECOVERY_ERROR_COUNT_TOTAL",
        "recovery_action_code": "NVML_FI_DEV_GET_GPU_RECOVERY_ACTION",
    }
    known = {name: getattr(nvml, field) for name, field in fields.items() if hasattr(nvml, field)}
    values = nvml.nvmlDeviceGetFieldValues(gpu, list(known.values()))
    return {
        name: _of_field(nvml, value)
        for name, value in zip(known, values, strict=True)
        if value.nvmlReturn == nvml.NVML_SUCCESS
    }


def _of_field(nvml: Any, field: Any) -> float:
    """The number in a field, by its type."""
    kinds = {
        nvml.NVML_VALUE_TYPE_DOUBLE: "dVal",
        nvml.NVML_VALUE_TYPE_UNSIGNED_INT: "uiVal",
        nvml.NVML_VALUE_TYPE_UNSIGNED_LONG: "ulVal",
        nvml.NVML_VALUE_TYPE_UNSIGNED_LONG_LONG: "ullVal",
        nvml.NVML_VALUE_TYPE_SIGNED_LONG_LONG: "sllVal",
    }
    return float(getattr(field.value, kinds.get(field.valueType, "ullVal")))


def _nvlinks(nvml: Any, gpu: Any) -> Mapping[str, float]:
    """Links that are up and down; links beyond those of the GPU raise, and are none."""
    states = []
    for link in range(_LINKS):
        with contextlib.suppress(nvml.NVMLError):
            states.append(bool(nvml.nvmlDeviceGetNvLinkState(gpu, link)))
    if not states:
        return {}
    return {"nvlinks_up_count": sum(states), "nvlinks_down_count": len(states) - sum(states)}


CALLS: tuple[Callable[[Any, Any], Mapping[str, float]], ...] = (
    _memory,
    _ecc,
    _rows,
    _pcie,
    _clocks,
    _fields,
    _nvlinks,
    lambda nvml, gpu: {"pcie_replays_total": nvml.nvmlDeviceGetPcieReplayCounter(gpu)},
    lambda nvml, gpu: {
        "temperature_celsius": nvml.nvmlDeviceGetTemperature(gpu, nvml.NVML_TEMPERATURE_GPU)
    },
    lambda nvml, gpu: {"power_watts": nvml.nvmlDeviceGetPowerUsage(gpu) * _MILLI},
    lambda nvml, gpu: {"power_limit_watts": nvml.nvmlDeviceGetEnforcedPowerLimit(gpu) * _MILLI},
    lambda nvml, gpu: {"utilization_percent": nvml.nvmlDeviceGetUtilizationRates(gpu).gpu},
    lambda nvml, gpu: {"sm_clock_megahertz": nvml.nvmlDeviceGetClockInfo(gpu, nvml.NVML_CLOCK_SM)},
    lambda nvml, gpu: {"retired_pages_pending": nvml.nvmlDeviceGetRetiredPagesPendingStatus(gpu)},
)
"""Questions to each GPU; a call gives readings, or raises where the GPU lacks them."""


class LiveNvml:
    """NVML of this machine."""

    def __init__(self) -> None:
        self._nvml: Any = None
        self._events: Any = None

    def look(self) -> NvmlState:
        """See the protocol of :class:`jobs.hardware.nvidia.NvmlDriver`."""
        nvml = self._started()
        gpus, lost = [], 0
        try:
            for index in range(nvml.nvmlDeviceGetCount()):
                try:
                    gpus.append(self._gpu(nvml, nvml.nvmlDeviceGetHandleByIndex(index)))
                except nvml.NVMLError:
                    lost += 1
            return NvmlState(tuple(gpus), tuple(self._xids(nvml)), lost)
        except nvml.NVMLError as error:
            self.close()
            raise NvmlMissingError(f"NVML fails: {error}; look at the driver") from error

    def close(self) -> None:
        """End NVML; the next look starts it again."""
        nvml, self._nvml, self._events = self._nvml, None, None
        if nvml is not None:
            with contextlib.suppress(nvml.NVMLError):
                nvml.nvmlShutdown()

    def _started(self) -> Any:
        if self._nvml is not None:
            return self._nvml
        try:
            import pynvml as nvml  # noqa: PLC0415 (an optional extra)
        except ImportError as error:
            raise NvmlMissingError(
                "the package nvidia-ml-py is missing: pip install 'babysit[nvidia]'"
            ) from error
        try:
            nvml.nvmlInit()
        except nvml.NVMLError as error:
            raise NvmlMissingError(
                f"NVML does not start: {error}. On the host, install the driver; in a container,"
                " use the runtime class of NVIDIA (libnvidia-ml.so.1 comes with it)"
            ) from error
        self._nvml = nvml
        self._events = self._subscribed(nvml)
        return nvml

    @staticmethod
    def _subscribed(nvml: Any) -> Any:
        """A set of events for the Xids of all GPUs; None: not supported here."""
        with contextlib.suppress(nvml.NVMLError):
            events = nvml.nvmlEventSetCreate()
            for index in range(nvml.nvmlDeviceGetCount()):
                with contextlib.suppress(nvml.NVMLError):
                    handle = nvml.nvmlDeviceGetHandleByIndex(index)
                    nvml.nvmlDeviceRegisterEvents(
                        handle, nvml.nvmlEventTypeXidCriticalError, events
                    )
            return events
        return None

    @staticmethod
    def _gpu(nvml: Any, handle: Any) -> Gpu:
        uuid, bus = nvml.nvmlDeviceGetUUID(handle), nvml.nvmlDeviceGetPciInfo(handle).busId
        values: dict[str, float] = {}
        for call in CALLS:
            try:
                values.update(call(nvml, handle))
            except nvml.NVMLError_GpuIsLost:
                raise
            except (nvml.NVMLError, AttributeError):  # not supported by this GPU or this pynvml
                continue
        return Gpu(_text(uuid), _address(_text(bus)), values)

    def _xids(self, nvml: Any) -> list[Xid]:
        """The Xids since the look before."""
        found: list[Xid] = []
        while self._events is not None and len(found) < _MOST_EVENTS:
            try:
                event = nvml.nvmlEventSetWait_v2(self._events, 0)
                pci = _address(_text(nvml.nvmlDeviceGetPciInfo(event.device).busId))
            except nvml.NVMLError:  # a time-out: there is no event
                break
            found.append(Xid(pci.rpartition(".")[0], int(event.eventData)))
        return found


def _text(value: Any) -> str:
    """A string of NVML, which older bindings give as bytes."""
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


def _address(bus: str) -> str:
    """`0000:3b:00.0` for `00000000:3B:00.0`."""
    domain, _, rest = bus.lower().partition(":")
    return f"{domain[-4:]}:{rest}"
