"""Sources over recorded machines: trees of sysfs, values of NVML, words of programs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from jobs.clock import SystemClock
from jobs.hardware import sources
from jobs.hardware.port import NAMES, Seen, Source
from jobs.hardware.settings import SourceSettings

NOW = 1_800_000_000.0
IB = "tree/sys/class/infiniband/mlx5_0/ports/1"
PCI = "tree/sys/bus/pci/devices/0000:3b:00.0"
AMD = "tree/sys/class/drm/card1/device"
MOUNTS = """\
24 1 259:2 / / rw,relatime shared:1 - ext4 /dev/nvme0n1p2 rw,errors=remount-ro
25 1 259:2 /var /var rw - ext4 /dev/nvme0n1p2 rw
31 1 259:3 / /mnt/my\\040data rw,noatime - xfs /dev/nvme1n1 ro,attr2
32 1 259:4 / /etc/hosts ro,relatime - ext4 /dev/nvme2n1 rw
40 1 0:52 / /home rw - nfs4 server:/home rw,vers=4.2
41 1 0:5 / /dev/shm rw - tmpfs tmpfs rw
42 1 0:6 / /run rw - tmpfs tmpfs rw
"""


def machine(root: Path, files: dict[str, Any]) -> dict[str, Source]:
    """A recorded machine of these files, by the names of its sources."""
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content if isinstance(content, str) else json.dumps(content))
    found = sources.recorded(SourceSettings(), root).sources
    return {source.name: source for source in found}


def values(seen: Seen, device: str) -> dict[str, float]:
    return {each.name: each.value for each in seen.readings if each.device == device}


def test_infiniband(tmp_path: Path) -> None:
    files = {
        f"{IB}/state": "1: DOWN\n",
        f"{IB}/phys_state": "3: Disabled\n",
        f"{IB}/rate": "400 Gb/sec (4X NDR)\n",
        f"{IB}/counters/link_downed": "7\n",
        f"{IB}/counters/symbol_error": "12\n",
        f"{IB}/counters/port_rcv_data": "1000\n",
        f"{IB}/hw_counters/out_of_sequence": "3\n",
    }
    seen = machine(tmp_path, files)["infiniband"].read(NOW)
    assert values(seen, "mlx5_0/1") == {
        "port_active": 0,
        "link_up": 0,
        "link_state_code": 3,
        "rate_gigabits_per_second": 400,
        "link_downed_total": 7,
        "symbol_error_total": 12,
        "received_bytes": 4000,
        "out_of_sequence_total": 3,
    }
    (tmp_path / f"{IB}/state").write_text("4: ACTIVE\n")
    (tmp_path / f"{IB}/phys_state").write_text("5: LinkUp\n")
    seen = machine(tmp_path, {})["infiniband"].read(NOW)
    assert values(seen, "mlx5_0/1").items() >= {("port_active", 1), ("link_up", 1)}


def test_links_of_pci_and_of_the_network(tmp_path: Path) -> None:
    net = "tree/sys/class/net"
    files = {
        f"{PCI}/class": "0x030200\n",
        f"{PCI}/current_link_width": "8\n",
        f"{PCI}/max_link_width": "16\n",
        f"{PCI}/current_link_speed": "16.0 GT/s PCIe\n",
        f"{PCI}/max_link_speed": "32.0 GT/s PCIe\n",
        f"{PCI}/aer_dev_correctable": "RxErr 2\nBadTLP 1\nTOTAL_ERR_COR 3\n",
        "tree/sys/bus/pci/devices/0000:00:1f.0/class": "0x060100\n",
        "tree/sys/bus/pci/devices/0000:00:1f.0/max_link_width": "4\n",
        f"{net}/eth0/device/vendor": "0x15b3\n",
        f"{net}/eth0/carrier": "0\n",
        f"{net}/eth0/carrier_changes": "5\n",
        f"{net}/eth0/speed": "-1\n",
        f"{net}/eth0/statistics/rx_crc_errors": "9\n",
        f"{net}/docker0/carrier": "1\n",
    }
    here = machine(tmp_path, files)
    seen = here["pci"].read(NOW)
    assert {each.device for each in seen.readings} == {"0000:3b:00.0"}
    assert values(seen, "0000:3b:00.0") == {
        "link_width_lanes": 8,
        "link_width_max_lanes": 16,
        "link_speed_gigatransfers_per_second": 16,
        "link_speed_max_gigatransfers_per_second": 32,
        "correctable_errors_total": 3,
    }
    seen = here["network"].read(NOW)
    assert {each.device for each in seen.readings} == {"eth0"}
    assert values(seen, "eth0") == {
        "link_up": 0,
        "carrier_changes_total": 5,
        "rx_crc_errors_total": 9,
    }


def test_memory_and_edac(tmp_path: Path) -> None:
    mc = "tree/sys/devices/system/edac/mc/mc0"
    files = {
        "tree/proc/meminfo": "MemTotal: 1024 kB\nMemAvailable: 512 kB\nHardwareCorrupted: 4 kB\n",
        "tree/proc/vmstat": "nr_free_pages 5\noom_kill 2\n",
        f"{mc}/ce_count": "11\n",
        f"{mc}/ue_count": "1\n",
        f"{mc}/dimm0/dimm_ce_count": "11\n",
        f"{mc}/dimm0/dimm_ue_count": "1\n",
        f"{mc}/dimm0/dimm_label": "CPU_SrcID#0_MC#0_Chan#0_DIMM#0\n",
    }
    here = machine(tmp_path, files)
    assert values(here["memory"].read(NOW), "") == {
        "total_bytes": 1024 * 1024,
        "available_bytes": 512 * 1024,
        "hardware_corrupted_bytes": 4096,
        "oom_kills_total": 2,
    }
    seen = here["edac"].read(NOW)
    counted = {"corrected_errors_total": 11, "uncorrected_errors_total": 1}
    assert values(seen, "mc0") == values(seen, "CPU_SrcID#0_MC#0_Chan#0_DIMM#0") == counted


def test_memory_without_edac_is_blind_but_on_a_virtual_machine(tmp_path: Path) -> None:
    cpu = "tree/proc/cpuinfo"
    assert (
        "load the EDAC driver" in machine(tmp_path, {cpu: "flags : fpu vme"})["edac"].read(0).blind
    )
    seen = machine(tmp_path, {cpu: "flags : fpu hypervisor"})["edac"].read(0)
    assert (seen.blind, "virtual machine" in seen.absent) == ("", True)


def test_file_systems_count_once_and_by_what_they_are_not_how_they_are_mounted(
    tmp_path: Path,
) -> None:
    space = {"/": [10, 100, 5, 50], "/mnt/my data": [0, 1, 0, 0], "/dev/shm": [3, 4, 1, 2]}
    files = {"tree/proc/self/mountinfo": MOUNTS, "space.json": space}
    seen = machine(tmp_path, files)["disk"].read(NOW)
    mounts = {each.device for each in seen.readings}
    assert mounts == {"/", "/mnt/my data", "/etc/hosts", "/home", "/dev/shm"}
    assert values(seen, "/") == {
        "read_only": 0,
        "free_bytes": 10,
        "total_bytes": 100,
        "free_inodes": 5,
        "total_inodes": 50,
    }
    assert values(seen, "/mnt/my data")["read_only"] == 1
    assert values(seen, "/etc/hosts")["read_only"] == 0  # a read-only mount of a disk that is not


SMART = {
    "sda": {
        "smart_status": {"passed": False},
        "temperature": {"current": 41},
        "ata_smart_attributes": {
            "table": [{"id": 5, "raw": {"value": 8}}, {"id": 9, "raw": {"value": 100}}]
        },
    },
    "nvme0n1": {
        "smart_status": {"passed": True},
        "nvme_smart_health_information_log": {
            "critical_warning": 4,
            "media_errors": 2,
            "available_spare": 90,
        },
    },
    "sdb": {"smartctl": {"messages": [{"string": "Unknown USB bridge", "severity": "error"}]}},
}


def test_a_disk_that_is_hot_is_not_one_that_fails(tmp_path: Path) -> None:
    told = {
        "smart_status": {"passed": False, "nvme": {"value": 2}},
        "nvme_smart_health_information_log": {"critical_warning": 2},
    }
    words = {
        "programs/smartctl --json --all _dev_nvme0n1": json.dumps(told),
        "tree/sys/block/nvme0n1/device/model": "x",
    }
    seen = machine(tmp_path, words)["smart"].read(NOW)
    assert {each.name: each.value for each in seen.readings} == {
        "temperature_warning": 1,
        "critical_warning_bits": 0,
        "health_passed": 1,
    }


def test_smart(tmp_path: Path) -> None:
    disks = {f"tree/sys/block/{disk}/device/model": "x" for disk in (*SMART, "vda")}
    assert "install smartmontools" in machine(tmp_path, disks)["smart"].read(NOW).blind
    words = {f"programs/smartctl --json --all _dev_{disk}": told for disk, told in SMART.items()}
    seen = machine(tmp_path, words)["smart"].read(NOW)
    assert values(seen, "/dev/sda") == {
        "health_passed": 0,
        "temperature_celsius": 41,
        "reallocated_sectors_total": 8,
    }
    assert values(seen, "/dev/nvme0n1") == {
        "health_passed": 1,
        "temperature_warning": 0,
        "critical_warning_bits": 4,
        "media_errors_total": 2,
        "spare_percent": 90,
    }
    assert seen.blind == "/dev/sdb: Unknown USB bridge"


GPU = {
    "uuid": "GPU-1",
    "pci": "0000:3b:00.0",
    "values": {"ecc_uncorrected_total": 1, "clocks_event_reasons_bits": 0x48},
}


def test_nvml_values_mean_what_they_should(tmp_path: Path) -> None:
    files = {
        f"{PCI}/class": "0x030200\n",
        f"{PCI}/vendor": "0x10de\n",
        f"{PCI.replace('3b', '5e')}/class": "0x030200\n",
        f"{PCI.replace('3b', '5e')}/vendor": "0x10de\n",
        "nvml.json": {"gpus": [GPU], "xids": [["0000:3b:00", 79]], "lost": 1},
    }
    seen = machine(tmp_path, files)["nvml"].read(NOW)
    assert values(seen, "") == {"gpus_count": 1, "gpus_lost_count": 1, "gpus_on_bus_count": 2}
    assert values(seen, "GPU-1") == {
        "ecc_uncorrected_total": 1,
        "clocks_event_reasons_bits": 0x48,
        "software_power_cap": 0,
        "hardware_slowdown": 1,
        "software_thermal_slowdown": 0,
        "hardware_thermal_slowdown": 1,
        "hardware_power_brake": 0,
    }
    assert [line.text for line in seen.lines] == [
        "NVRM: Xid (PCI:0000:3b:00): 79, reported by NVML"
    ]


def test_a_gpu_without_nvml_is_blindness_and_no_gpu_is_none(tmp_path: Path) -> None:
    files: dict[str, Any] = {"nvml.json": {"missing": "pip install 'babysit[nvidia]'"}}
    assert machine(tmp_path, files)["nvml"].read(NOW).absent == "no NVIDIA GPU"
    files = {f"{PCI}/class": "0x030200\n", f"{PCI}/vendor": "0x10de\n"}
    assert "pip install" in machine(tmp_path, files)["nvml"].read(NOW).blind


DMON = """\
#Entity   SMACT        TENSO        DRAMA        PCITX    PCIRX    NVLTX    NVLRX
ID
GPU 0     0.971        0.512        0.404        1024     2048     N/A      4096
"""


def test_dcgm(tmp_path: Path) -> None:
    (tmp_path / "tree/proc/driver/nvidia").mkdir(parents=True)
    assert "install DCGM" in machine(tmp_path, {})["dcgm"].read(NOW).blind
    fields = "1002,1004,1005,1009,1010,1011,1012"
    words = {
        f"programs/dcgmi dmon -e {fields} -c 1": DMON,
        "programs/dcgmi dmon -e 230,140,240,241 -c 1": "Error setting watches. Result: -33\n",
    }
    seen = machine(tmp_path, words)["dcgm"].read(NOW)
    assert values(seen, "GPU 0")["tensor_active_ratio"] == 0.512
    assert "nvlink_sent_bytes_per_second" not in values(seen, "GPU 0")
    assert seen.blind.startswith("dcgmi dmon has no values for the fields 230,140,240,241")


def test_amd(tmp_path: Path) -> None:
    files = {
        f"{AMD}/vendor": "0x1002\n",
        f"{AMD}/unique_id": "a1b2c3d4\n",
        f"{AMD}/gpu_busy_percent": "99\n",
        f"{AMD}/current_link_width": "16\n",
        f"{AMD}/hwmon/hwmon4/temp1_input": "61000\n",
        f"{AMD}/hwmon/hwmon4/temp1_label": "junction\n",
        f"{AMD}/hwmon/hwmon4/temp2_input": "70000\n",
        f"{AMD}/hwmon/hwmon4/temp2_label": "mem\n",
        f"{AMD}/hwmon/hwmon4/power1_average": "550000000\n",
    }
    seen = machine(tmp_path, files)["amd"].read(NOW)
    assert "Install amd-smi" in seen.blind
    assert values(seen, "a1b2c3d4") == {
        "utilization_percent": 99,
        "pcie_width_lanes": 16,
        "junction_temperature_celsius": 61,
        "memory_temperature_celsius": 70,
        "power_watts": 550,
    }
    smi = [{"gpu": 0, "ecc": {"total_correctable_count": 3, "total_deferred_count": "N/A"}}]
    seen = machine(tmp_path, {"programs/amd-smi metric --ecc --json": smi})["amd"].read(NOW)
    assert (seen.blind, values(seen, "GPU 0")) == ("", {"ecc_corrected_total": 3})
    ras = {
        f"{AMD}/ras/umc_err_count": "ue: 1\nce: 4\n",
        f"{AMD}/ras/gfx_err_count": "ue: 1\nce: 0\n",
    }
    seen = machine(tmp_path, ras)["amd"].read(NOW)
    counted = values(seen, "a1b2c3d4")
    assert counted["ras_umc_uncorrected_total"] == 1
    assert (counted["ecc_uncorrected_total"], counted["ecc_corrected_total"]) == (2, 4)


def test_every_source_of_this_machine_sees_or_says_why_not() -> None:
    here = sources.live(SourceSettings(smart_seconds=0), SystemClock().monotonic)
    assert {each.name for each in here.sources} == set(NAMES) - {"smart"}
    for source in here.sources:
        seen = source.read(NOW)
        assert bool(seen.readings) or bool(seen.blind) or bool(seen.absent), source.name
    assert len(here.boot) == 36
