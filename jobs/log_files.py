"""A rank's log on disk: the current file, and older parts beside it.

`rank-00000.log` is the current file. Once it is full it becomes `rank-00000.log.000010485760`: the
number is the place of its first byte in the whole log, so a place keeps its meaning when files are
rotated or deleted. The agent writes (:mod:`jobs.agent.log_file`), the server reads.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

from pydantic import BaseModel, ConfigDict, Field


class LogLimit(BaseModel):
    """How much disk the log of one rank and attempt may take: `bytes` times `files`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    bytes: int = Field(default=10 * 2**20, ge=4096)
    """Size at which the current file becomes an older part."""
    files: int = Field(default=5, ge=2)
    """Files per rank and attempt, with the current one; the oldest is deleted."""


class Part(NamedTuple):
    """One file of a log."""

    start: int
    """Place of its first byte in the whole log."""
    path: Path


def older_parts(path: Path) -> list[Part]:
    """The parts beside the current file `path`, oldest first; empty if there is no directory."""
    pattern = re.compile(re.escape(path.name) + r"\.(\d+)")
    try:
        names = [entry.name for entry in path.parent.iterdir()]
    except (FileNotFoundError, NotADirectoryError):
        return []
    return sorted(
        Part(int(found[1]), path.with_name(name))
        for name in names
        if (found := pattern.fullmatch(name))
    )


def part_name(path: Path, start: int) -> Path:
    """The name of the current file once it is an older part."""
    return path.with_name(f"{path.name}.{start:012d}")


def end_of(parts: list[Part]) -> int:
    """The place where the current file begins, given the older parts.

    Raises:
        FileNotFoundError: The newest older part was deleted meanwhile.
    """
    return parts[-1].start + parts[-1].path.stat().st_size if parts else 0
