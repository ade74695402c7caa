"""Backtests over the record of a real run, judged by a person, on a real server."""

from __future__ import annotations

from typing import Any

from tests.acceptance.conftest import Jobs
from tests.control_plane import OK, USAGE, ControlPlane


def test_other_settings_over_a_run_that_was_rolled_back(plane: ControlPlane, jobs: Jobs) -> None:
    """Bad data led to rollbacks, which a person judged right: `observe` would have missed them.

    One rank, since the samples of a rank that does not speak for the run are not all stored.
    """
    job = jobs(
        steps=80,
        faults=("poison@51-60",),
        resources={"nodes": 1},
        monitors={"loss_spike": {"skip_batches": 12}},
    )
    run = plane.submit(job.spec)
    spikes = [i for i in plane.state(run, "succeeded")["incidents"] if i["kind"] == "loss_spike"]
    assert len(spikes) == 2, "it came back after the first rollback, and its batches were skipped"

    unjudged = plane.ask("monitors", "backtest", run)
    assert _row(unjudged, "recorded")["unknown"] == 2
    for incident in spikes:
        assert plane.babysit("incidents", "judge", incident["id"], "right").exit_code == OK

    found = plane.ask("monitors", "backtest", "--since", "1d", "--policy", "observe")
    assert [each["id"] for each in found["runs"]] == [run]
    recorded = _row(found, "recorded")
    assert (recorded["right"], recorded["wrong"], recorded["missed"]) == (2, 0, 0)
    assert (recorded["precision"], recorded["recall"]) == (1.0, 1.0)
    assert recorded["delay_steps"] <= 3
    assert found["not_found_again"] == []
    assert found["ettr"]["recorded"] is not None
    assert ["nothing would have been done" in words for words in found["ettr"]["unknown"]] == [
        True,
        True,
    ]

    table = plane.babysit("monitors", "backtest", run, "--policy", "observe")
    assert table.exit_code == OK
    assert "PRECISION" in table.stdout
    assert "unknown: " in table.stdout
    for words in ("monitors.loss_spike.threshold=x", "resources.nodes=2", "threshold"):
        assert plane.babysit("monitors", "backtest", run, "--set", words).exit_code == USAGE
    assert plane.show(run)["state"] == "succeeded", "nothing has changed"


def _row(found: dict[str, Any], settings: str) -> dict[str, Any]:
    (row,) = [
        each
        for each in found["monitors"]
        if each["monitor"] == "loss" and each["settings"] == settings
    ]
    return row
