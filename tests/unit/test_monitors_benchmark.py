"""The benchmark runs, also without its data."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from benchmarks.support.loss_rules import RULES
from benchmarks.support.loss_scores import OURS, merged, score_series

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "monitors.py"


def bench(data, series=0):
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--data", str(data), "--series", str(series)],
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout.splitlines()[-1]), done.stdout


def test_without_data_it_says_what_is_missing(tmp_path):
    figures, said = bench(tmp_path)
    missing = {"loss_curves_missing": True, "failure_logs_missing": True}
    assert figures.items() >= missing.items()
    assert figures["collected_held_out_class_accuracy_ratio"] >= 0.85
    assert figures["collected_held_out_action_accuracy_ratio"] >= 0.92
    assert str(tmp_path / "loss_curves" / "labels.json") in said


def test_it_scores_curves_and_logs(tmp_path):
    curves, logs = tmp_path / "loss_curves", tmp_path / "failure_logs"
    curves.mkdir()
    logs.mkdir()
    loss = [2.0 + 0.01 * (i % 3) for i in range(200)]
    loss[150:160] = [6.0] * 10
    rows = "".join(f"{i},{value}\n" for i, value in enumerate(loss))
    (curves / "made__up.csv").write_text("step,loss\n" + rows)
    label = {"start": 150, "end": 159, "severity": "major"}
    (curves / "labels.json").write_text(json.dumps({"made__up.csv": [label]}))
    log = {"id": "a", "log": "RuntimeError: CUDA out of memory.", "label": "cuda_oom"}
    (logs / "failure_logs.jsonl").write_text(json.dumps(log) + "\n")
    figures, _ = bench(tmp_path)
    assert figures["olmo_core_majors_acted_on_count"] == figures["zclip_majors_acted_on_count"] == 1
    assert figures["majors_count"] == figures["majors_acted_on_count"] == 1
    assert figures["act_delay_points_median"] == 2
    assert figures["false_alarms_count"] == 0
    assert figures["failure_logs_class_accuracy_ratio"] == 1.0
    assert figures["failure_logs_action_accuracy_ratio"] == 1.0


def test_it_scores_made_series_beside_the_rules_of_others():
    scores = score_series(1)
    ours = scores[OURS]
    assert ours["series"] == ours["right"] + ours["harm"] + ours["missed"] >= 30
    assert all(scores[name]["right"] < ours["right"] for name in RULES)
    assert ours["harm"] == 0


def test_points_close_together_are_one_act():
    assert [act.detected for act in merged([3, 4, 8, 20])] == [4, 21]
