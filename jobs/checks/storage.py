"""Disk and tmpfs: written, synced, read back from the medium, and compared."""

from __future__ import annotations

import hashlib
import os
import random
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from jobs.checks.measurement import Measurement, Stopwatch, Task

_BLOCK = 2**20
QUICK_BLOCKS, THOROUGH_BLOCKS = 8, 64
"""MiB that are written: some 0.1 s and 1 s on a disk of a training node."""
LEAST_TMPFS = 16 * 2**20
"""Bytes that must be free on tmpfs: notes and rings of the ranks of a node take a few MiB."""
_MEGA, _GIBI = 1e6, 2.0**30


def disk(task: Task) -> list[Measurement]:
    """Write a file and sync it, drop it from the page cache, read it back, and compare.

    Where the file system does not let go of its cache (tmpfs, overlays in memory), the rate of
    reading is that of memory; the comparison holds all the same.
    """
    blocks = THOROUGH_BLOCKS if task.thorough else QUICK_BLOCKS
    try:
        with _scratch(task.disk) as path:
            wrote, expected = _write(path, blocks)
            read, found = _read(path, blocks)
    except OSError as error:
        why = f"{task.disk} cannot be written and read back: {error.strerror or error}"
        return [Measurement(check="disk-write", problem=why)]
    differs = "a file that was written and synced reads back as something else"
    return [
        Measurement(check="disk-write", figure=wrote, unit="MB/s"),
        Measurement(
            check="disk-read",
            figure=read,
            unit="MB/s",
            problem="" if found == expected else f"{task.disk}: {differs}",
        ),
    ]


def _write(path: Path, blocks: int) -> tuple[float, str]:
    """The rate of writing, and the hash of what was written."""
    chance, digest = random.Random(15), hashlib.sha256()
    content = [chance.randbytes(_BLOCK) for _ in range(4)]
    with path.open("wb", buffering=0) as file:
        watch = Stopwatch()
        for number in range(blocks):
            _write_all(file.fileno(), content[number % 4])
        os.fsync(file.fileno())
        seconds = watch.seconds
    for number in range(blocks):
        digest.update(content[number % 4])
    return blocks * _BLOCK / seconds / _MEGA, digest.hexdigest()


def _write_all(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def _read(path: Path, blocks: int) -> tuple[float, str]:
    """The rate of reading, and the hash of what was read."""
    digest = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        busy = 0.0
        while True:
            watch = Stopwatch()
            block = file.read(_BLOCK)
            busy += watch.seconds
            if not block:
                break
            digest.update(block)
    return blocks * _BLOCK / busy / _MEGA, digest.hexdigest()


def tmpfs(task: Task) -> list[Measurement]:
    """The free bytes of tmpfs, and whether a part of them can be had."""
    try:
        found = os.statvfs(task.memory)
        free = found.f_bavail * found.f_frsize
        figure = {"check": "tmpfs-free", "figure": free / _GIBI, "unit": "GiB"}
        with _scratch(task.memory) as path, path.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, min(LEAST_TMPFS, max(1, free)))
    except OSError as error:
        why = f"{task.memory} (tmpfs) cannot be written: {error.strerror or error}"
        return [Measurement(check="tmpfs-free", problem=why)]
    short = f"{task.memory} (tmpfs) has {free} bytes free; ranks need {LEAST_TMPFS}"
    return [Measurement(**figure, problem=short if free < LEAST_TMPFS else "")]  # type: ignore[arg-type]


@contextmanager
def _scratch(directory: str) -> Iterator[Path]:
    """A file of our own in this directory, removed afterwards."""
    descriptor, name = tempfile.mkstemp(prefix=".babysit-check-", dir=directory)
    os.close(descriptor)
    try:
        yield Path(name)
    finally:
        Path(name).unlink(missing_ok=True)
