"""Backtests over the record of a real run, judged by a person, on a real server."""

from __future__ import annotations

from typing import Any

from tests.acceptance.conftest import Jobs
from tests.control_plane import OK, USAGE, ControlPlane


def test_other_settings_over_a_run_that_was_rolled_back(plane: ControlPlane, jobs: Jobs) -> None:
    """NaN led to a rollback, which a person judged right: `observe` would have missed it."""
    run = plane.submit(jobs(steps=60, faults=("nan@35",)).spec)
    shown = plane.state(run, "succeeded")
    (incident,) = shown["incidents"]

    unjudged = plane.ask("monitors", "backtest", run)
    assert _row(unjudged, "recorded")["unknown"] == 1
    assert plane.babysit("incidents", "judge", incident["id"], "right").exit_code == OK

    found = plane.ask("monitors", "backtest", "--since", "1d", "--policy", "observe")
    assert [each["id"] for each in found["runs"]] == [run]
    recorded = _row(found, "recorded")
    assert (recorded["right"], recorded["wrong"], recorded["missed"]) == (1, 0, 0)
    assert (recorded["precision"], recorded["recall"]) == (1.0, 1.0)
    assert recorded["delay_steps"] <= 3
    assert found["not_found_again"] == []
    assert found["ettr"]["recorded"] is not None
    (unknown,) = found["ettr"]["unknown"]
    assert "nothing would have been done" in unknown

    table = plane.babysit("monitors", "backtest", run, "--policy", "observe")
    assert table.exit_code == OK
    assert "PRECISION" in table.stdout
    assert "unknown: " in table.stdout
    for words in ("monitors.loss_spike.threshold=x", "resources.nodes=2", "threshold"):
        assert plane.babysit("monitors", "backtest", run, "--set", words).exit_code == USAGE
    assert plane.show(run)["incidents"][0]["verdict"] == "right", "nothing else has changed"


def _row(found: dict[str, Any], settings: str) -> dict[str, Any]:
    (row,) = [
        each
        for each in found["monitors"]
        if each["monitor"] == "loss" and each["settings"] == settings
    ]
    return row
