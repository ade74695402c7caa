"""Packs a selection into a tar whose bytes depend on names, modes and contents alone.

The sha256 of the tar is the id of the bundle: the same tree has the same id, and is uploaded once.
Owners and times are left out. The format is that of POSIX (pax), for names of every length and
alphabet. The tar is not compressed: what zlib makes of it differs between versions.
"""

from __future__ import annotations

import hashlib
import os
import stat
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, cast

from orchestrator.cli.bundle.ignore import OWN_FILE
from orchestrator.cli.bundle.selection import Entry, Selection, steps
from orchestrator.cli.errors import CliError, ExitCode

_TIME = 946684800
"""Unix seconds of the files: 2000-01-01. Zip files, as wheels are, know no time before 1980."""
Progress = Callable[[int], None]


class _Hashing:
    """A file that is written from its beginning to its end, with the sha256 of what it gets."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.sha256 = hashlib.sha256()

    def write(self, data: bytes) -> int:
        self.sha256.update(data)
        return self._file.write(data)

    def tell(self) -> int:
        return self._file.tell()


def write(selection: Selection, file: IO[bytes], progress: Progress = lambda _: None) -> str:
    """Write the bundle; its id, which is the sha256 in hexadecimal digits.

    Args:
        selection: What to pack.
        file: An empty file.
        progress: Told the number of bytes packed so far.

    Raises:
        CliError: A file changed meanwhile or cannot be read, or there is no room for the bundle.
    """
    hashing = _Hashing(file)
    try:
        with tarfile.open(
            fileobj=cast("IO[bytes]", hashing),  # only write and tell are used
            mode="w",
            format=tarfile.PAX_FORMAT,
            encoding="utf-8",
            errors="surrogateescape",
        ) as tar:
            for before, entry in steps(selection.entries):
                progress(before)
                _add(tar, selection.root, entry)
        file.flush()
    except OSError as error:
        raise CliError(
            f"the code cannot be packed: {error.strerror or error}. Bundles are made in TMPDIR,"
            " which must have room for one",
            ExitCode.USAGE,
        ) from error
    return hashing.sha256.hexdigest()


def _add(tar: tarfile.TarFile, root: Path, entry: Entry) -> None:
    info = tarfile.TarInfo(entry.path)
    info.mtime = _TIME
    info.mode = stat.S_IMODE(entry.mode) & 0o777
    if stat.S_ISDIR(entry.mode):
        info.type = tarfile.DIRTYPE
    elif stat.S_ISLNK(entry.mode):
        info.type, info.linkname = tarfile.SYMTYPE, entry.target
    else:
        info.size = entry.size
        _add_file(tar, info, root / entry.path, entry)
        return
    tar.addfile(info)


def _add_file(tar: tarfile.TarFile, info: tarfile.TarInfo, path: Path, entry: Entry) -> None:
    """Add a file, as it was when it was chosen, and never half of an old and half of a new one.

    Raises:
        CliError: It is another one by now, or it cannot be read.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        if isinstance(error, FileNotFoundError):
            raise _changed(path) from error
        raise CliError(
            f"{path} cannot be packed: {error.strerror}. Make it readable, or list it in"
            f" {OWN_FILE}",
            ExitCode.USAGE,
        ) from error
    with os.fdopen(descriptor, "rb") as content:
        if _is_changed(descriptor, entry):
            raise _changed(path)
        try:
            tar.addfile(info, content)
        except OSError as error:
            if _is_changed(descriptor, entry):  # shorter now
                raise _changed(path) from error
            raise
        if _is_changed(descriptor, entry):
            raise _changed(path)


def _is_changed(descriptor: int, entry: Entry) -> bool:
    status = os.fstat(descriptor)
    same = (entry.size, entry.changed) == (status.st_size, status.st_mtime_ns)
    return not (same and stat.S_ISREG(status.st_mode))


def _changed(path: Path) -> CliError:
    return CliError(
        f"{path} changed while it was packed. Submit again, or list it in {OWN_FILE} if something"
        " writes it all the time",
        ExitCode.REFUSED,
    )
