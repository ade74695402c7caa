"""The command line when things break: servers that restart, odd input, text that others wrote."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from jobs.clock import SystemClock
from orchestrator.cli import patience
from orchestrator.cli.client import Api
from orchestrator.cli.errors import CliError, ExitCode, UnreachableError
from orchestrator.cli.paths import checkpoint_path, path
from orchestrator.cli.session import Session
from tests.cli import babysit, connect, data
from tests.plane import RUN_ID, Plane, finished, finished_run, incident

ROOT = Path(__file__).parents[2]
OK, FAILED, USAGE = 0, 1, 2


@pytest.fixture(scope="module")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Plane]:
    with Plane(tmp_path_factory.mktemp("home")) as running:
        finished(running)
        yield running


@pytest.fixture(autouse=True)
def connected(plane: Plane, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    connect(plane, monkeypatch, tmp_path)
    monkeypatch.setattr(Session, "wait", lambda *_: None)


@pytest.fixture
def flaky(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every second request after the first finds no server; the paths that were asked for."""
    get, calls = Api.get, list[str]()

    def broken(self: Api, where: str, **params: Any) -> Any:
        calls.append(where)
        if len(calls) % 2 == 0:
            raise UnreachableError("Server disconnected without sending a response.")
        return get(self, where, **params)

    monkeypatch.setattr(Api, "get", broken)
    return calls


@pytest.mark.parametrize(
    "command",
    [
        ["wait", "tiny"],
        ["watch", "tiny"],
        ["events", "tiny", "-f"],
        ["events", "tiny", "-f", "-o", "json"],
        ["logs", "tiny", "-f"],
        ["logs", "tiny", "-f", "--controller"],
    ],
    ids=" ".join,
)
def test_commands_that_follow_ride_out_a_broken_connection(
    plane: Plane, flaky: list[str], command: list[str]
) -> None:
    log = plane.settings.log_directory(RUN_ID) / "attempt-0002" / "rank-00000.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    log.write_text("a line\n")
    plane.settings.server_log.write_text(f'{{"run": "{RUN_ID}"}}\n')
    result = babysit(*command)
    assert result.exit_code == OK, result.output
    assert len(flaky) > 1
    if len(flaky) > 1 and command[0] != "wait":
        assert "The control plane does not answer; runs go on." in result.stderr
        assert "The control plane answers again." in result.stderr


class Minutes(SystemClock):
    """Each reading of the clock is a minute later."""

    now_ = 0.0

    def monotonic(self) -> float:
        self.now_ += 60.0
        return self.now_


@pytest.mark.parametrize(("reached", "minutes"), [(True, 5), (False, 0)])
def test_patience_ends_after_minutes_and_sooner_with_a_stranger(
    reached: bool, minutes: int
) -> None:
    asked = []

    class Here:
        clock = Minutes()
        api: Any

        def reconnect(self) -> None:
            asked.append("again")

        def wait(self, seconds: float) -> None:
            pass

    class Absent:
        def get(self, *_: object, **__: object) -> Any:
            raise UnreachableError("gone")

    class There:
        def get(self, *_: object, **__: object) -> Any:
            return {}

    here = Here()
    patient = patience.PatientApi(here)
    if reached:
        here.api = There()
        patient.get("/runs")
    here.api = Absent()
    with pytest.raises(UnreachableError, match="gone"):
        patient.get("/runs")
    assert len(asked) >= minutes
    assert len(asked) <= minutes + 2


def test_followed_events_are_one_json_object_per_line() -> None:
    lines = babysit("events", "tiny", "-f", "-o", "json").stdout.splitlines()
    rows = [json.loads(line) for line in lines]
    assert rows == data("events", "tiny")
    table = babysit("events", "tiny", "-f").stdout
    assert table.count("ATTEMPT") <= 1, "one head"


@pytest.mark.parametrize("reference", ["", ".", "..", "../tokens", "a/b", "/"])
@pytest.mark.parametrize("command", ["show", "cancel", "hold", "release", "explain", "logs"])
def test_a_run_is_a_name_and_nothing_else(command: str, reference: str) -> None:
    result = babysit(command, reference)
    assert (result.exit_code, result.stdout) == (USAGE, "")
    assert f"expected a name or an id, got {reference!r}" in result.stderr


def test_paths_are_quoted() -> None:
    assert path("runs", "a?b#c d%2F\n") == "/runs/a%3Fb%23c%20d%252F%0A"
    assert checkpoint_path("tiny", "2/directory/40") == "/runs/tiny/checkpoints/2/directory/40"
    with pytest.raises(CliError):
        checkpoint_path("tiny", "../../tokens")


