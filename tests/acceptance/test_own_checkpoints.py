"""A script without a line of babysit goes on from checkpoints of its own, and is rolled back."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

from tests.control_plane import ControlPlane, until

JOB = Path(__file__).parent / "own_checkpoints_job.py"


def write(directory: Path) -> Path:
    """A run of the script on two nodes."""
    directory.mkdir()
    shutil.copy(JOB, directory / "train.py")
    body = {
        "name": "own",
        "command": ["python", "train.py"],
        "resources": {"nodes": 2},
        "checkpoint": {"good_after_steps": 10},
        "watch": {"step": r"step: (\d+)", "loss": r"loss: ([\d.]+)"},
        "resume": {
            "args": ["--resume", "{checkpoint}"],
            "checkpoints": "out/checkpoint-{step}",
            "complete": "done",
        },
    }
    file = directory / "run.yaml"
    file.write_text(json.dumps(body))  # JSON is YAML
    return file


def trust(plane: ControlPlane, run: str) -> dict[int, str]:
    """Its checkpoints, by step."""
    return {row["step"]: row["trust"] for row in plane.ask("checkpoints", "ls", run)}


def test_it_is_restarted_and_rolled_back(plane: ControlPlane, tmp_path: Path) -> None:
    spec = write(tmp_path / "own")
    run = plane.submit(spec)
    until(lambda: trust(plane, run).get(30) == "good", "a checkpoint of its own is good", 90)

    os.kill(int((spec.parent / "pid-1").read_text()), signal.SIGKILL)
    killed = _recovered(plane, run, 0)
    assert killed["class"] == "signal"
    assert killed["resumed_step"] >= 30
    log = plane.babysit("logs", run, "--attempt", "2", "--rank", "1").stdout
    assert f"resumed from checkpoint-{killed['resumed_step']}" in log

    (spec.parent / "spike").write_text("2")
    spiked = _recovered(plane, run, 1)
    incidents = plane.show(run)["incidents"]
    onset = next(i["onset_step"] for i in incidents if i["kind"] == "loss_spike")
    assert spiked["resumed_step"] < onset, "before the loss was high"
    assert trust(plane, run)[spiked["resumed_step"]] == "good"
    log = plane.babysit("logs", run, "--attempt", "3", "--rank", "0").stdout
    assert f"resumed from checkpoint-{spiked['resumed_step']}" in log
    (spec.parent / "finish").touch()
    plane.state(run, "succeeded")


def _recovered(plane: ControlPlane, run: str, number: int) -> dict[str, Any]:
    """A restart that is over."""

    def over() -> dict[str, Any] | None:
        restarts = plane.show(run)["restarts"]
        found = restarts[number] if len(restarts) > number else None
        return found if found and found["recovered_at"] else None

    return until(over, f"restart {number + 1} is over", 90)
