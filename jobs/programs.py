"""Looks programs up as a shell in the directory of the command would."""

from __future__ import annotations

import os
import re
import shutil
import sys
from pathlib import Path

_NAME = re.compile(r"python(3(\.\d+)?)?")
_OWN_NAMES = frozenset({"python", "python3", f"python3.{sys.version_info.minor}"})


def find_program(name: str, path: str | None, workdir: str | Path) -> str | None:
    """The file that a shell in `workdir` would execute for a name; None: there is none.

    Args:
        name: A program, with or without directories.
        path: The PATH; None: the default of the system. Relative entries are relative to `workdir`.
        workdir: Where the command runs.
    """
    if "/" in name:
        return shutil.which(str(Path(workdir, name)))
    entries = (os.defpath if path is None else path).split(os.pathsep)
    absolute = os.pathsep.join(str(Path(workdir, entry)) for entry in entries)
    return shutil.which(name, path=absolute)


def names_python(program: str) -> bool:
    """True if a program is called as Python interpreters are."""
    return _NAME.fullmatch(Path(program).name) is not None


def stands_for_own(program: str) -> bool:
    """True if a name, where PATH does not have it, stands for the agent's own interpreter."""
    return program in _OWN_NAMES


def is_own(found: str) -> bool:
    """True for this process's own interpreter, by any name in its own directory.

    The directory counts, since that is what makes a venv.
    """
    own = Path(sys.executable)
    same_place = Path(found).parent.resolve() == own.parent.resolve()
    return same_place and Path(found).resolve() == own.resolve()
