"""What operators ask for on the command line: what is said of it, and what is refused."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from babysit.wire import MANIFEST_FILE, rank_directory
from orchestrator.core.model.states import RunState
from tests.cli import babysit, connect, data
from tests.plane import RUN_ID, SECRET, Plane, finished, finished_run, saved

OK, USAGE, NOT_FOUND, REFUSED, CANCELLED = 0, 2, 3, 4, 7


@pytest.fixture(scope="module")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Plane]:
    with Plane(tmp_path_factory.mktemp("home")) as running:
        finished(running)
        over = finished_run(
            id="01JNB00000000000000GONE123",
            name="gone",
            state=RunState.CANCELLED,
            reason="cancelled by operator:mia: wrong data",
        )
        running.write(entities=[over])
        yield running


@pytest.fixture(autouse=True)
def connected(plane: Plane, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    connect(plane, monkeypatch, tmp_path)


@pytest.fixture
def life(tmp_path: Path) -> Iterator[str]:
    """A run that waits for two agents, which this cluster never starts."""
    file = tmp_path / "run.yaml"
    file.write_text("name: life\ncommand: ['true']\n")
    yield data("submit", str(file))["id"]
    babysit("cancel", "life")


def test_a_hold_of_one_run_names_its_own_way_out(life: str) -> None:
    assert babysit("hold", life, "--reason", "a look").exit_code == OK
    refused = babysit("restart", life)
    assert (refused.exit_code, refused.stderr) == (
        REFUSED, "life is held: `babysit release life` first\n",
    )  # fmt: skip
    globally = babysit("release")
    assert (globally.exit_code, globally.stderr) == (
        REFUSED, "nothing is held globally; held runs: life\n",
    )  # fmt: skip
    assert data("show", life)["state"] == "held"
    assert babysit("release", "life").exit_code == OK
    assert "no run is held either" in babysit("release").stderr


def test_a_hold_over_everything_names_its_own_way_out(life: str) -> None:
    held = babysit("hold", "--reason", "network")
    assert "All automatic action is held by operator:" in held.stderr
    refused = babysit("restart", life)
    assert refused.exit_code == REFUSED
    assert "all automatic action is held by" in refused.stderr
    assert "`babysit release` first" in refused.stderr
    assert "over everything is over" in babysit("release").stderr


def test_refusals_carry_facts_for_programs(life: str, plane: Plane) -> None:
    def refusal(path: str) -> dict[str, Any]:
        headers = {"Authorization": f"Bearer {SECRET}"}
        url = f"{plane.url}/api/v1/{path}"
        answer = httpx.post(url, json={}, headers=headers, trust_env=False)
        assert answer.status_code == 409
        error: dict[str, Any] = answer.json()["error"]
        return error

    babysit("hold", life)
    error = refusal(f"runs/{life}/restart")
    assert (error["run"], error["state"]) == (life, "held")
    assert refusal("release")["allowed"] == ["life"]


def test_a_cancelled_run_is_spoken_of_once(life: str) -> None:
    said = babysit("cancel", life, "--reason", "wrong data").stderr
    assert said.startswith("life is being cancelled") or "life is cancelled by operator:" in said
    assert "cancelled by" not in babysit("wait", "gone").stderr.partition("cancelled by")[2]
    waited = babysit("wait", "gone")
    assert waited.exit_code == CANCELLED
    assert "it was cancelled by operator:mia: wrong data" in waited.stderr
    assert babysit("explain", "gone").stdout == "gone was cancelled by operator:mia: wrong data.\n"
    followed = babysit("watch", "gone")
    assert "gone cancelled: by operator:mia: wrong data" in followed.stderr


def test_a_run_that_may_still_save_is_being_cancelled() -> None:
    from orchestrator.cli.runs import _result

    run = {"name": "life", "state": "running", "reason": "cancelled by x", "grace_seconds": 90.0}
    assert _result("cancel", run) == "life is being cancelled: its ranks may save for up to 90 s"


def test_runs_go_by_the_last_characters_that_are_shown(life: str) -> None:
    shown = next(x for x in babysit("ls").stdout.splitlines() if x.startswith("life"))
    assert life[-8:] in shown
    assert life not in shown
    assert life in babysit("ls", "-o", "wide").stdout
    for last in (4, 8):
        assert data("show", life[-last:].lower())["id"] == life
    assert data("show", "DONE")["id"] == RUN_ID
    assert babysit("show", "ONE").exit_code == NOT_FOUND, "too short to be sure"


def test_the_journal_is_read_from_its_end(life: str) -> None:
    for _ in range(55):
        babysit("hold", life)
        babysit("release", life)
    everything = data("events", life)
    assert len(everything) > 100
    assert data("events", life, "--tail", "3") == everything[-3:]
    table = babysit("events", life).stdout.splitlines()
    assert len(table) == 1 + 100, "the newest hundred under their titles"
    assert data("events", life, "--since", "1h") == everything
    decisions = data("events", life, "--decisions")
    assert decisions == [row for row in everything if row["kind"] == "instruction"]
    pages = data("events", life, "--tail", "105")
    assert pages == everything[-105:]
    assert babysit("events", life, "--since", "soon").exit_code == USAGE


def test_maintenance_says_its_window() -> None:
    plan = ("nodes", "maintain", "node-1", "node-2", "--from", "2099-12-01T02:00", "--for", "4h")
    said = babysit(*plan, "--reason", "new switch").stderr
    assert said == (
        "node-1, node-2: maintenance planned, 2099-12-01 02:00 to 06:00 UTC: new switch\n"
    )
    assert "2099-12-01 02:00 to 06:00 UTC" in babysit("nodes", "ls").stdout
    off = babysit("nodes", "maintain", "node-1", "node-2", "--off").stderr.splitlines()
    assert off[0] == "node-1: maintenance cancelled, 2099-12-01 02:00 to 06:00 UTC"
    assert "MAINTENANCE" not in babysit("nodes", "ls").stdout
    again = babysit("nodes", "maintain", "node-1", "--off").stderr
    assert again == "node-1: no maintenance was planned\n"
    wrong = babysit("nodes", "maintain", "node-1", "--for", "4x")
    assert wrong.exit_code == USAGE
    assert "--reason: required" in wrong.stderr
    assert "--for: expected a duration" in wrong.stderr


@pytest.mark.parametrize("number", ["2", "99", "-1", "many"])
def test_spares_leave_a_node_for_new_runs(number: str) -> None:
    refused = babysit("nodes", "spares", number)
    assert refused.exit_code == USAGE
    assert "expected" in refused.stderr
    assert data("nodes", "spares")["spares"] == 0


def test_spares_below_the_number_of_nodes_are_set() -> None:
    assert data("nodes", "spares", "1")["spares"] == 1
    assert data("nodes", "spares", "0")["spares"] == 0


def test_doctor_says_how_many_spares_there_are_and_should_be() -> None:
    """Two nodes call for one spare; too few fail no check."""

    def row() -> tuple[str, str]:
        [found] = [each for each in data("doctor") if each["name"] == "spares"]
        return found["result"], found["detail"]

    result, detail = row()
    assert result == "short"
    assert detail.startswith("0 spares reserved, 1 advised (6.5 failures per 1,000 node-days); ")
    assert "babysit nodes spares auto" in detail
    data("nodes", "spares", "1")
    assert row()[0] == "ok"
    data("nodes", "spares", "0")


def test_a_queue_is_set_shown_and_removed(tmp_path: Path) -> None:
    quota = ("--gpus", "8", "--cohort", "all", "--borrowing-limit", "2", "--weight", "llm=3")
    said = babysit("queues", "set", "research", *quota).stderr
    assert said == (
        "Queue research: 8 GPUs, cohort all, borrows at most: 2, lends at most: no limit, "
        "weight of llm: 3.\n"
    )
    refused = babysit("queues", "set", "research", "--gpus", "none")
    assert refused.exit_code == USAGE
    assert "--cohort none" in refused.stderr
    file = tmp_path / "run.yaml"
    file.write_text("name: user\ncommand: ['true']\nqueue: research\n")
    run = data("submit", str(file))["id"]
    used = babysit("queues", "rm", "research")
    assert (used.exit_code, "research is used by user" in used.stderr) == (REFUSED, True)
    babysit("cancel", run)
    assert babysit("queues", "rm", "research").exit_code == OK
    assert [row["name"] for row in data("queues", "ls")] == ["default"]
    assert babysit("queues", "rm", "research").exit_code == NOT_FOUND
    assert babysit("queues", "rm", "default").exit_code == REFUSED
    assert data("queues", "set", "research", "--gpus", "1")["cohort"] is None, "made anew"
    assert data("queues", "rm", "research") == {"name": "research"}


@pytest.fixture
def spec(tmp_path: Path) -> Path:
    (tmp_path / "helper.py").touch()
    return tmp_path / "spec.yaml"


@pytest.mark.parametrize("command", [["submit"], ["submit", "--dry-run"], ["run"]], ids=" ".join)
@pytest.mark.parametrize(
    ("field", "said"),
    [
        ("queue: typo-queue", "3:8: queue: no queue typo-queue; there are: default."),
        ("queue: defualt", "3:8: queue: no queue defualt; did you mean default?"),
        ("resources: {nodes: 9}", "3:12: resources: asks for 9 x (0 GPUs, 1 CPUs)"),
        ("x-a: &a\nresources: {nodes: 9}", "4:12: resources: asks for 9 x"),
    ],
)
def test_what_the_cluster_does_not_have_is_refused_with_its_place(
    command: list[str], field: str, said: str, spec: Path
) -> None:
    spec.write_text(f"name: wrong\ncommand: ['true']\n{field}\n")
    result = babysit(*command, str(spec))
    assert (result.exit_code, result.stdout) == (USAGE, "")
    assert f"{spec}:{said}" in result.stderr
    assert data("ls", "--name", "wrong") == []
    assert [row["name"] for row in data("queues", "ls")] == ["default"]


@pytest.mark.parametrize("dry", [True, False])
def test_a_dry_run_gives_the_notes_of_a_submission(dry: bool, spec: Path) -> None:
    spec.write_text(
        "name: noted\ncommand: ['true']\npreload: [json, helper, torchh.nn]\nimage: r/train:1\n"
    )
    image = f"{spec}:4:8: image: has no effect here"
    result = babysit("submit", str(spec), *["--dry-run"] * dry)
    assert (result.exit_code, image in result.stderr) == (OK, True)
    assert "torchh" not in result.stderr, "an image brings modules of its own"
    spec.write_text("name: noted\ncommand: ['true']\npreload: [json, helper, torchh.nn]\n")
    result = babysit("submit", str(spec), *["--dry-run"] * dry)
    assert f"{spec}:3:25: preload[2]: no module torchh.nn here" in result.stderr
    assert result.stderr.count("no module") == 1
    babysit("cancel", "noted")


def test_a_program_that_is_not_there_is_found_by_a_dry_run(spec: Path) -> None:
    spec.write_text("name: wrong\ncommand: [helper.py]\n")
    result = babysit("submit", str(spec), "--dry-run")
    assert result.exit_code == USAGE
    assert "no such program on PATH; write [python, helper.py]" in result.stderr


def test_checkpoints_of_an_ended_run_are_verified_and_removed(plane: Plane, tmp_path: Path) -> None:
    directory = saved(plane, tmp_path, 60, pinned=True)
    rm = ("checkpoints", "rm", "tiny", "60")
    refused = babysit(*rm)
    assert (refused.exit_code, directory.is_dir()) == (REFUSED, True)
    assert "is pinned; `babysit checkpoints unpin` it first" in refused.stderr
    assert data("checkpoints", "unpin", "tiny", "60")["pinned"] is False
    sound = babysit("checkpoints", "verify", "tiny", "60", "--wait")
    assert (sound.exit_code, sound.stderr) == (
        OK, f"Checkpoint {RUN_ID}/1/directory/60 is sound (verified)\n",
    )  # fmt: skip
    assert babysit(*rm).exit_code == OK
    assert not directory.exists()
    assert 60 not in [row["step"] for row in data("checkpoints", "ls", "tiny")]
    assert data("show", "tiny")["state"] == "succeeded"
    assert babysit("restart", "tiny").exit_code == REFUSED, "it is still over"


def test_a_damaged_checkpoint_of_an_ended_run_is_bad(plane: Plane, tmp_path: Path) -> None:
    directory = saved(plane, tmp_path, 80)
    (rank_directory(str(directory), 1) / "data").write_bytes(b"\1" + bytes(1023))
    damaged = babysit("checkpoints", "verify", "tiny", "80", "--wait")
    assert damaged.exit_code == 1
    assert "rank-00001/data" in damaged.stderr
    assert data("checkpoints", "show", "tiny", "80")["trust"] == "bad"
    assert data("incidents", "ls", "tiny", "--open") == [], "nobody waits for an ended run"


def test_what_the_server_cannot_reach_or_may_not_remove_is_said(
    plane: Plane, tmp_path: Path
) -> None:
    directory = saved(plane, tmp_path, 90)
    shutil.move(directory, tmp_path / "elsewhere")
    absent = babysit("checkpoints", "verify", "tiny", "90")
    assert absent.exit_code == REFUSED
    assert "this server cannot read" in absent.stderr
    other = saved(plane, tmp_path, 95)
    manifest = rank_directory(str(other), 0) / MANIFEST_FILE
    manifest.write_text(manifest.read_text().replace(RUN_ID, "01ANOTHERRUN"))
    kept = babysit("checkpoints", "rm", "tiny", "95")
    assert kept.exit_code == REFUSED
    assert f"remove {other} yourself" in kept.stderr
    assert (rank_directory(str(other), 1) / "data").exists(), "another run's files stay"


def test_a_name_stands_for_one_token() -> None:
    made = data("token", "create", "ada")
    again = babysit("token", "create", "ada")
    assert (again.exit_code, again.stdout) == (REFUSED, "")
    assert f"a token ada already ({made['id']})" in again.stderr
    assert babysit("token", "revoke", "ada").exit_code == OK
    (row,) = [row for row in data("token", "ls") if row["name"] == "ada"]
    assert row["revoked_at"] is not None
    twice = babysit("token", "revoke", made["id"])
    assert (twice.exit_code, "was revoked" in twice.stderr) == (REFUSED, True)
    by_name = babysit("token", "revoke", "ada")
    assert (by_name.exit_code, "was revoked" in by_name.stderr) == (REFUSED, True)
    assert data("token", "create", "ada")["id"] != made["id"]
    assert babysit("token", "revoke", "nobody").exit_code == NOT_FOUND
