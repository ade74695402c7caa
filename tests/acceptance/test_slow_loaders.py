"""A loader that becomes slow for all ranks of a real run is found; the run goes on untouched."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from tests.acceptance.slow_loader_job import SLOW_FROM
from tests.control_plane import ControlPlane, until

SCRIPT = Path(__file__).parent / "slow_loader_job.py"


def test_a_loader_that_becomes_slow_is_an_incident_with_its_cost(
    plane: ControlPlane, tmp_path: Path
) -> None:
    spec = tmp_path / "run.yaml"
    spec.write_text(
        yaml.safe_dump(
            {
                "name": "slow-loader",
                "command": ["python", str(SCRIPT)],
                "grace": "1s",  # the script does not stop by itself
                "resources": {"nodes": 1, "processes_per_node": 2, "cpus_per_node": 1},
                "monitors": {"data_stall": {"steps": 8, "after": "8s"}},
            }
        )
    )
    run = plane.submit(spec)

    def found() -> list[dict[str, Any]]:
        incidents = plane.show(run)["incidents"]
        return [each for each in incidents if each["kind"] == "data_stall"]

    until(found, "the slow loader is found", seconds=240.0)
    (incident,) = found()
    shown = plane.show(run)
    plane.ask("cancel", run)
    assert (incident["state"], incident["severity"]) == ("open", "warning")
    assert incident["onset_step"] > SLOW_FROM / 2
    assert "the ranks wait for data for" in incident["reason"]
    assert "s an hour" in incident["reason"]
    assert (shown["attempt"], shown["restarts"], shown["avoid"]) == (1, [], [])
