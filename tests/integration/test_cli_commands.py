"""The command line against a control plane: data, messages, and every exit code."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from orchestrator.cli import follow
from orchestrator.cli.completion import complete_run
from orchestrator.cli.main import app
from orchestrator.core.model.states import RunState
from orchestrator.core.model.time_ledger import Ledger
from tests.cli import babysit, connect, data
from tests.plane import RUN_ID, Plane, at, finished, finished_run

OK, FAILED, USAGE, NOT_FOUND, REFUSED, NOT_ALLOWED, UNREACHABLE, CANCELLED, TIMED_OUT = range(9)


@pytest.fixture(scope="module")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Plane]:
    with Plane(tmp_path_factory.mktemp("home")) as running:
        finished(running)
        for name, state in (("lost", RunState.FAILED), ("ended", RunState.CANCELLED)):
            running.write(entities=[over(name, state)])
        yield running


def over(name: str, state: RunState) -> Any:
    return finished_run(
        id=f"01JNB0000000000000000{name.upper():0>5}"[:26],
        name=name,
        state=state,
        reason="RuntimeError: boom",
        attempt=0,
        ledger=Ledger(since=at(0)),
        submitted_at=at(-100),
    )


@pytest.fixture(autouse=True)
def connected(plane: Plane, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    connect(plane, monkeypatch, tmp_path)


@pytest.fixture
def spec_file(tmp_path: Path) -> Path:
    file = tmp_path / "run.yaml"
    file.write_text("name: fresh\ncommand: ['true']\n")
    return file


@pytest.fixture
def fresh(spec_file: Path) -> Iterator[str]:
    run = data("submit", str(spec_file))["id"]
    yield run
    babysit("cancel", run)


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["show", "tiny"], OK, ""),
        (["wait", "tiny"], OK, "tiny succeeded at step 200"),
        (["wait", "tiny", "--for", "running"], OK, ""),
        (["wait", "tiny", "--for", "step=150"], OK, ""),
        (
            ["wait", "lost"],
            FAILED,
            "before success, at step 200: it failed: RuntimeError",
        ),
        (["watch", "lost"], FAILED, ""),
        (["wait", "tiny", "--for", "sunrise"], USAGE, "expected succeeded, running or step=N"),
        (["wait", "tiny", "--timeout", "soon"], USAGE, "expected a duration such as 90s"),
        (["rollback", "tiny", "--skip", "9"], USAGE, "expected FIRST:LAST"),
        (["nodes", "drain", "node-1"], USAGE, "Missing option '--reason'"),
        (["frobnicate"], USAGE, "No such command"),
        (["submit", "nowhere.yaml"], USAGE, "nowhere.yaml: no such file"),
        (["show", "nobody"], NOT_FOUND, "no run 'nobody'; see `babysit ls`"),
        (["incidents", "show", "nothing"], NOT_FOUND, "'nothing'; see `babysit incidents ls`"),
        (["nodes", "show", "node-9"], NOT_FOUND, "there is no node node-9"),
        (["incidents", "ack", "NOTHERE"], NOT_FOUND, ""),
        (["checkpoints", "pin", "tiny", "30"], NOT_FOUND, "steps: 20, 40"),
        (["logs", "tiny"], NOT_FOUND, "has written no log yet"),
        (["cancel", "tiny"], REFUSED, "over"),
        (["release", "tiny"], REFUSED, ""),
        (["wait", "tiny", "--for", "step=999"], REFUSED, "before step 999"),
        (["wait", "ended"], CANCELLED, ""),
        (["watch", "ended"], CANCELLED, ""),
    ],
)
def test_exit_codes(arguments: list[str], code: int, said: str) -> None:
    result = babysit(*arguments)
    assert result.exit_code == code, result.output
    assert said in " ".join(result.stderr.replace("│", " ").split())
    if code != OK and arguments[0] != "watch":
        assert result.stdout == ""


def test_not_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    viewer = data("token", "create", "grafana", "--role", "viewer")["secret"]
    monkeypatch.setenv("BABYSIT_TOKEN", viewer)
    assert babysit("ls").exit_code == OK
    result = babysit("hold", "--reason", "x")
    assert (result.exit_code, result.stdout) == (NOT_ALLOWED, "")
    assert "needs the role operator; the token grafana has viewer" in result.stderr
    monkeypatch.setenv("BABYSIT_TOKEN", "wrong")
    assert babysit("ls").exit_code == NOT_ALLOWED


def test_unreachable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BABYSIT_SERVER", "http://127.0.0.1:1")
    result = babysit("ls")
    assert (result.exit_code, result.stdout) == (UNREACHABLE, "")
    assert "no answer from http://127.0.0.1:1" in result.stderr
    assert complete_run("t") == [], "completion is silent"


def test_timed_out(fresh: str) -> None:
    result = babysit("wait", fresh, "--timeout", "50ms")
    assert result.exit_code == TIMED_OUT
    assert "fresh is " in result.stderr


def test_a_wrong_setting_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BABYSIT_SERVER", "somewhere")
    result = babysit("ls")
    assert result.exit_code == USAGE
    assert "BABYSIT_SERVER: expected a URL" in result.stderr


def test_a_wrong_spec_is_told_and_nothing_is_made(tmp_path: Path) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text("name: bad\ncommand: [x]\nresorces: {}\n")
    before = [row["id"] for row in data("ls")]
    for command in ("submit", "run"):
        result = babysit(command, str(file))
        assert result.exit_code == USAGE
        assert result.stdout == ""
        assert f"{file}:3:1: resorces: no such field; did you mean resources?" in result.stderr
    file.write_text("name: big\ncommand: ['true']\nresources: {nodes: 9}\n")
    result = babysit("submit", str(file))
    assert result.exit_code == USAGE
    assert "the cluster has 2 nodes" in result.stderr
    assert [row["id"] for row in data("ls")] == before


READS: list[list[str]] = [
    ["ls"],
    ["show", "tiny"],
    ["explain", "tiny"],
    ["events", "tiny"],
    ["logbook", "tiny"],
    ["checkpoints", "ls", "tiny"],
    ["checkpoints", "show", "tiny", "20"],
    ["incidents", "ls"],
    ["incidents", "show", "INCIDENT"],
    ["nodes", "ls"],
    ["nodes", "show", "node-1"],
    ["nodes", "check", "node-1"],
    ["queues", "ls"],
    ["token", "ls"],
    ["server", "status"],
    ["doctor"],
]


@pytest.mark.parametrize("command", READS, ids=" ".join)
def test_every_format_of_every_reading_command(command: list[str]) -> None:
    parsed = data(*command)
    yaml = babysit(*command, "-o", "yaml")
    assert yaml.exit_code == OK
    shown = YAML(typ="safe").load(yaml.stdout)
    if command != ["nodes", "check", "node-1"]:  # its details are the same every time
        shown, parsed = drop_ages(shown), drop_ages(parsed)
    assert shown == parsed
    rows = parsed if isinstance(parsed, list) else [parsed]
    assert len(babysit(*command, "-o", "name").stdout.splitlines()) == len(rows)
    for form in ("table", "wide"):
        result = babysit(*command, "-o", form)
        assert result.exit_code == OK
        assert "\x1b" not in result.output, "no colour when this is not a terminal"
        assert bool(result.stdout) == bool(rows)


def drop_ages(value: Any) -> Any:
    """Without what differs between two calls."""
    if isinstance(value, list):
        return [drop_ages(item) for item in value]
    if isinstance(value, dict):
        ages = {"age_seconds", "last_used_at", "detail"}
        return {key: drop_ages(item) for key, item in value.items() if key not in ages}
    return value


def test_json_is_the_schema_of_the_api(plane: Plane) -> None:
    shown = data("show", "tiny")
    assert shown["id"] == RUN_ID
    assert shown["restarts"][0]["seconds"].keys() == {
        "detect", "stop", "place", "start", "restore", "recompute",
    }  # fmt: skip


def test_mutations_print_the_thing_they_changed(fresh: str) -> None:
    assert data("hold", fresh, "--reason", "look")["state"] == "held"
    assert data("release", fresh)["state"] != "held"
    table = babysit("hold", fresh)
    assert table.stdout == ""
    assert "fresh is held" in table.stderr
    assert data("nodes", "cordon", "node-2", "--reason", "fan")["state"] == "cordoned"
    assert data("nodes", "uncordon", "node-2", "--reason", "ok")["state"] == "ready"
    assert "network" in data("hold", "--reason", "network")["hold"]
    assert data("release")["hold"] is None
    assert data("cancel", fresh, "--reason", "enough")["state"] == "cancelled"


def test_submit_names_the_run_for_scripts(spec_file: Path) -> None:
    result = babysit("submit", str(spec_file), "-o", "name")
    assert babysit("show", result.stdout.strip()).exit_code == OK
    assert babysit("cancel", result.stdout.strip()).exit_code == OK


def test_tokens_are_made_and_revoked() -> None:
    made = babysit("token", "create", "mia")
    assert made.stdout.startswith("babysit_")
    assert "not shown again" in made.stderr
    identity = next(row["id"] for row in data("token", "ls") if row["name"] == "mia")
    assert babysit("token", "revoke", identity).exit_code == OK
    assert babysit("token", "revoke", "nothing").exit_code == NOT_FOUND


def test_completion_offers_names_of_runs() -> None:
    assert ("tiny", f"succeeded, {RUN_ID}") in complete_run("ti")
    assert complete_run("zzz") == []
    line = {
        "_BABYSIT_COMPLETE": "complete_bash",
        "COMP_WORDS": "babysit show ti",
        "COMP_CWORD": "2",
    }
    command = [sys.executable, "-m", "orchestrator.cli.main"]
    typed = subprocess.run(
        command, env={**os.environ, **line}, capture_output=True, text=True, check=True
    )
    assert typed.stdout.split() == ["tiny"]


def test_logs_of_several_ranks_are_told_apart(plane: Plane) -> None:
    directory = plane.settings.log_directory(RUN_ID)
    for attempt, rank in ((1, 0), (2, 0), (2, 1)):
        file = directory / f"attempt-{attempt:04d}" / f"rank-{rank:05d}.log"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"begin {attempt}/{rank}\nend {attempt}/{rank}")
    try:
        newest = babysit("logs", "tiny").stdout
        assert newest.splitlines() == [
            "2/0 | begin 2/0", "2/1 | begin 2/1", "2/0 | end 2/0", "2/1 | end 2/1",
        ]  # fmt: skip
        assert babysit("logs", "tiny", "--attempt", "1").stdout == "begin 1/0\nend 1/0\n"
        assert babysit("logs", "tiny", "-f", "--rank", "1").stdout == "begin 2/1\nend 2/1\n"
        assert babysit("logs", "tiny", "--rank", "1", "--tail", "1").stdout == "end 2/1\n"
        assert babysit("logs", "tiny", "--since", "1h").stdout == newest
        assert babysit("logs", "tiny", "--rank", "7").exit_code == NOT_FOUND
    finally:
        for file in directory.rglob("*.log"):
            file.unlink()


def test_the_schema_and_the_starter(tmp_path: Path) -> None:
    assert json.loads(babysit("schema").stdout)["title"] == "RunSpec"
    made = babysit("init", str(tmp_path / "new"))
    assert made.stdout.splitlines() == [str(tmp_path / "new" / n) for n in ("run.yaml", "train.py")]
    before = (tmp_path / "new" / "run.yaml").read_text()
    assert "name: new\n" in before, "named after its directory"
    assert babysit("init", str(tmp_path / "Übung 1")).exit_code == OK
    assert "name: my-run\n" in (tmp_path / "Übung 1" / "run.yaml").read_text()
    (tmp_path / "new" / "train.py").unlink()
    again = babysit("init", str(tmp_path / "new"))
    assert again.exit_code == REFUSED
    assert "run.yaml would be overwritten" in again.stderr
    assert (tmp_path / "new" / "run.yaml").read_text() == before
    assert not (tmp_path / "new" / "train.py").exists()


def test_the_database_commands(tmp_path: Path) -> None:
    none = babysit("db", "check")
    assert none.exit_code == REFUSED
    assert none.stdout == f"there is no database yet: {tmp_path / 'babysit.db'}\n"
    assert "run `babysit db upgrade`" in none.stderr
    assert not (tmp_path / "babysit.db").exists(), "looking makes nothing"
    assert babysit("db", "upgrade").exit_code == OK
    assert babysit("db", "check").exit_code == OK
    copy = tmp_path / "copy.db"
    assert babysit("db", "backup", str(copy)).stdout == f"{copy}\n"
    assert babysit("db", "backup", str(copy)).exit_code == REFUSED


def test_a_database_that_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BABYSIT_DATABASE_URL", "mysql://x/y")
    assert babysit("db", "upgrade").exit_code == USAGE
    monkeypatch.setenv("BABYSIT_DATABASE_URL", "postgresql://127.0.0.1:1/none")
    assert babysit("db", "check").exit_code == UNREACHABLE


def test_run_follows_to_the_end(plane: Plane, spec_file: Path) -> None:
    """Another person cancels the run while this command follows it."""
    seen: list[str] = []
    wait = follow.details

    def cancelling(here: Any, run: str) -> Iterator[Any]:
        for detail in wait(here, run):
            if not seen:
                here.api.post(f"/runs/{run}/cancel", reason="by another")
            seen.append(detail["state"])
            yield detail

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(follow, "details", cancelling)
        result = babysit("run", str(spec_file), "-o", "json")
    assert result.exit_code == CANCELLED
    assert json.loads(result.stdout)["state"] == "cancelled"
    assert "fresh cancelled: " in result.stderr


def test_following_waits_out_an_absent_server(fresh: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from orchestrator.cli.client import Api
    from orchestrator.cli.errors import UnreachableError

    get, calls = Api.get, []

    def flaky(self: Api, where: str, **params: Any) -> Any:
        calls.append(where)
        if len(calls) in {2, 3}:
            raise UnreachableError("gone")
        if len(calls) == 5:  # and now it has failed
            return get(self, "/runs/lost", **params)
        return get(self, where, **params)

    monkeypatch.setattr(Api, "get", flaky)
    result = babysit("watch", fresh)
    assert result.exit_code == FAILED
    assert result.stderr.count("does not answer; runs go on") == 1
    assert "The control plane answers again." in result.stderr


def test_control_c_detaches(fresh: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: Any) -> Iterator[Any]:
        raise KeyboardInterrupt

    monkeypatch.setattr(follow, "details", interrupted)
    result = babysit("watch", fresh)
    assert result.exit_code == follow.DETACHED
    assert f"Follow it again: babysit watch {fresh}" in result.stderr
    assert data("show", fresh)["state"] not in follow.OUTCOMES, "the run goes on"


def walk(prefix: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Every command there is."""
    import typer.main

    group: Any = typer.main.get_command(app)
    for name in prefix:
        group = group.commands[name]
    for name, command in group.commands.items():
        yield (*prefix, name)
        if getattr(command, "commands", None):
            yield from walk((*prefix, name))


