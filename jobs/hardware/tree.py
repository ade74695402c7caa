"""A file system as sources read it: sysfs and procfs of this machine, or a copy in a directory."""

from __future__ import annotations

import re
from pathlib import Path

_MOST_BYTES = 65536
"""Longest file that is read: the files of sysfs hold a page at most, /proc/mounts some."""
_NUMBER = re.compile(r"\s*(-?(?:0x[0-9a-fA-F]+|\d+(?:\.\d+)?))")


class Tree:
    """Reads small text files below a root. A file that is not there, or unreadable, is None.

    Args:
        root: `/`, or the directory of a recorded tree. Symbolic links of a recorded tree must be
            relative, as those of sysfs are.
    """

    def __init__(self, root: Path = Path("/")) -> None:
        self.root = root

    def text(self, path: str) -> str | None:
        """The content of a file without the white space at its ends."""
        try:
            with (self.root / path).open("rb") as file:
                return file.read(_MOST_BYTES).decode(errors="replace").strip()
        except OSError:  # sysfs also has files whose device answers with EINVAL or EIO
            return None

    def number(self, path: str, scale: float = 1.0) -> float | None:
        """The number that a file begins with, times `scale`: `0x1f`, `8`, `16.0 GT/s PCIe`."""
        return number_in(self.text(path), scale)

    def names(self, path: str) -> list[str]:
        """The names in a directory, sorted; none without it."""
        try:
            return sorted(entry.name for entry in (self.root / path).iterdir())
        except OSError:
            return []

    def has(self, path: str) -> bool:
        """True if there is a file or a directory of that name."""
        return (self.root / path).exists()

    def target(self, path: str) -> str:
        """The last part of the path that a symbolic link leads to; empty: not a link."""
        try:
            return (self.root / path).readlink().name
        except OSError:
            return ""


def number_in(text: str | None, scale: float = 1.0) -> float | None:
    """The number that a text begins with, times `scale`; None: it begins with none."""
    found = None if text is None else _NUMBER.match(text)
    if found is None:
        return None
    digits = found[1]
    value = int(digits, 16) if "0x" in digits.lower() else float(digits)
    return value * scale
