"""Telling processes apart (jobs.processes)."""

from __future__ import annotations

import os
import select
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from jobs.processes import end_of, identify, is_alive, open_pidfd, send_signal


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(["sleep", "600"])
    yield process
    process.kill()
    process.wait()


def test_a_process_is_itself(sleeper: subprocess.Popen[bytes]) -> None:
    identity = identify(sleeper.pid)
    assert identity is not None
    assert is_alive(identity)
    assert identity == identify(sleeper.pid)


@pytest.mark.parametrize("change", [{"start": 1}, {"boot": "another"}])
def test_a_recycled_pid_is_someone_else(
    sleeper: subprocess.Popen[bytes], change: dict[str, object]
) -> None:
    identity = identify(sleeper.pid)
    assert identity is not None
    former = identity.model_copy(update=change)
    assert not is_alive(former)
    assert open_pidfd(former) is None


def test_a_zombie_has_ended(sleeper: subprocess.Popen[bytes]) -> None:
    identity = identify(sleeper.pid)
    assert identity is not None
    sleeper.kill()
    os.waitid(os.P_PID, sleeper.pid, os.WEXITED | os.WNOWAIT)
    assert not is_alive(identity)
    assert open_pidfd(identity) is None


def test_a_name_may_hold_blanks_and_parentheses(tmp_path: Path) -> None:
    program = tmp_path / "a) Z 1 (b"
    program.write_text("#!/bin/sh\necho up\nread line\n")
    program.chmod(0o755)
    with subprocess.Popen(
        [str(program)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        identity = identify(process.pid)
        process.communicate("")
    assert Path(f"/proc/{process.pid}").exists() is False
    assert identity is not None
    mine = identify(os.getpid())
    assert mine is not None
    assert identity.start >= mine.start


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_an_end_by_signal_in_words(
    sleeper: subprocess.Popen[bytes], number: signal.Signals
) -> None:
    identity = identify(sleeper.pid)
    assert identity is not None
    descriptor = open_pidfd(identity)
    assert descriptor is not None
    send_signal(descriptor, number)
    select.select([descriptor], [], [])
    assert end_of(descriptor) == f"was killed by {number.name}"
    send_signal(descriptor, number)  # to one who is gone: no error
    os.close(descriptor)


def test_an_exit_in_words() -> None:
    process = subprocess.Popen(["sh", "-c", "exit 3"])
    descriptor = os.pidfd_open(process.pid)
    select.select([descriptor], [], [])
    assert end_of(descriptor) == "exited with code 3"
    os.close(descriptor)
    process.wait()


def test_nobody_has_an_unused_pid() -> None:
    process = subprocess.Popen(["true"])
    process.wait()
    assert identify(process.pid) is None
