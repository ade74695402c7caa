"""What `benchmarks/engines.py` makes of its measurements."""

from __future__ import annotations

from benchmarks.engines import PHASES, Figures, show

KEYS = {
    "submit_to_first_step_seconds",
    "worker_loss_to_new_step_seconds",
    "node_loss_to_new_step_seconds",
    "lost_steps",
}


def restart(cause: str) -> dict[str, object]:
    return {"class": cause, "seconds": dict.fromkeys(PHASES, 1.25)}


def test_a_restart_more_than_planned_is_shown_and_costs_no_figure(capsys) -> None:
    local = Figures(9.0, [15.0, 13.0], [], [1, 0], [restart("crash")] * 2)
    again = [restart("crash"), restart("hang"), restart("crash"), restart("node lost")]
    cluster = Figures(12.0, [18.0, 16.0], [140.0], [1, 0, 7], again, (0.5, 0.25))
    show({"local": local, "kubernetes": cluster})
    printed = capsys.readouterr().out
    assert printed.count("1.25") == len(PHASES) * 6
    assert "hang" in printed
    assert "2.50 s from a submission, 2.25 s from the loss of a worker" in printed
    assert local.last_line().keys() == cluster.last_line().keys() == KEYS
    assert local.last_line()["node_loss_to_new_step_seconds"] is None
    assert cluster.last_line()["lost_steps"] == 7
