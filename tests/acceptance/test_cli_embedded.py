"""The embedded control plane: found, started, shared, told about when it fails. Real processes."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.server.server_file import is_alive, read_record

ROOT = Path(__file__).parents[2]


class Shell:
    """Runs `babysit` as a person would, in a home of its own."""

    def __init__(self, home: Path) -> None:
        self.home = home
        inherited = {k: v for k, v in os.environ.items() if not k.startswith("BABYSIT_")}
        self.environment = {
            **inherited,
            "BABYSIT_HOME": str(home),
            "BABYSIT_LOCAL_NODES": "2",
            "PYTHONPATH": str(ROOT),
        }

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        # A test run in the background of a shell ignores SIGINT, and its children would too.
        undisturbed = ("env", "--default-signal=INT")
        return subprocess.Popen(
            [*undisturbed, sys.executable, "-P", "-m", "orchestrator.cli.main", *arguments],
            cwd=self.home.parent,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def __call__(self, *arguments: str) -> tuple[int, str, str]:
        process = self.start(*arguments)
        out, err = process.communicate(timeout=120)
        return process.returncode, out, err


@pytest.fixture
def shell(tmp_path: Path) -> Iterator[Shell]:
    here = Shell(tmp_path / "home")
    yield here
    record = read_record(here.home / "server.json")
    if record is not None and is_alive(record):
        code, _, err = here("server", "stop")
        assert code == 0, err


def test_it_is_started_once_and_shared(shell: Shell) -> None:
    code, out, err = shell("server", "status")
    assert (code, out) == (6, ""), "looking starts nothing"
    assert "starts it" in err
    assert not (shell.home / "server.json").exists()

    both = [shell.start("nodes", "ls", "-o", "name") for _ in range(2)]
    for process in both:
        out, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
        assert out.split() == ["node-1", "node-2"]
    record = read_record(shell.home / "server.json")
    assert record is not None
    assert is_alive(record)
    assert stat.S_IMODE((shell.home / "server.json").stat().st_mode) == 0o600

    code, out, _ = shell("server", "status", "-o", "json")
    assert (code, json.loads(out)["url"]) == (0, record.url)
    values = [line.partition(":")[2] for line in shell("server", "status")[1].splitlines()]
    assert all(value.startswith(" ") and value.strip() for value in values), "a page to read"
    assert shell("server")[0] == 4, "a second server of the same home is refused"


def test_a_killed_server_is_replaced(shell: Shell) -> None:
    assert shell("ls")[0] == 0
    first = read_record(shell.home / "server.json")
    assert first is not None
    os.kill(first.pid, signal.SIGKILL)
    code, out, err = shell("ls", "-o", "json")
    assert (code, json.loads(out)) == (0, []), err
    second = read_record(shell.home / "server.json")
    assert second is not None
    assert second.pid != first.pid


def test_a_stopped_server_is_gone(shell: Shell) -> None:
    assert shell("ls")[0] == 0
    record = read_record(shell.home / "server.json")
    assert record is not None
    code, _, err = shell("db", "restore", "copy.db")
    assert (code, "babysit server stop" in err) == (4, True), "not under a server that runs"
    assert shell("server", "stop")[0] == 0
    assert not is_alive(record)
    code, _, err = shell("server", "stop")
    assert (code, "No server" in err) == (0, True)


def test_a_server_that_cannot_start_says_why(shell: Shell) -> None:
    shell.environment["BABYSIT_DATABASE_URL"] = "mysql://nowhere/x"
    code, out, err = shell("ls")
    assert (code, out) == (6, "")
    assert "the embedded control plane ended with exit code 2" in err
    assert "mysql" in err, "the end of its log is shown"


def test_a_home_that_cannot_be_used(shell: Shell, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    shell.environment["BABYSIT_HOME"] = str(tmp_path / "file" / "home")
    code, _, err = shell("ls")
    assert code == 6
    assert "home: Not a directory; set BABYSIT_HOME" in err


def test_a_wrong_spec_starts_nothing(shell: Shell) -> None:
    file = shell.home.parent / "run.yaml"
    file.write_text("name: x\ncommand: [python, train.py]\n")
    code, out, err = shell("run", str(file))
    assert (code, out) == (2, "")
    assert f"{file}:2:10: command: train.py: no such file in {file.parent}" in err
    assert not shell.home.exists()


def test_control_c_detaches_and_the_run_goes_on(shell: Shell) -> None:
    file = shell.home.parent / "run.yaml"
    file.write_text("name: slow\ncommand: [sleep, '600']\n")
    process = shell.start("run", str(file))
    assert process.stderr is not None
    for line in process.stderr:
        if " starting: attempt 1 " in line or " running: " in line:
            break
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Detached; slow goes on." in err
    assert json.loads(shell("show", "slow", "-o", "json")[1])["ended_at"] is None
    assert shell("cancel", "slow")[0] == 0
    assert shell("wait", "slow", "--timeout", "60s")[0] == 7


def test_following_rides_out_a_server_that_is_killed(shell: Shell) -> None:
    file = shell.home.parent / "run.yaml"
    file.write_text("name: slow\ncommand: [sleep, '600']\n")
    assert shell("submit", str(file))[0] == 0
    follower = shell.start("wait", "slow")
    record = read_record(shell.home / "server.json")
    assert record is not None
    os.kill(record.pid, signal.SIGKILL)
    assert shell("cancel", "slow")[0] == 0
    _, err = follower.communicate(timeout=120)
    assert follower.returncode == 7, err


def test_a_viewers_token_stays_a_viewers(shell: Shell) -> None:
    """The first command after a stop hands its environment to the server that it starts."""
    code, secret, err = shell("token", "create", "grafana", "--role", "viewer")
    assert code == 0, err
    shell.environment["BABYSIT_TOKEN"] = secret.strip()
    assert shell("ls")[0] == 0
    assert shell("server", "stop")[0] == 0
    code, _, err = shell("hold")
    assert (code, "the token grafana has viewer" in err) == (5, True)
    del shell.environment["BABYSIT_TOKEN"]
    assert shell("token", "revoke", "grafana")[0] == 0
    shell.environment["BABYSIT_TOKEN"] = secret.strip()
    assert shell("server", "stop")[0] == 0
    code, _, err = shell("ls")
    assert (code, "the token grafana was revoked" in err) == (5, True)
    del shell.environment["BABYSIT_TOKEN"]
