"""A slow rank among real ones in collectives is named, with the part of the step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.control_plane import ControlPlane, until

HERE = Path(__file__).parent


def straggler_of(
    plane: ControlPlane, tmp_path: Path, command: list[str], ranks: int
) -> dict[str, Any]:
    """The incident of a run that has a slow rank."""
    spec = tmp_path / "run.yaml"
    spec.write_text(
        yaml.safe_dump(
            {
                "name": "slow-rank",
                "command": ["python", *command],
                "grace": "1s",  # the script does not stop by itself
                "env": {"HF_HUB_OFFLINE": "1"},
                "resources": {"nodes": 1, "processes_per_node": ranks, "cpus_per_node": 1},
                "monitors": {"straggler": {"steps": 12, "after": "2s", "action": "observe"}},
            }
        )
    )
    run = plane.submit(spec)

    def found() -> list[dict[str, Any]]:
        incidents = plane.show(run)["incidents"]
        return [each for each in incidents if each["kind"] == "straggler"]

    until(found, "the slow rank is found", seconds=300.0)
    (incident,) = found()
    plane.ask("cancel", run)
    return incident


@pytest.mark.parametrize(
    "script", ["slow_rank_job.py", "watched_rank_job.py", "sharded_slow_rank_job.py"]
)
def test_a_rank_whose_forward_pass_sleeps_is_named(
    plane: ControlPlane, tmp_path: Path, script: str
) -> None:
    """Three ranks in lockstep: all have the same step time, and rank 2 does not wait.

    The first script says its parts. The others have them measured by hooks: with DDP, and with
    FSDP2, where the ranks wait in forward and backward passes.
    """
    incident = straggler_of(plane, tmp_path, [str(HERE / script)], ranks=3)
    assert incident["subject"].startswith("rank 2 on ")
    assert "rank 2 is slow: forward takes" in incident["reason"]
    assert "rank hours a day" in incident["reason"]


@pytest.mark.parametrize("trainer", ["transformers", "accelerate", "lightning"])
def test_a_slow_rank_of_a_trainer_is_named_without_a_line(
    plane: ControlPlane, tmp_path: Path, trainer: str
) -> None:
    """The adapter has the parts measured; the script has one line, `babysit.auto()`."""
    pytest.importorskip(trainer, exc_type=ImportError)
    command = [str(HERE / "slow_trainer_job.py"), trainer]
    incident = straggler_of(plane, tmp_path, command, ranks=2)
    assert incident["subject"].startswith("rank 1 on ")
    assert "rank 1 is slow: forward takes" in incident["reason"]
