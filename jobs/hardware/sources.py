"""The sources of a machine, and those of a recorded one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from jobs.hardware.amd import Amd
from jobs.hardware.dcgm import Dcgm
from jobs.hardware.disks import Disks, Smart, recorded_space, space_of
from jobs.hardware.infiniband import Infiniband
from jobs.hardware.kernel_log import Cursor, KernelLog
from jobs.hardware.kernel_records import CapturedLog, Kmsg
from jobs.hardware.memory import Edac, Memory
from jobs.hardware.network import Network
from jobs.hardware.nvidia import Nvidia, RecordedNvml
from jobs.hardware.nvml import LiveNvml
from jobs.hardware.pci import Pci
from jobs.hardware.port import Source
from jobs.hardware.programs import LiveProgram, RecordedProgram
from jobs.hardware.settings import SourceSettings
from jobs.hardware.time_sync import RecordedClock, TimeSync, kernel_clock
from jobs.hardware.tree import Tree

_KMSG = Path("/dev/kmsg")


class Machine(NamedTuple):
    """The sources of one machine, and the id of its start."""

    sources: tuple[Source, ...]
    boot: str
    kernel_log: KernelLog | None
    """The one with a cursor, which is among the sources; None: left out."""


class Place(NamedTuple):
    """Where a live machine is read; a container may have the host's files elsewhere."""

    root: Path = Path("/")
    kmsg: Path = _KMSG


def boot_id(tree: Tree) -> str:
    """The id of this start of a machine; empty: unknown."""
    return tree.text("proc/sys/kernel/random/boot_id") or ""


def live(
    settings: SourceSettings,
    monotonic: Callable[[], float],
    *,
    cursor: Cursor | None = None,
    place: Place = Place(),  # noqa: B008 (a tuple)
) -> Machine:
    """The sources of this machine.

    Args:
        settings: Sources with an interval of 0 are left out.
        monotonic: Seconds since boot.
        cursor: How far the kernel's log was read before.
        place: Where its files are.
    """
    tree = Tree(place.root)
    boot = boot_id(tree)
    records = Kmsg(place.kmsg, monotonic)
    log = KernelLog(records, boot, cursor, backlog_seconds=settings.backlog_seconds)
    every: list[Source] = [
        log,
        Nvidia(tree, LiveNvml()),
        Dcgm(tree, LiveProgram("dcgmi")),
        Amd(tree, LiveProgram("amd-smi")),
        Disks(tree, space_of),
        Smart(tree, LiveProgram("smartctl")),
        TimeSync(kernel_clock),
        *_of_tree(tree),
    ]
    return _machine(every, boot, settings)


def recorded(settings: SourceSettings, directory: Path) -> Machine:
    """The sources of a recorded machine: a directory with as much of these as was recorded.

    `tree/` (sysfs and procfs below it), `kernel.log` with `booted` (Unix seconds, as text),
    `nvml.json`, `space.json`, `clock.json` and `programs/`. What is missing is absent or blind, as
    on a machine without it.
    """
    tree = Tree(directory / "tree")
    programs = directory / "programs"
    boot = boot_id(tree)
    every: list[Source] = [
        Dcgm(tree, RecordedProgram(programs, "dcgmi")),
        Amd(tree, RecordedProgram(programs, "amd-smi")),
        Smart(tree, RecordedProgram(programs, "smartctl")),
        *_of_tree(tree),
    ]
    booted = directory / "booted"
    captured = CapturedLog(
        directory / "kernel.log", float(booted.read_text()) if booted.exists() else 0.0
    )
    every.append(KernelLog(captured, boot, backlog_seconds=float("inf")))
    if (directory / "nvml.json").exists():
        every.append(Nvidia(tree, RecordedNvml(directory / "nvml.json")))
    if (directory / "space.json").exists():
        every.append(Disks(tree, recorded_space(directory / "space.json")))
    if (directory / "clock.json").exists():
        every.append(TimeSync(RecordedClock(directory / "clock.json")))
    return _machine(every, boot, settings)


def _of_tree(tree: Tree) -> list[Source]:
    """The sources that need files alone."""
    return [Infiniband(tree), Network(tree), Pci(tree), Memory(tree), Edac(tree)]


def _machine(every: Sequence[Source], boot: str, settings: SourceSettings) -> Machine:
    kept = tuple(source for source in every if interval(settings, source.name) > 0)
    log = next((source for source in kept if isinstance(source, KernelLog)), None)
    return Machine(kept, boot, log)


def interval(settings: SourceSettings, source: str) -> float:
    """Seconds between two looks of a source."""
    seconds: float = getattr(settings, f"{source}_seconds")
    return seconds
