"""What `benchmarks/engines.py` makes of its measurements."""

from __future__ import annotations

import pytest

from benchmarks.engines import PHASES, Figures, Loss, show

KEYS = {
    "submit_to_first_step_seconds",
    "worker_loss_to_new_step_seconds",
    "node_loss_to_new_step_seconds",
    "lost_steps",
}


def restart(cause: str) -> dict[str, object]:
    return {"class": cause, "seconds": dict.fromkeys(PHASES, 1.25)}


def losses(**seconds: list[float]) -> list[Loss]:
    return [
        Loss(kind, each, number)
        for number, (kind, each) in enumerate(
            [(kind, each) for kind, found in seconds.items() for each in found], start=1
        )
    ]


def test_a_restart_more_than_planned_is_shown_and_costs_no_figure(capsys) -> None:
    local = Figures(9.0, losses(worker=[15.0, 13.0]), [restart("crash")] * 2)
    again = [restart("crash"), restart("hang"), restart("crash"), restart("node lost")]
    cluster = Figures(12.0, losses(worker=[18.0, 16.0], node=[140.0]), again, (0.5, 0.25))
    show({"local": local, "kubernetes": cluster})
    printed = capsys.readouterr().out
    assert printed.count("1.25") == len(PHASES) * 6
    assert "hang" in printed
    assert "2.50 s from a submission, 2.25 s from the loss of a worker" in printed
    assert local.last_line().keys() == cluster.last_line().keys() == KEYS
    assert local.last_line()["node_loss_to_new_step_seconds"] is None
    assert cluster.last_line()["lost_steps"] == 3


def test_an_engine_without_restarts_of_ours_and_one_that_was_cut_short_have_a_row(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Ray Train restarts by itself, and a restart under way has no seconds yet."""
    train = Figures(20.0, losses(worker=[17.0], node=[30.0]))
    short = Figures(9.0, [], [{"class": "signal", "seconds": None}])
    show({"ray_train": train, "ray": short})
    printed = capsys.readouterr().out
    assert "ray_train" in printed
    assert "signal" in printed
    assert train.last_line()["node_loss_to_new_step_seconds"] == 30.0
    assert short.last_line()["worker_loss_to_new_step_seconds"] is None
