"""Incidents as annotations in Grafana: a real control plane, a stand-in for Grafana."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.acceptance.conftest import Jobs
from tests.control_plane import Servers, control_plane, until
from tests.grafana_server import EDITOR, GrafanaServer


def test_an_incident_is_annotated_though_grafana_and_the_server_were_away(
    servers: Servers, jobs: Jobs, tmp_path: Path
) -> None:
    """A NaN while Grafana answers nothing; the server is killed; then all is well again."""
    with GrafanaServer() as grafana:
        grafana.broken = 503
        settings = {
            "alerts": "log,grafana",
            "grafana_url": grafana.url,
            "grafana_token": EDITOR,
        }
        with control_plane(servers, tmp_path / "home", **settings) as plane:
            job = jobs(faults=("nan@35",))
            run = plane.submit(job.spec)
            until(
                lambda: len(plane.show(run)["restarts"]) == 1 and plane.show(run)["step"] > 60,
                "the rollback is over",
            )
            (incident,) = plane.show(run)["incidents"]
            assert grafana.annotations == {}
            plane.kill()
            grafana.broken = 0
            plane.start()

            def ended() -> dict[str, Any] | None:
                there = [*grafana.annotations.values()]
                return there[0] if there and there[0]["timeEnd"] > there[0]["time"] else None

            found = until(ended, "the annotation of the incident and its end")
            assert f"incident:{incident['id']}" in found["tags"]
            assert f"run_id:{run}" in found["tags"]
            assert "non_finite" in found["text"]
            job.finish()
            plane.state(run, "succeeded")
        assert len(grafana.annotations) == 1
