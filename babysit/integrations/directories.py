"""Checkpoints that a framework has already written, as states of ours."""

from __future__ import annotations

import shutil
from pathlib import Path


class WrittenDirectory:
    """A directory some framework writes by itself, and reads when told where."""

    def __init__(self) -> None:
        self.source = Path()
        """What the next save takes over."""
        self.found: Path | None = None
        """Where the restored checkpoint lies; None: none was restored."""

    def save(self, directory: Path) -> None:
        """Link (or copy, across file systems) what was written."""
        shutil.copytree(self.source, directory, copy_function=_link, dirs_exist_ok=True)

    def load(self, directory: Path) -> None:
        """Remember the place; the framework reads it."""
        self.found = directory


def _link(source: str, target: str) -> None:
    try:
        Path(target).hardlink_to(source)
    except OSError:  # another file system
        shutil.copy2(source, target)
