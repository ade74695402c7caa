"""The public data that benchmarks score against. It is kept apart from the project."""

from __future__ import annotations

import os
from pathlib import Path

BESIDE = Path(__file__).resolve().parents[3] / "shared" / "data"
HELP = "directory of the public data (default: BABYSIT_DATA, or else ../shared/data)"


def default() -> Path:
    """Where it is looked for when no `--data` names it."""
    return Path(os.environ.get("BABYSIT_DATA", BESIDE))


def missing(*files: Path) -> str:
    """Which of these are not there, and how to say where they are; empty when all are."""
    absent = [str(file) for file in files if not file.exists()]
    if not absent:
        return ""
    return (
        f"{' and '.join(absent)}: no such file. The public data is no part of this project:"
        " name its directory with --data or BABYSIT_DATA"
    )