def node_of(command: tuple[str, ...]) -> Any:
    """A command of click, or a group of them."""
    import typer.main

    node: Any = typer.main.get_command(app)
    for name in command:
        node = node.commands[name]
    return node


@pytest.mark.parametrize("command", list(walk()), ids=" ".join)
def test_every_command_has_help_with_examples(command: tuple[str, ...]) -> None:
    result = babysit(*command, "--help")
    assert result.exit_code == OK
    node = node_of(command)
    if not getattr(node, "commands", None) or node.invoke_without_command:
        assert "For example:" in result.stdout
        assert f"babysit {' '.join(command)}" in result.stdout


OF_THEIR_OWN_FORM = {
    ("watch",),
    ("logs",),
    ("schema",),
    ("init",),
    ("demo",),
    ("grafana", "export"),
    ("grafana", "diff"),
    ("grafana", "push"),
    ("prometheus", "export"),
    ("report",),
    ("incidents", "export"),
    ("nodes", "token"),
}


def test_every_command_takes_a_format_or_is_a_documented_exception() -> None:
    without = set()
    for command in walk():
        node = node_of(command)
        if not getattr(node, "commands", None) and not any("-o" in p.opts for p in node.params):
            without.add(command)
    assert without == OF_THEIR_OWN_FORM
    page = (Path(__file__).parents[2] / "docs" / "operating.md").read_text()
    exceptions = page.partition("but those whose output")[2].partition("\n\n")[0]
    assert set(re.findall(r"`babysit (\w+)`", exceptions)) == {name for name, *_ in without}


