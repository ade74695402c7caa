"""Run the agent of one worker: `babysit-agent CONFIG.json` (:mod:`babysit.agent`)."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TextIO, cast

import structlog
from pydantic import ValidationError

from jobs import log_output
from jobs.agent import orphans
from jobs.agent.errors import ConfigError
from jobs.agent.log_file import LogFile
from jobs.agent.worker import Agent
from jobs.checks.results import CHECKS_RUN
from jobs.checks.worker import CheckWorker
from jobs.clock import SystemClock
from jobs.config import ADDRESS_VARIABLE, AgentConfig
from jobs.environment import Environment
from jobs.log_files import LogLimit

_LOG_BYTES = 10 * 2**20
"""Size at which the log of the agent is rotated; one older file is kept."""


def read_config(path: Path) -> AgentConfig:
    """Read the agent's settings.

    Raises:
        ConfigError: The file is missing, unreadable or invalid. The message shows no values, since
            one of them is a secret.
    """
    try:
        return AgentConfig.model_validate_json(path.read_bytes())
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from error
    except ValidationError as error:
        faults = (
            f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors(include_input=False)
        )
        raise ConfigError(f"{path}: {'; '.join(faults)}") from None


class _Rotated:
    """The file of a log that takes a bounded part of the disk."""

    def __init__(self, path: Path) -> None:
        self._file = LogFile(path, LogLimit(bytes=_LOG_BYTES, files=2))

    def write(self, text: str) -> None:
        self._file.write(text.encode(errors="backslashreplace"))

    def flush(self) -> None:
        """Do nothing: every line is written at once."""


def log_to(path: Path, **always: str) -> None:
    """Send the log to a file, rotated, with one JSON object per line."""
    log_output.configure(cast("TextIO", _Rotated(path)), context=True)
    structlog.contextvars.bind_contextvars(**always)


def read_environment(path: Path | None) -> Environment:
    """Read the environment that was submitted with the run.

    Raises:
        ConfigError: It is unreadable or invalid. The message shows no values.
    """
    try:
        return Environment() if path is None else Environment.model_validate_json(path.read_bytes())
    except OSError as error:
        raise ConfigError(f"environment: {path}: {error.strerror}") from error
    except ValidationError as error:
        raise ConfigError(f"environment: {path}: {error.error_count()} problems") from None


def with_address(config: AgentConfig, given: Mapping[str, str]) -> AgentConfig:
    """The configuration with the node's address, from the environment where it has none itself.

    Raises:
        ConfigError: There is none: the other nodes could not reach this one.
    """
    if config.address:
        return config
    address = given.get(ADDRESS_VARIABLE, "").strip()
    if not address:
        raise ConfigError(
            f"the configuration has no address, and {ADDRESS_VARIABLE} is not set: the cluster"
            " names the address of the node in one of them"
        )
    return config.model_copy(update={"address": address})


async def serve(config: AgentConfig) -> None:
    """Run the agent until it ends.

    SIGTERM lets the ranks save first, for the grace at most; SIGINT, or a second SIGTERM, does not.
    """
    kind = CheckWorker if config.run == CHECKS_RUN else Agent
    agent = kind(config, SystemClock(), random.Random())
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, agent.depart, "SIGTERM")
    loop.add_signal_handler(signal.SIGINT, agent.leave, "SIGINT")
    await agent.run()


def main(arguments: list[str]) -> int:
    """Start the agent. Exit code: 0 in good order, 2 for a bad configuration; a crash raises."""
    if len(arguments) != 1:
        sys.stderr.write("usage: babysit-agent CONFIG.json\n")
        return 2
    try:
        config = with_address(read_config(Path(arguments[0])), os.environ)
        submitted = read_environment(config.environment_file)
        config = config.model_copy(update={"submitted": submitted})
    except ConfigError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    config.directory.mkdir(parents=True, exist_ok=True)
    config.memory_directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    log_to(config.directory / "agent.log", worker=config.worker, run=config.run)
    orphans.adopt()  # of a fork server that is killed
    pid_file = config.directory / "agent.pid"
    pid_file.write_text(f"{os.getpid()}\n")
    try:
        asyncio.run(serve(config))
    except KeyboardInterrupt:  # before it had its handler
        return 1
    except BaseException:
        structlog.get_logger(part="agent").exception("agent crashed")
        raise
    pid_file.unlink(missing_ok=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
