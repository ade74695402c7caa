"""Starts the process of an agent."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

from jobs.agent.reaper import ENV_WORKER
from jobs.environment import Environment
from orchestrator.clusters.local.worker_records import WorkerRecord
from orchestrator.private_home import users_umask

ENVIRONMENT_FILE = Path("/dev/stdin")
"""Where the agent reads the environment that was submitted with its run."""


def required(submitted: Environment | None, home: Path) -> Environment:
    """The environment that was submitted.

    Raises:
        ValueError: It is lost.
    """
    if submitted is None:
        raise ValueError(
            "the environment that was submitted with it is not on this server's disk"
            f" ({home}): submit the run again"
        )
    return submitted


def start(
    command: Sequence[str], directory: Path, record: WorkerRecord, submitted: Environment
) -> subprocess.Popen[bytes]:
    """Start an agent in a session of its own, with its output in `directory`.

    Raises:
        OSError: The interpreter or the directory cannot be used.
    """
    with (directory / "output.log").open("ab") as output, _handed_over(submitted) as environment:
        return subprocess.Popen(  # noqa: S603 - the command is ours
            [*command],
            stdin=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=directory,
            env=_environment(record),
            start_new_session=True,
            umask=users_umask(),
        )


@contextlib.contextmanager
def _handed_over(submitted: Environment) -> Iterator[IO[bytes]]:
    """A file in memory with the environment, for the agent's stdin: nothing of it is on a disk."""
    with os.fdopen(os.memfd_create("environment"), "r+b") as file:
        file.write(submitted.model_dump_json().encode())
        file.seek(0)
        yield file


def _environment(record: WorkerRecord) -> dict[str, str]:
    """The server's environment, without its settings (some are secret), with mark and GPUs."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("BABYSIT_")}
    return {
        **inherited,
        ENV_WORKER: record.worker,
        "CUDA_VISIBLE_DEVICES": ",".join(record.devices),
    }
