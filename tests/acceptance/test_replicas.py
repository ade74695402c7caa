"""Bits flip in one replica: it is found and named, its node is drained, and the run goes back."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.control_plane import ControlPlane, Servers, control_plane, until

JOB = Path(__file__).parent / "replica_job.py"


def corruptions(plane: ControlPlane, run: str) -> list[dict[str, Any]]:
    found = [i for i in plane.show(run)["incidents"] if i["kind"] == "corruption"]
    return sorted(found, key=lambda incident: incident["opened_at"])


@pytest.mark.slow
def test_flipped_bits_are_found_and_named_and_undone(servers: Servers, tmp_path: Path) -> None:
    """In weights, gradients and the state of the optimizer, each on another rank of three."""
    spec, scratch = tmp_path / "replicas.yaml", tmp_path / "scratch"
    scratch.mkdir()
    body = {
        "name": "replicas",
        "command": [sys.executable, str(JOB), str(scratch)],
        "resources": {"nodes": 3},
        "preload": ["torch", "torch.nn.parallel", "babysit"],
        "env": {"OMP_NUM_THREADS": "1"},
        "checkpoint": {"directory": "./checkpoints", "every_steps": 4, "keep": 50},
        "monitors": {"hang": {"after": "120s"}},  # a loaded machine is no hang
    }
    spec.write_text(json.dumps(body))
    faults = {"weights": 1, "gradients": 2, "optimizer": 0}
    with control_plane(servers, tmp_path / "home", local_nodes=6) as plane:
        run = plane.submit(spec)
        for count, (what, rank) in enumerate(faults.items(), start=1):
            before = _safe(plane, run)
            homes = {seat.node for seat in plane.attempts(run)[-1].seats if rank in seat.ranks}
            (scratch / what).write_text(str(rank))

            def settled(count: int = count) -> dict[str, Any] | None:
                found = corruptions(plane, run)
                over = len(found) == count and found[-1]["state"] == "resolved"
                return found[-1] if over else None

            incident = until(settled, f"{what} of rank {rank} are judged", seconds=90.0)
            assert f"rank {rank} holds other " in incident["reason"], incident["reason"]
            assert "majority of 3 replicas" in incident["reason"]
            replay = incident["evidence"]["replay"]
            assert (replay["outcome"], replay["ranks"]) == ("hardware", [rank]), replay["reason"]
            restart = plane.show(run)["restarts"][-1]
            assert (restart["class"], {restart["node"]}) == ("silent_corruption", homes)
            assert before <= restart["resumed_step"] < incident["onset_step"]
            drained = {n["id"] for n in plane.ask("nodes", "ls") if n["state"] == "draining"}
            assert homes <= drained
            assert len(drained) == count
        (scratch / "finish").touch()
        shown = plane.state(run, "succeeded")
        assert len(shown["restarts"]) == len(faults)


def _safe(plane: ControlPlane, run: str) -> int:
    """Wait until a checkpoint of the live attempt can be trusted; its step."""

    def saved() -> int | None:
        attempt = plane.attempts(run)
        rows = plane.ask("checkpoints", "ls", run) if attempt else []
        newest = attempt[-1].number if attempt else 0
        steps = [
            row["step"]
            for row in rows
            if row["attempt"] == newest and row["trust"] in {"verified", "good"}
        ]
        return max(steps, default=None)

    return until(saved, "a checkpoint is verified", seconds=90.0)
