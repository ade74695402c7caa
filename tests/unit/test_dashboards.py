"""The dashboards: as rendered, valid for the SDK, and about metrics that there are."""

from __future__ import annotations

import json
import subprocess
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from grafana_foundation_sdk.models.dashboard import Dashboard
from syrupy.assertion import SnapshotAssertion

from orchestrator.dashboards.alert_rules import metrics_in
from orchestrator.dashboards.board import Board, render, text_of
from orchestrator.dashboards.boards import BOARDS
from orchestrator.server.metrics.catalogue import METRICS
from tests.prometheus import find_program

each_board = pytest.mark.parametrize("board", BOARDS, ids=lambda board: board.uid)


@each_board
def test_the_json_is_as_recorded(board: Board, snapshot: SnapshotAssertion) -> None:
    assert text_of(render(board)) == snapshot


@each_board
def test_the_sdk_reads_the_json_back(board: Board) -> None:
    body = render(board)
    found = Dashboard.from_json(body)
    assert (found.uid, found.title) == (board.uid, board.title)
    assert found.panels is not None
    titles = [panel.title for panel in found.panels]
    expected = [[title, *(p.title for p in panels)] for title, panels in board.rows]
    assert titles == [title for row in expected for title in row]


@each_board
def test_every_query_is_about_metrics_of_the_catalogue(board: Board) -> None:
    for expression in board.expressions:
        found = metrics_in(expression)
        assert found, expression
        assert found <= set(METRICS), expression


def test_every_metric_of_the_fleet_is_on_a_dashboard() -> None:
    shown = {name for board in BOARDS for text in board.expressions for name in metrics_in(text)}
    left_out = {"babysit_build_info", "babysit_events_set_aside_total"}  # alerts tell of the latter
    ours = {name for name in METRICS if name.startswith("babysit_")}
    assert ours - shown == left_out


@each_board
def test_panels_do_not_overlap(board: Board) -> None:
    def cells(panel: dict[str, Any]) -> set[tuple[int, int]]:
        at = panel["gridPos"]
        assert 0 <= at["x"] < at["x"] + at["w"] <= 24
        columns, lines = range(at["x"], at["x"] + at["w"]), range(at["y"], at["y"] + at["h"])
        return {(x, y) for x in columns for y in lines}

    places = [(panel["title"], cells(panel)) for panel in render(board)["panels"]]
    assert [(a, b) for (a, one), (b, two) in combinations(places, 2) if one & two] == []


def test_incidents_are_annotated_by_the_query_or_by_the_alert_channel_never_by_both(
    tmp_path: Path,
) -> None:
    (expression,) = (
        note.expression for board in BOARDS for note in board.notes if note.name == "Incidents"
    )
    opened = [
        {"series": 'babysit_run_incidents_open{run_id="r",kind="hang"}', "values": "_x5 1x5"},
        {"series": 'babysit_run_incidents_open{run_id="other",kind="hang"}', "values": "1x10"},
    ]
    channel = 'babysit_notifications_total{channel="grafana",result="delivered",instance="a:1"}'
    asked = {"expr": expression.replace("$run_id", "r"), "eval_time": "5m"}
    shown = 'babysit_run_incidents_open{run_id="r",kind="hang"}'
    cases = [
        {
            "interval": "1m",
            "input_series": [*opened, *([{"series": channel, "values": "0x10"}] * on)],
            "promql_expr_test": [
                {**asked, "exp_samples": [] if on else [{"labels": shown, "value": 1}]}
            ],
        }
        for on in (False, True)
    ]
    (tmp_path / "cases.yml").write_text(json.dumps({"tests": cases}))
    done = subprocess.run(
        [find_program("promtool"), "test", "rules", str(tmp_path / "cases.yml")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
