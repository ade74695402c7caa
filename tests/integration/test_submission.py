"""What goes with a submission to a server whose runs are not on this machine; what is refused."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from ulid import ULID

from jobs.clock import Clock
from jobs.environment import Environment
from jobs.events import Event
from orchestrator.cli import submission
from orchestrator.cli.errors import ExitCode, UnreachableError
from orchestrator.clusters.port import Cluster
from orchestrator.clusters.simulated import SimulatedCluster
from orchestrator.core.messages.events import NodeInfo
from orchestrator.core.messages.instructions import Instruction
from orchestrator.errors import NotLeaderError
from orchestrator.server.routes import runs
from tests.cli import babysit, connect, data
from tests.plane import SECRET, Plane

OK, USAGE = 0, 2


@pytest.fixture(scope="module")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Plane]:
    with Plane(tmp_path_factory.mktemp("home")) as running:
        yield running


@pytest.fixture(autouse=True)
def connected(plane: Plane, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    connect(plane, monkeypatch, tmp_path)
    monkeypatch.setenv("MY_TOKEN", "hush")


def stored(plane: Plane) -> dict[str, dict]:
    """The environments on the server's disk, by run."""
    files = (plane.settings.home / "environments").glob("*")
    return {file.stem: json.loads(file.read_text()) for file in files}


def spec(directory: Path, text: str = "") -> Path:
    file = directory / "run.yaml"
    file.write_text(f"name: away\ncommand: ['true']\n{text}")
    return file


def test_only_named_variables_leave_this_machine(plane: Plane, tmp_path: Path) -> None:
    file = spec(tmp_path, "env_from: [{variables: [MY_TOKEN]}]\n")
    submitted = babysit("submit", str(file), "-o", "json")
    assert "The run is not on this machine" in submitted.stderr
    run = json.loads(submitted.stdout)["id"]
    assert stored(plane)[run] == {"shell": None, "named": {"MY_TOKEN": "hush"}}
    assert "hush" not in json.dumps(data("show", run))
    babysit("cancel", run)


def test_a_server_whose_runs_are_elsewhere_drops_a_shell(plane: Plane, tmp_path: Path) -> None:
    body = {
        "spec": {"name": "away", "command": ["true"]},
        "base_directory": str(tmp_path),
        "environment": {"shell": {"PATH": "/mine"}, "named": {"A": "1"}},
    }
    with httpx.Client(base_url=f"{plane.url}/api/v1") as http:
        http.headers["Authorization"] = f"Bearer {SECRET}"
        answer = http.post("/runs", json=body).json()
        assert stored(plane)[answer["id"]] == {"shell": None, "named": {"A": "1"}}
        assert http.get("/info").json()["environment_of"] is None
    babysit("cancel", answer["id"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "env_from: [{variables: [NOT_SET]}]",
            "NOT_SET is not set in the environment of this shell",
        ),
        ("env_from: [{file: none.env}]", "none.env: No such file or directory"),
        ("env_from: [{file: a, variables: [B]}]", "give one of file, variables and secrets"),
        ("env_from: [{secrets: {A: hush}}]", "expected file:PATH or env:NAME"),
        ("workdir: $MY_WORK", "$MY_WORK is not set in the environment of the submission"),
        ("queue: nowhere", "no queue nowhere"),
    ],
)
def test_a_refused_submission_leaves_nothing(
    plane: Plane, tmp_path: Path, text: str, message: str
) -> None:
    before = stored(plane)
    result = babysit("submit", str(spec(tmp_path, text)))
    assert (result.exit_code, message in result.stderr) == (USAGE, True), result.stderr
    assert stored(plane) == before


@pytest.mark.parametrize("how", [(), ("--dry-run",)])
def test_a_field_that_the_cluster_needs_is_asked_for_at_submission(
    plane: Plane, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: tuple[str, ...]
) -> None:
    """On Kubernetes without a default image, say: no node could launch such a run."""
    before = stored(plane)
    monkeypatch.setattr(plane.controller, "needed_fields", {"image": "needed here: name one"})
    result = babysit("submit", str(spec(tmp_path)), *how)
    assert result.exit_code == USAGE
    assert "image: needed here: name one" in result.stderr
    assert stored(plane) == before
    assert babysit("submit", str(spec(tmp_path, "image: a:1")), "--dry-run").exit_code == OK


def test_values_that_nobody_has_read_are_missed(plane: Plane, tmp_path: Path) -> None:
    body = {
        "yaml": spec(tmp_path, "env_from: [{file: .env}]").read_text(),
        "base_directory": str(tmp_path),
    }
    answer = httpx.post(
        f"{plane.url}/api/v1/runs", json=body, headers={"Authorization": f"Bearer {SECRET}"}
    )
    assert answer.status_code == 422
    assert "env_from: its values are read by `babysit submit`" in answer.json()["error"]["message"]


def test_a_command_is_not_expanded_and_that_is_said(tmp_path: Path) -> None:
    file = spec(tmp_path)
    file.write_text("name: away\ncommand: [sh, -c, 'ls $HOME', ~/out, '$HOME/x', a$b]\n")
    result = babysit("submit", str(file), "--dry-run")
    notes = [line for line in result.stderr.splitlines() if "no shell expands it" in line]
    assert [note.partition(" command")[2] for note in notes] == [
        "[3]: ~/out is passed as it is: no shell expands it",
        "[4]: $HOME/x is passed as it is: no shell expands it",
    ]


