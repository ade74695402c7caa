"""Whose server a home has: of this machine or another, of this process or an earlier one."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from jobs.clock import SystemClock
from orchestrator.cli import embedded
from orchestrator.cli.errors import UnreachableError
from orchestrator.server.server_file import (
    ServerRecord,
    is_alive,
    read_record,
    this_process,
    write_record,
)
from orchestrator.settings import Settings
from tests.cli import babysit

USAGE, REFUSED, UNREACHABLE = 2, 4, 6


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    tmp_path.chmod(0o700)
    monkeypatch.delenv("BABYSIT_SERVER", raising=False)
    monkeypatch.delenv("BABYSIT_TOKEN", raising=False)
    monkeypatch.setenv("BABYSIT_HOME", str(tmp_path))
    return tmp_path


def record(home: Path, **fields: object) -> ServerRecord:
    made = ServerRecord.model_validate(
        {"process": this_process(), "host": os.uname().nodename, "url": "unix:x", **fields}
    )
    write_record(home / "server.json", made)
    return made


@pytest.fixture
def held(home: Path) -> Iterator[Path]:
    """A server elsewhere holds the lock of the home."""
    record(home, host="login-7")
    with (home / "server.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield home


def test_a_server_on_another_machine_is_named(held: Path) -> None:
    with pytest.raises(UnreachableError, match="runs on login-7: run this command there"):
        embedded.ensure(Settings(home=held), SystemClock())
    listed = babysit("ls")
    assert listed.exit_code == UNREACHABLE
    stopped = babysit("server", "stop")
    assert stopped.exit_code == REFUSED, "it was not stopped"
    assert "runs on login-7: stop it there" in stopped.stderr


def test_a_server_that_ended_on_another_machine_is_no_obstacle(home: Path) -> None:
    record(home, host="login-7")
    assert embedded.elsewhere(Settings(home=home)) is None
    assert babysit("server", "stop").exit_code == 0


def test_a_pid_that_was_used_again_is_no_server(home: Path) -> None:
    mine = record(home)
    assert is_alive(mine)
    earlier = mine.process.model_copy(update={"start": mine.process.start - 1})
    assert not is_alive(record(home, process=earlier))
    assert not is_alive(record(home, host="login-7")), "a pid says nothing elsewhere"


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b'{"pid": 1, "url": "x"}'])
def test_a_record_that_cannot_be_read_is_none(home: Path, content: bytes) -> None:
    (home / "server.json").write_bytes(content)
    assert read_record(home / "server.json") is None
    assert babysit("server", "status").exit_code == UNREACHABLE


def test_a_home_that_others_can_enter_is_not_used(home: Path) -> None:
    home.chmod(0o755)
    result = babysit("ls")
    assert (result.exit_code, result.stdout) == (UNREACHABLE, "")
    assert f"chmod 700 {home}" in result.stderr
    assert not (home / "server.json").exists(), "no server was started"
    assert "chmod 700" in babysit("doctor").stdout
    assert "chmod 700" in babysit("server", "status").stderr, "not: the next command starts it"
    assert babysit("db", "upgrade").exit_code == REFUSED
    home.chmod(0o700)


def test_a_home_that_cannot_be_is_not_promised_a_server(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BABYSIT_HOME", "/dev/null/home")
    status = babysit("server", "status")
    assert (status.exit_code, "set BABYSIT_HOME" in status.stderr) == (UNREACHABLE, True)
    demo = babysit("demo", "--output", "/dev/null/demo")
    assert (demo.exit_code, "--output /dev/null/demo: cannot be" in demo.stderr) == (USAGE, True)


def test_a_server_gets_no_token_from_its_caller(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would take a viewer's token for its own, which has the role admin."""
    monkeypatch.setenv("BABYSIT_TOKEN", "babysit_of-a-viewer")
    given = embedded._own_environment(Settings())
    assert "BABYSIT_TOKEN" not in given
    assert given["BABYSIT_HOME"] == str(home)
