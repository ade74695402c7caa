"""`babysit grafana` against a stand-in that follows Grafana's documented HTTP API."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from orchestrator.cli.main import app
from orchestrator.dashboards.board import render
from orchestrator.dashboards.boards import BOARDS, FLEET
from tests.grafana_server import EDITOR, VIEWER, GrafanaServer

UIDS = {board.uid for board in BOARDS}


@pytest.fixture
def grafana() -> Iterator[GrafanaServer]:
    with GrafanaServer() as server:
        yield server


def run(grafana: GrafanaServer, *command: str, token: str = EDITOR, url: str = "") -> Result:
    environment = {"BABYSIT_GRAFANA_URL": url or grafana.url, "BABYSIT_GRAFANA_TOKEN": token}
    return CliRunner(env=environment).invoke(app, ["grafana", *command], catch_exceptions=False)


def test_export_needs_no_server(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["grafana", "export", "--output", str(tmp_path / "g")])
    assert result.exit_code == 0, result.output
    files = {file.stem: json.loads(file.read_text()) for file in (tmp_path / "g").iterdir()}
    assert files == {board.uid: render(board) for board in BOARDS}
    assert all(uid == body["uid"] for uid, body in files.items())


def test_export_says_where_it_cannot_write(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    result = CliRunner().invoke(app, ["grafana", "export", "--output", str(tmp_path / "file")])
    assert (result.exit_code, "Choose another --output" in result.output) == (2, True)


def test_push_creates_then_changes_nothing_then_updates(grafana: GrafanaServer) -> None:
    first = run(grafana, "push")
    assert first.exit_code == 0, first.output
    assert first.output.count(": created (/d/babysit-") == len(BOARDS)
    assert grafana.folders == {"babysit": "babysit"}
    assert {folder for _, folder in grafana.dashboards.values()} == {"babysit"}
    assert set(grafana.dashboards) == UIDS
    saves = grafana.requests.count(("POST", "/api/dashboards/db"))
    assert run(grafana, "push").output.count(": unchanged") == len(BOARDS)
    assert grafana.requests.count(("POST", "/api/dashboards/db")) == saves
    grafana.edit("babysit-run", title="my run")
    again = run(grafana, "push").output
    assert (again.count(": unchanged"), again.count("babysit-run: updated")) == (3, 1)
    assert grafana.dashboards["babysit-run"][0]["version"] == 3


def test_diff_shows_what_a_push_would_change(grafana: GrafanaServer) -> None:
    new = run(grafana, "diff")
    assert new.exit_code == 4
    assert new.output.count("--- /dev/null") == len(BOARDS)
    run(grafana, "push")
    same = run(grafana, "diff")
    assert (same.exit_code, same.output) == (0, "Grafana has these dashboards already.\n")
    grafana.edit("babysit-fleet", refresh="5s")
    changed = run(grafana, "diff")
    assert changed.exit_code == 4
    assert '-  "refresh": "5s",\n+  "refresh": "30s",\n' in changed.output
    assert "babysit-run" not in changed.output


def test_an_edit_between_reading_and_saving_is_not_lost(grafana: GrafanaServer) -> None:
    run(grafana, "push")
    grafana.edit(FLEET.uid, refresh="5s")
    grafana.before_save = lambda: grafana.edit(FLEET.uid, title="mine")
    result = run(grafana, "push")
    assert result.exit_code == 4
    assert "somebody has saved it since it was read: push again" in result.output
    assert grafana.dashboards[FLEET.uid][0]["title"] == "mine"


def test_two_first_pushes_at_a_time_share_the_folder(grafana: GrafanaServer) -> None:
    answer, asked = grafana.answer, []

    def quicker(method: str, path: str, *rest: object) -> object:
        if (method, path) == ("POST", "/api/folders") and not asked:
            asked.append(path)
            grafana.folders["babysit"] = "babysit"
        return answer(method, path, *rest)  # type: ignore[arg-type]

    grafana.answer = quicker  # type: ignore[method-assign, assignment]
    assert run(grafana, "push").exit_code == 0
    assert asked


def test_a_taken_title_is_named(grafana: GrafanaServer) -> None:
    run(grafana, "push")
    body, folder = grafana.dashboards.pop(FLEET.uid)
    grafana.dashboards["other"] = ({**body, "uid": "other"}, folder)
    result = run(grafana, "push")
    assert result.exit_code == 4
    assert "another dashboard of this title" in result.output


def test_a_folder_of_that_name_that_is_not_ours_is_named(grafana: GrafanaServer) -> None:
    grafana.folders["else"] = "babysit"
    result = run(grafana, "push")
    assert result.exit_code == 3
    assert "cannot read the folder" in result.output


@pytest.mark.parametrize(
    ("token", "code", "said"),
    [
        ("revoked", 5, "Set BABYSIT_GRAFANA_TOKEN to a valid one"),
        (VIEWER, 5, "Give its service account the role Editor"),
    ],
)
def test_refusals_say_what_to_do(grafana: GrafanaServer, token: str, code: int, said: str) -> None:
    result = run(grafana, "push", token=token)
    assert result.exit_code == code
    assert said in " ".join(result.output.split())
    assert token not in result.output, "no secret reaches a message"
    assert grafana.dashboards == {}


def test_a_grafana_that_fails_or_is_away_is_named(grafana: GrafanaServer) -> None:
    grafana.broken = 500
    result = run(grafana, "diff")
    assert (result.exit_code, "database is locked" in result.output) == (6, True)
    away = run(grafana, "push", url="http://127.0.0.1:9")
    assert (away.exit_code, "http://127.0.0.1:9" in away.output) == (6, True)


@pytest.mark.parametrize("url", ["grafana.example.org", "ftp://grafana", "https://"])
def test_a_wrong_address_is_named(grafana: GrafanaServer, url: str) -> None:
    result = run(grafana, "push", url=url)
    assert (result.exit_code, "expected a URL" in result.output) == (2, True)


def test_without_an_address_the_variables_are_named() -> None:
    result = CliRunner().invoke(app, ["grafana", "push"])
    assert result.exit_code == 2
    assert "BABYSIT_GRAFANA_URL" in result.output


def test_a_test_of_the_alert_channel_makes_one_annotation(grafana: GrafanaServer) -> None:
    environment = {"BABYSIT_GRAFANA_URL": grafana.url, "BABYSIT_GRAFANA_TOKEN": EDITOR}
    result = CliRunner(env=environment).invoke(app, ["alerts", "test", "grafana"])
    assert (result.exit_code, result.output.count("delivered")) == (0, 3)
    (made,) = grafana.annotations.values()
    assert made["timeEnd"] >= made["time"]
    environment["BABYSIT_GRAFANA_TOKEN"] = "revoked"
    refused = CliRunner(env=environment).invoke(app, ["alerts", "test", "grafana"])
    assert refused.exit_code == 1
    assert "BABYSIT_GRAFANA_TOKEN" in refused.output