def test_an_interpreter_that_is_not_on_path_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "train.py").touch()
    file = spec(tmp_path)
    file.write_text(f"name: away\ncommand: [python, train.py]\nenv: {{PATH: {tmp_path}}}\n")
    result = babysit("submit", str(file), "--dry-run")
    assert "no python on PATH: " in result.stderr
    assert result.exit_code == OK


def test_the_variables_that_stay_are_named_once(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from jobs.spec_file import loads

    monkeypatch.setenv("TMUX", "1")
    monkeypatch.setenv("SSH_TTY", "1")
    monkeypatch.setenv("MASTER_ADDR", "1")
    given = loads("name: a\ncommand: [x]\nenv: {MASTER_ADDR: h}\n")
    submission.say_dropped({}, given, {"SSH_TTY": "1"})
    said = capsys.readouterr().err
    assert "TMUX" in said
    assert "SSH_TTY" not in said
    assert "MASTER_ADDR" not in said
    assert "BABYSIT_HOME" not in said


def _away(tmp_path: Path) -> dict[str, object]:
    spec = {"name": "away", "command": ["true"]}
    return {"spec": spec, "base_directory": str(tmp_path), "environment": {"named": {"A": "1"}}}


def _headers(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {SECRET}", "Idempotency-Key": key}


def test_a_submission_sent_twice_at_once_is_one_run(
    plane: Plane, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key, writes, both_read = str(ULID()), [], threading.Barrier(2)
    write, checked = plane.context.environments.write, runs._checked

    async def read(*arguments: Any) -> Any:
        found = await checked(*arguments)
        await asyncio.to_thread(both_read.wait, 30)
        return found

    def counted(run: str, environment: Environment) -> None:
        writes.append(run)
        write(run, environment)

    monkeypatch.setattr(runs, "_checked", read)
    monkeypatch.setattr(plane.context.environments, "write", counted)
    with ThreadPoolExecutor() as threads:
        sent = [
            threads.submit(
                httpx.post, f"{plane.url}/api/v1/runs", json=_away(tmp_path), headers=_headers(key)
            )
            for _ in range(2)
        ]
        answers = [each.result() for each in sent]
    assert [(each.status_code, each.json()["id"]) for each in answers] == [(201, key)] * 2
    assert writes == [key]
    babysit("cancel", key)


def test_a_run_that_may_be_stored_keeps_its_environment(
    plane: Plane, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The leader steps down after it has stored the run, and before it can say so."""
    key, submit = str(ULID()), plane.controller.submit

    async def steps_down(event: Event) -> list[Instruction]:
        await submit(event)
        raise NotLeaderError("this server is stopping")

    monkeypatch.setattr(plane.controller, "submit", steps_down)
    url, body = f"{plane.url}/api/v1/runs", _away(tmp_path)
    assert httpx.post(url, json=body, headers=_headers(key)).status_code == 503
    assert stored(plane)[key]["named"] == {"A": "1"}
    assert httpx.post(url, json=body, headers=_headers(key)).json()["id"] == key
    other = {**body, "spec": {"name": "away", "command": ["true"], "project": "other"}}
    assert httpx.post(url, json=other, headers=_headers(key)).status_code == 409
    monkeypatch.undo()


def test_a_server_that_does_not_lead_stores_nothing(
    plane: Plane, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = stored(plane)
    monkeypatch.setattr(type(plane.controller), "is_leader", False)
    answer = httpx.post(
        f"{plane.url}/api/v1/runs", json=_away(tmp_path), headers=_headers(str(ULID()))
    )
    assert answer.json()["error"]["kind"] == "not_leader"
    assert stored(plane) == before


class OtherMachines(Plane):
    """A server of this machine, whose workers are on others: one of Ray or Kubernetes."""

    def make_cluster(self, clock: Clock) -> Cluster:
        cluster = SimulatedCluster([NodeInfo(id="node-1", cpus=2)], clock)
        cluster.runs_here, cluster.takes_bundles = False, True
        return cluster


def test_a_server_of_this_home_is_asked_where_its_runs_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`babysit server --cluster ray` says it to its own shell only: submit sends the code."""
    for name in ("BABYSIT_SERVER", "BABYSIT_CLUSTER"):
        monkeypatch.delenv(name, raising=False)
    code, home = tmp_path / "code", tmp_path / "home"
    code.mkdir()
    home.mkdir(mode=0o700)
    (code / "train.py").write_text("print(1)")
    monkeypatch.setenv("BABYSIT_HOME", str(home))
    with OtherMachines(home) as plane:
        submitted = babysit("submit", str(spec(code)), "-o", "json")
        assert submitted.exit_code == OK, submitted.output
        assert plane.controller.state.runs[json.loads(submitted.stdout)["id"]].bundle
        assert len(list((home / "bundles").glob("*.tar"))) == 1


def test_a_server_that_does_not_answer_a_submission_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def silent(*_: object, **__: object) -> None:
        raise UnreachableError("no answer from here: timed out")

    monkeypatch.setattr("orchestrator.cli.client.Api.post", silent)
    submitted = babysit("submit", str(spec(tmp_path)))
    assert submitted.exit_code == ExitCode.UNREACHABLE
    assert "no answer from here: timed out" in submitted.stderr
