"""States for checkpoints that a framework has already written."""

from __future__ import annotations

import shutil
from pathlib import Path


class WrittenDirectory:
    """A directory that a framework writes itself, and reads from a given path."""

    def __init__(self) -> None:
        self.source = Path()
        """The directory that the next save takes over."""
        self.found: Path | None = None
        """The directory of the restored checkpoint; None: none was restored."""

    def save(self, directory: Path) -> None:
        """Link (or copy, across file systems) the written files.

        Raises:
            OSError: The files cannot be written.
        """
        shutil.copytree(self.source, directory, copy_function=_link, dirs_exist_ok=True)

    def load(self, directory: Path) -> None:
        """Remember the directory; the framework reads it."""
        self.found = directory


def _link(source: str, target: str) -> None:
    try:
        Path(target).hardlink_to(source)
    except OSError:  # another file system
        shutil.copy2(source, target)
