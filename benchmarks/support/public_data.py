"""Public data for benchmarks. It is not part of the project."""

from __future__ import annotations

import os
from pathlib import Path

DEFAULT = Path(__file__).resolve().parents[3] / "shared" / "data"
HELP = "directory of the public data (default: BABYSIT_DATA, or else ../shared/data)"


def default() -> Path:
    """The directory of the data if `--data` is not given."""
    return Path(os.environ.get("BABYSIT_DATA", DEFAULT))


def missing(*files: Path) -> str:
    """A message about missing files and how to name their directory; empty: all exist."""
    absent = [str(file) for file in files if not file.exists()]
    if not absent:
        return ""
    return (
        f"{' and '.join(absent)}: no such file. The public data is not part of this project:"
        " name its directory with --data or BABYSIT_DATA"
    )
