"""The cost of a node monitor with all sources at default intervals: a table, then one JSON line.

    python benchmarks/hardware.py [--seconds 60] [--repeats 200]

The real collector reads this machine. Sources whose hardware this machine lacks read a recorded
machine instead: 8 GPUs, 8 InfiniBand ports, 24 DIMMs, 8 AMD GPUs, 16 PCIe links. NVML is then a
JSON file, so the time of the driver itself is left out; programs (dcgmi, smartctl) are left out
too: they run in processes of their own.

    look            CPU milliseconds of one look, by source
    share           CPU seconds of all looks in an hour at default intervals, per second of one core
    program         CPU seconds of the real program, a process of its own, per second, with its
                    spool and without a server; its start is left out
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # run from anywhere

from benchmarks.support.harness import last_line, table, workplace
from jobs.clock import SystemClock
from jobs.hardware import sources
from jobs.hardware.port import Source
from jobs.hardware.settings import SourceSettings

GPUS = 8
_START_SECONDS = 5.0
"""Time after which the program has started, and has taken its first looks."""


def recorded_machine(root: Path) -> Path:
    """A machine of eight NVIDIA and eight AMD GPUs, with as much around them as such a node has."""
    files: dict[str, str] = {}
    sys_ = "tree/sys"
    for n in range(GPUS):
        port = f"{sys_}/class/infiniband/mlx5_{n}/ports/1"
        files |= {f"{port}/state": "4: ACTIVE", f"{port}/phys_state": "5: LinkUp"}
        files |= {f"{port}/counters/{name}": "12" for name in ("link_downed", "symbol_error")}
        for base in (0x10, 0x50):
            pci = f"{sys_}/bus/pci/devices/0000:{base + n:02x}:00.0"
            files |= {f"{pci}/class": "0x030200", f"{pci}/vendor": "0x10de"}
            files |= {f"{pci}/{end}_link_width": "16" for end in ("current", "max")}
            files |= {f"{pci}/{end}_link_speed": "32.0 GT/s PCIe" for end in ("current", "max")}
        card = f"{sys_}/class/drm/card{n}/device"
        files |= {f"{card}/vendor": "0x1002", f"{card}/ras/umc_err_count": "ue: 0\nce: 0"}
        for dimm in range(3):
            slot = f"{sys_}/devices/system/edac/mc/mc{n}/dimm{dimm}"
            files |= {f"{slot}/dimm_ce_count": "0", f"{slot}/dimm_ue_count": "0"}
    gpu = {"values": {f"value_{n}": 1.0 for n in range(40)}, "pci": "0000:10:00.0"}
    gpus = [{**gpu, "uuid": f"GPU-{n}"} for n in range(GPUS)]
    files["nvml.json"] = json.dumps({"gpus": gpus})
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content + "\n")
    return root


def chosen(root: Path, settings: SourceSettings) -> list[tuple[Source, str]]:
    """Each source as this machine has it, or else as the recorded one has it."""
    clock = SystemClock()
    here = sources.live(settings, clock.monotonic).sources
    there = {each.name: each for each in sources.recorded(settings, root).sources}
    found = []
    for source in here:
        if source.read(clock.now().timestamp()).readings:
            found.append((source, "this machine"))
        elif source.name in there:
            found.append((there[source.name], "recorded"))
    return found


def cost(source: Source, repeats: int) -> float:
    """CPU seconds of one look, after a first one."""
    now = SystemClock().now().timestamp()
    source.read(now)
    began = time.process_time()
    for _ in range(repeats):
        source.read(now)
    return (time.process_time() - began) / repeats


def cpu_of(pid: int) -> float:
    """CPU seconds of a process and its threads."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def program_share(directory: Path, seconds: float) -> float:
    """CPU seconds per second of the program with default settings, without a server."""
    environment = {
        **os.environ,
        "BABYSIT_AGENT_URL": "ws://127.0.0.1:9/agent",
        "BABYSIT_NODE_TOKEN": "none",
        "BABYSIT_NODE_DIRECTORY": str(directory),
    }
    program = [sys.executable, "-P", "-m", "babysit.node_monitor"]
    root = Path(__file__).parents[1]
    with subprocess.Popen(program, env=environment, cwd=root, stderr=subprocess.DEVNULL) as process:
        try:
            time.sleep(_START_SECONDS)
            before, began = cpu_of(process.pid), time.monotonic()
            time.sleep(seconds)
            return (cpu_of(process.pid) - before) / (time.monotonic() - began)
        finally:
            process.terminate()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=60.0, help="of the program's run")
    parser.add_argument("--repeats", type=int, default=200, help="looks of each source")
    asked = parser.parse_args()
    settings = SourceSettings(dcgm_seconds=0, smart_seconds=0)
    with workplace("hardware") as place:
        rows, share = [], 0.0
        for source, where in chosen(recorded_machine(place / "machine"), settings):
            each, every = cost(source, asked.repeats), sources.interval(settings, source.name)
            share += each / every
            rows.append(
                [source.name, where, f"{each * 1e3:.3f}", f"{every:g}", f"{each / every:.3%}"]
            )
        program = program_share(place / "state", asked.seconds)
    table(["source", "read from", "CPU ms a look", "every s", "share of a core"], rows)
    print(f"all looks {share:.2%} of a core; the program on this machine {program:.2%}")
    last_line({"looks_share_of_core": share, "program_share_of_core": program})


if __name__ == "__main__":
    main()
