"""Starts babysit's own programs: the command line, the server and the agent.

A wheel installs one package at the top, this one. The others (`jobs`, `monitors`, `orchestrator`,
`migrations`) lie in its folder `_packages`, which is on no path of Python's: an installed `jobs` of
somebody else, or a `jobs.py` beside a training script, neither hides ours nor is hidden by it, and
no file of theirs is overwritten. Only the programs here put that folder on `sys.path`, first. In a
checkout the packages lie beside this one, at the top.

Standard library only: the training script's environment may have nothing else.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

_HERE = Path(__file__).resolve().parent
WHEEL_PACKAGES = _HERE / "_packages"
"""Where a wheel has the other packages; absent in a checkout."""
SERVER_MODULES = [
    "aiosqlite",
    "alembic",
    "fastapi",
    "fsspec",
    "httpx",
    "itsdangerous",
    "matplotlib",
    "numpy",
    "pathspec",
    "prometheus_client",
    "psycopg",
    "pydantic_settings",
    "rich",
    "sqlalchemy",
    "stamina",
    "textual",
    "typer",
    "uvicorn",
]
"""Modules of the extra `server` in pyproject.toml."""
AGENT_MODULES = ("msgpack", "pydantic", "ruamel", "structlog", "ulid", "websockets")
"""Modules that every installation has, unless pip ran with --no-deps."""
_EXIT_USAGE = 2


def add_packages() -> None:
    """Make our packages importable in this process, before any others of the same names."""
    own = WHEEL_PACKAGES if WHEEL_PACKAGES.is_dir() else _HERE.parent
    if sys.path[:1] != [str(own)]:
        sys.path.insert(0, str(own))


def missing(modules: Iterable[str]) -> list[str]:
    """Modules of these that are not installed; imports none."""
    return [module for module in modules if importlib.util.find_spec(module) is None]


def start(main: Callable[[], int], *, server: bool) -> int:
    """Run a program of ours.

    Args:
        main: Imports and runs the program; returns its exit code.
        server: True if the program needs the extra `server`, else the agent's packages only.

    Returns:
        Its exit code; 2 with one sentence on stderr where its packages are not installed.
    """
    absent = missing([*AGENT_MODULES, *(SERVER_MODULES if server else ())])
    if absent:
        sys.stderr.write(_not_installed(absent) + "\n")
        return _EXIT_USAGE
    add_packages()
    return main()


def _not_installed(absent: list[str]) -> str:
    if any(module in AGENT_MODULES for module in absent):
        return (
            f"babysit: its dependencies are not installed in {sys.prefix} ({', '.join(absent)});"
            " install them with `pip install babysit`, without --no-deps"
        )
    return (
        "babysit: the command line and the control plane need packages that a training image does"
        f" without and {sys.prefix} has not; install them with `pip install 'babysit[server]'`"
        f" (missing: {', '.join(absent)})"
    )
