"""The local cluster's records of its workers: one small file each, on disk.

Under `<home>/runs/<run>/workers/<worker>/` lie `config.json` (the agent's, with its token),
`worker.json` (:class:`WorkerRecord`), `output.log` (the agent's stdout and stderr) and what the
agent itself keeps there. The files outlive the server: the next server finds its workers by them.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from jobs.processes import Identity
from orchestrator.clusters.errors import ClusterError

_RECORD = "worker.json"
_TMPFS = Path("/dev/shm")  # noqa: S108 - checked to be ours before use

_LEVELS = 3
"""Directories above a worker's memory: the run's, the home's, this user's (or the home itself)."""


class WorkerRecord(BaseModel):
    """One worker's life. A worker is started once: a new agent is a new worker."""

    model_config = ConfigDict(frozen=True)

    worker: str
    run: str
    node: str
    devices: tuple[str, ...] = ()
    """UUIDs of the worker's GPUs."""
    agent: Identity | None = None
    """None: the start is under way, or the server died during it."""
    gone: str | None = None
    """Why no process of the worker is left; None if there may be one."""
    acknowledged: bool = False
    """True once the control plane has stored the worker's end."""


class Records:
    """The files of one home's workers."""

    def __init__(self, home: Path) -> None:
        self.home = home

    def directory(self, run: str, worker: str) -> Path:
        """The worker's own directory on disk."""
        return self.home / "runs" / run / "workers" / worker

    def logs(self, run: str) -> Path:
        """The directory of the output of the run's ranks."""
        return self.home / "runs" / run / "logs"

    def memory(self, run: str, worker: str) -> Path:
        """The worker's directory on tmpfs, or under home without `/dev/shm`. Creates nothing.

        Raises:
            ClusterError: Another user owns the directory above it.
        """
        if not os.access(_TMPFS, os.W_OK):
            return self.home / "memory" / run / worker
        ours = _TMPFS / f"babysit-{os.getuid()}"
        with contextlib.suppress(FileNotFoundError):
            found = ours.lstat()
            if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
                raise ClusterError(f"{ours} belongs to someone else: have it removed")
        digest = hashlib.blake2b(bytes(self.home), digest_size=8).hexdigest()
        return ours / digest / run / worker

    def make_memory(self, run: str, worker: str) -> None:
        """Create :meth:`memory` and the directories above it, for this user alone.

        Raises:
            ClusterError: As :meth:`memory`.
            OSError: The directory cannot be created.
        """
        path = self.memory(run, worker)
        for directory in (*reversed(path.parents[:_LEVELS]), path):
            directory.mkdir(mode=0o700, exist_ok=True)
        # Checks the owner again: another user may have created it since the check above.
        self.memory(run, worker)

    def free_memory(self, run: str, worker: str) -> bool:
        """Remove :meth:`memory` and the empty directories above it. Blocks.

        Returns:
            True if the directory no longer exists.

        Raises:
            ClusterError: As :meth:`memory`.
        """
        path = self.memory(run, worker)
        shutil.rmtree(path, ignore_errors=True)
        for directory in path.parents[:_LEVELS]:
            with contextlib.suppress(OSError):  # not empty: others use it
                directory.rmdir()
        return not path.exists()

    @contextlib.contextmanager
    def locked(self, run: str, worker: str) -> Iterator[None]:
        """Create the worker's directory, and hold its lock against other servers."""
        directory = self.directory(run, worker)
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def read(self, run: str, worker: str) -> WorkerRecord | None:
        """The worker's record; None if it has none."""
        return _read(self.directory(run, worker) / _RECORD)

    def write(self, record: WorkerRecord) -> None:
        """Replace the record atomically."""
        path = self.directory(record.run, record.worker) / _RECORD
        write_private(path, record.model_dump_json())

    def unacknowledged(self) -> list[WorkerRecord]:
        """Workers whose end the control plane has not stored yet, by id."""
        paths = sorted(self.home.glob(f"runs/*/workers/*/{_RECORD}"))
        records = (_read(path) for path in paths)
        return [record for record in records if record and not record.acknowledged]


def _read(path: Path) -> WorkerRecord | None:
    try:
        return WorkerRecord.model_validate_json(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValidationError:
        # Emptied by a power cut, say. Processes, if there are any, are still found by their mark.
        return WorkerRecord(worker=path.parent.name, run=path.parents[2].name, node="")


def write_private(path: Path, text: str) -> None:
    """Replace a file atomically by one that only its owner may read."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
    temporary.replace(path)