def test_what_has_only_a_sentence_to_say_says_it_as_data_when_asked(tmp_path: Path) -> None:
    assert data("wait", "tiny")["state"] == "succeeded"
    assert babysit("wait", "tiny", "-o", "name").stdout == f"{RUN_ID}\n"
    assert babysit("wait", "tiny").stdout == ""
    assert data("db", "upgrade") == {"up_to_date": True, "differences": []}
    assert data("db", "check") == {"up_to_date": True, "differences": []}
    copy = tmp_path / "copy.db"
    assert data("db", "backup", str(copy)) == {"file": str(copy)}
    assert data("server", "stop") == {"stopped": False, "pid": None}
    made = data("token", "create", "eve")
    assert data("token", "revoke", made["id"]) == {"id": made["id"]}


def test_what_has_no_effect_is_said_at_submission(spec_file: Path) -> None:
    spec_file.write_text(spec_file.read_text() + "image: registry/train:1\n")
    result = babysit("submit", str(spec_file), "-o", "name")
    run = result.stdout.strip()
    babysit("cancel", run)
    assert f"{spec_file}:3:8: image: has no effect here: the simulated cluster" in result.stderr
    assert data("show", run)["name"] == "fresh"


def test_a_bare_number_is_seconds() -> None:
    assert babysit("wait", "tiny", "--timeout", "60").exit_code == OK
    assert babysit("wait", "tiny", "--timeout", "60 parsecs").exit_code == USAGE


def test_commands_and_tables_look_as_they_did(snapshot: Any) -> None:
    import typer.main

    root: Any = typer.main.get_command(app)
    outline = []
    for command in walk():
        node = root
        for name in command:
            node = node.commands[name]
        outline.append(f"babysit {' '.join(command)}: {(node.help or '').splitlines()[0]}")
    assert "\n".join(outline) == snapshot(name="commands")
    assert babysit("logbook", "tiny").stdout == snapshot(name="logbook")
    assert babysit("queues", "ls").stdout == snapshot(name="queues")
    ages = r"(?m)^checkpoint:.*$"
    shown = re.sub(ages, "checkpoint: ...", babysit("show", "tiny", "-o", "wide").stdout)
    assert shown == snapshot(name="show")
