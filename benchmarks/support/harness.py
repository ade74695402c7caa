"""Shared parts of the benchmarks: a separate control plane, tables, and the last line of JSON."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import structlog
from ruamel.yaml import YAML

from benchmarks.support.leftovers import end_all, interruptible, uninterrupted
from jobs.clock import SystemClock
from orchestrator.cli import embedded
from orchestrator.cli.client import Api
from orchestrator.cli.errors import CliError
from orchestrator.cli.paths import path
from orchestrator.cli.session import Session
from orchestrator.cli.submit import from_file, send
from orchestrator.server.server_file import is_alive, read_record
from orchestrator.settings import Settings

_SECONDS_AT_THE_END, _SECONDS_IN_A_HURRY = 90.0, 5.0
"""For the runs to end, and for the server: after a benchmark, and after one that has failed."""


@contextlib.contextmanager
def workplace(name: str) -> Iterator[Path]:
    """A temporary directory, which is removed also if a signal ends the benchmark."""
    with interruptible():
        directory = Path(tempfile.mkdtemp(prefix=f"babysit-{name}-"))
        try:
            yield directory
        finally:
            with uninterrupted():
                shutil.rmtree(directory, ignore_errors=True)


@contextlib.contextmanager
def control_plane(
    directory: Path, *, nodes: int = 2, idle_seconds: float = 1.0
) -> Iterator[Session]:
    """A separate embedded control plane; at the end its runs are cancelled, and it exits.

    It also exits after `idle_seconds` without a run and a request, as an embedded one does. If the
    benchmark is interrupted or fails, no process of a local run is left either.
    """
    settings = Settings(
        home=directory / "home",
        server=None,
        token=None,
        local_nodes=nodes,
        idle_exit_seconds=idle_seconds,
    )
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(40))
    os.environ["BABYSIT_LOCAL_NODES"] = str(nodes)
    os.environ["BABYSIT_IDLE_EXIT_SECONDS"] = f"{idle_seconds:g}"
    session = Session(settings, SystemClock())
    with interruptible():
        try:
            yield session
        except BaseException:
            with uninterrupted():
                _end_in_a_hurry(session)
            raise
        with uninterrupted():
            _end(session, _SECONDS_AT_THE_END)


def _end(session: Session, seconds: float) -> None:
    """Cancel all runs, then stop the server, each within `seconds`; kill what is left of them.

    Raises:
        CliError: The server does not answer.
        TimeoutError: It took longer.
    """
    settings = session.settings
    try:
        if not gone(session):  # a question to a server that is gone would start another one
            for run in _alive(session):
                session.api.post(path("runs", run["id"], "cancel"), reason="the benchmark is over")
            until(lambda: not _alive(session), "the end of all runs", seconds=seconds)
        record = read_record(settings.server_file)
        if record is not None and is_alive(record):
            os.kill(record.pid, signal.SIGTERM)
        session.close()
        until(lambda: gone(session), "the control plane to leave", seconds=seconds)
    finally:
        session.close()
        end_all(settings.home)


def _end_in_a_hurry(session: Session) -> None:
    """Do likewise after a failure or a signal, whose story must not be hidden by another one."""
    try:
        _end(session, _SECONDS_IN_A_HURRY)
    except (CliError, OSError) as error:  # TimeoutError is an OSError
        print(f"ended by SIGKILL: {error}", file=sys.stderr, flush=True)


def _alive(session: Session) -> list[Any]:
    return [run for run in session.api.get(path("runs")) if run["ended_at"] is None]


def gone(session: Session) -> bool:
    """True if the embedded control plane has exited."""
    found = embedded.find(session.settings, session.clock)
    if found is not None:
        found.close()
    return found is None


def submit(session: Session, directory: Path, spec: dict[str, Any]) -> str:
    """Submit a spec; returns the id of the run."""
    file = directory / f"{spec['name']}.yaml"
    with file.open("w") as stream:
        YAML(typ="safe").dump(spec, stream)
    return str(send(session, from_file(file))["id"])


def until(
    ready: Callable[[], Any], what: str, *, seconds: float = 60.0, pause: float = 0.01
) -> Any:
    """Wait for a condition, at most `seconds`; returns its first true value.

    Looks come `pause` seconds apart: requests to the server must not be the load of a test.

    Raises:
        TimeoutError: The condition did not become true.
    """
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if found := ready():
            return found
        time.sleep(pause)
    raise TimeoutError(f"waited {seconds:.0f} s for {what}")


def table(titles: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print a table; floats have three significant digits."""
    cells = [[_cell(value) for value in row] for row in (titles, *rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(titles))]
    for row in cells:
        print(
            "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip()
        )


def _cell(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def last_line(figures: dict[str, Any]) -> None:
    """Print the figures as one line of JSON, for comparison over time."""
    print(json.dumps({k: round(v, 6) if isinstance(v, float) else v for k, v in figures.items()}))


def median(values: Sequence[float]) -> float:
    """The median."""
    return statistics.median(values)


__all__ = [
    "Api",
    "control_plane",
    "last_line",
    "median",
    "path",
    "submit",
    "table",
    "until",
    "workplace",
]
