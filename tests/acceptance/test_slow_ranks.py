"""A slow rank among real ones in collectives is named, with the part of the step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.control_plane import ControlPlane, until

HERE = Path(__file__).parent


@pytest.mark.parametrize("script", ["slow_rank_job.py", "watched_rank_job.py"])
def test_a_rank_whose_forward_pass_sleeps_is_named(
    plane: ControlPlane, tmp_path: Path, script: str
) -> None:
    """Three ranks in lockstep: all have the same step time, and rank 2 does not wait.

    The first script says its parts, the second has them measured by hooks.
    """
    spec = tmp_path / "run.yaml"
    spec.write_text(
        yaml.safe_dump(
            {
                "name": "slow-rank",
                "command": ["python", str(HERE / script)],
                "grace": "1s",  # the script does not stop by itself
                "resources": {"nodes": 1, "processes_per_node": 3, "cpus_per_node": 1},
                "monitors": {"straggler": {"steps": 12, "after": "2s", "action": "observe"}},
            }
        )
    )
    run = plane.submit(spec)

    def found() -> list[dict[str, Any]]:
        incidents = plane.show(run)["incidents"]
        return [each for each in incidents if each["kind"] == "straggler"]

    until(found, "the slow rank is found", seconds=150.0)
    (incident,) = found()
    plane.ask("cancel", run)
    assert incident["subject"].startswith("rank 2 on ")
    assert "rank 2 is slow: forward takes" in incident["reason"]
    assert "rank hours a day" in incident["reason"]
