"""The submitted environments of runs, on the server's disk: one file each, for its owner alone.

Values of variables are secrets more often than not. They are in no table, no event and no answer;
an agent gets them through a pipe. A file lies here from just before its run is stored until the run
can start nothing any more, and so outlives servers, attempts and workers.

Not guaranteed: a server that takes over on another machine does not have the files. A run that
wants to start there is held, with the reason.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import structlog
from pydantic import ValidationError

from jobs.clock import Clock
from jobs.environment import Environment
from orchestrator.controller.controller import Controller
from orchestrator.core.model.states import RunState
from orchestrator.errors import BabysitError, NotFoundError

_log = structlog.get_logger(__name__)
SWEEP_SECONDS = 5.0
_UNKNOWN_SECONDS = 3600.0
"""Age of the file of a run that nobody knows before it is removed: its submission may be under way,
and takes seconds."""
_OVER = {RunState.SUCCEEDED, RunState.FAILED, RunState.CANCELLED}


class Environments:
    """The files of one home."""

    def __init__(self, home: Path) -> None:
        self._directory = home / "environments"

    def write(self, run: str, environment: Environment) -> None:
        """Store the environment of a run, durably.

        Raises:
            OSError: The disk is full or not writable.
        """
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        path = self._path(run)
        temporary = path.with_suffix(".part")
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        try:
            with os.fdopen(descriptor, "w") as file:
                file.write(environment.model_dump_json())
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except OSError:
            temporary.unlink(missing_ok=True)
            raise
        _sync(self._directory)

    def read(self, run: str) -> Environment | None:
        """The environment of a run; None: it is lost (or was never here)."""
        try:
            return Environment.model_validate_json(self._path(run).read_bytes())
        except OSError as error:
            _log.warning("environment of a run not read", run=run, error=error.strerror)
        except ValidationError as error:  # without its text, which may have values
            _log.warning("environment of a run is damaged", run=run, problems=error.error_count())
        return None

    def remove(self, run: str) -> None:
        """Remove the environment of a run; nothing happens if there is none."""
        for path in (self._path(run), self._path(run).with_suffix(".part")):
            with contextlib.suppress(OSError):
                path.unlink()

    def runs(self) -> list[tuple[str, float]]:
        """The runs that have one, each with the time of its writing in Unix seconds."""
        found = []
        for path in self._directory.glob("*.*"):
            with contextlib.suppress(FileNotFoundError):
                found.append((path.stem, path.stat().st_mtime))
        return found

    def _path(self, run: str) -> Path:
        return self._directory / f"{run}.json"


def _sync(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


async def sweep(environments: Environments, controller: Controller, clock: Clock) -> None:
    """Remove the environments of runs that are over; only a leader knows which these are."""
    for run, written in environments.runs():
        if not controller.is_leader:
            return
        if run not in controller.state.runs and await _is_over(controller, run, clock, written):
            environments.remove(run)


async def _is_over(controller: Controller, run: str, clock: Clock, written: float) -> bool:
    try:
        return (await controller.store.run(run)).state in _OVER
    except NotFoundError:
        return clock.now().timestamp() - written > _UNKNOWN_SECONDS


async def keep_swept(environments: Environments, controller: Controller, clock: Clock) -> None:
    """Sweep again and again, until cancelled."""
    while True:
        await clock.sleep(SWEEP_SECONDS)
        try:
            await sweep(environments, controller, clock)
        except BabysitError as error:
            _log.warning("environments not swept, will retry", error=str(error))