def shell(home: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-P", "-m", "orchestrator.cli.main", *arguments],
        env={"PYTHONPATH": str(ROOT), "BABYSIT_HOME": str(home), "PATH": "/bin", **environment},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(
    ("arguments", "environment", "said"),
    [
        (["ls"], {"BABYSIT_SERVER": "http://[::1"}, "BABYSIT_SERVER: expected a URL"),
        (["ls"], {"BABYSIT_SERVER": "http://x:port"}, "BABYSIT_SERVER: expected a URL"),
        (["ls"], {"BABYSIT_SERVER": "https://"}, "BABYSIT_SERVER: expected a URL"),
        (["ls"], {"BABYSIT_TOKEN": "abc\ndef"}, "BABYSIT_TOKEN: expected the secret"),
        (["ls"], {"BABYSIT_TOKEN": "schlüssel"}, "BABYSIT_TOKEN: expected the secret"),
        (
            ["ls"],
            {"BABYSIT_SERVER": "http://babysit.example.org", "BABYSIT_TOKEN": "secret-1"},
            "the token would cross the network unencrypted",
        ),
        (
            ["nodes", "maintain", "n", "--from", "9999-12-31", "--for", "9d", "--reason", "x"],
            {},
            "--for: 9d ends after the year 9999",
        ),
        (
            ["nodes", "maintain", "n", "--for", "99999999999d", "--reason", "x"],
            {},
            "--for: expected at most 36525d, got '99999999999d'",  # not 200 years without a word
        ),
        (["token", "create", "x", "--expires", "soon"], {}, "--expires: expected a duration"),
        (["token", "create", "x", "--expires", "1e9d"], {}, "--expires: expected a duration"),
        (["wait", "r", "--timeout", "40000d"], {}, "--timeout: expected at most 36525d"),
        (["logs", "r", "--since", "9999999w"], {}, "--since: expected at most 36525d"),
    ],
)
def test_odd_input_is_a_matter_of_usage(
    plane: Plane, tmp_path: Path, arguments: list[str], environment: dict[str, str], said: str
) -> None:
    given = {"BABYSIT_SERVER": plane.url, "BABYSIT_TOKEN": "x", **environment}
    done = shell(tmp_path, *arguments, **given)
    assert done.returncode == USAGE, done.stderr
    assert said in done.stderr
    secret = environment.get("BABYSIT_TOKEN", "")
    assert not secret or secret not in done.stderr


@pytest.mark.parametrize("error", [RuntimeError("two\nlines"), KeyError("x"), ValueError()])
def test_a_defect_has_an_exit_code_of_its_own(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def broken(*_: object, **__: object) -> Any:
        raise error

    monkeypatch.setattr(Api, "get", broken)
    result = babysit("ls")
    assert (result.exit_code, result.stdout) == (ExitCode.DEFECT, "")
    assert f"This command failed: {type(error).__name__}" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_full_disk_is_no_failed_run(plane: Plane, tmp_path: Path) -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-P", "-m", "orchestrator.cli.main", "show", "tiny"],
            env={
                "PYTHONPATH": str(ROOT),
                "BABYSIT_HOME": str(tmp_path),
                "BABYSIT_SERVER": plane.url,
                "BABYSIT_TOKEN": "first-token",
                "PATH": "/bin",
            },
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert done.returncode == ExitCode.DEFECT, done.stderr
    assert "No space left on device" in done.stderr


EVIL = "ValueError: \x1b]0;owned\x07\x9b2J\u202egnp.exe\nforged  line"


def test_what_others_wrote_does_not_reach_the_terminal_raw(plane: Plane) -> None:
    run = finished_run(id="01JNB0000000000000000EVIL0", name="evil", reason=EVIL, owner=EVIL)
    plane.write(entities=[run])
    plane.write(entities=[incident(id="01JNB00000000EVILINCIDENT0", run=run.id, reason=EVIL)])
    for command in (
        ["ls", "-o", "wide"],
        ["ls"],
        ["show", "evil"],
        ["show", "evil", "-o", "wide"],
        ["explain", "evil"],
        ["logbook", "evil"],
        ["incidents", "ls", "-o", "wide"],
        ["incidents", "show", "01JNB00000000EVILINCIDENT0"],
        ["wait", "evil"],
        ["watch", "evil"],
        ["watch"],
    ):
        result = babysit(*command)
        found = set(result.output) & {"\x1b", "\x07", "\x9b", "\u202e"}
        assert not found, (command, found)
    rows = babysit("ls", "-o", "wide").stdout.splitlines()
    assert not any(row.startswith("forged") for row in rows)
