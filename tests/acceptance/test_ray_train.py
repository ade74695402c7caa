"""A real `TorchTrainer`: Ray restarts its workers, and babysit watches."""

from __future__ import annotations

import http.server
import importlib.util
import json
import os
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.control_plane import ROOT, ControlPlane, Servers, control_plane, until

if any(importlib.util.find_spec(name) is None for name in ("ray", "torch", "pyarrow")):
    pytest.skip("Ray Train is not installed", allow_module_level=True)
DRIVER = Path(__file__).parent / "ray_driver.py"
KILLED_AT, NAN_FROM = 12, 30
PATIENCE = 500.0
"""Seconds: Ray alone takes 15 s on an idle machine until its workers train, and minutes on one that
has thirty processes for each core."""

pytestmark = pytest.mark.skipif(
    "BABYSIT_TEST_RAY" not in os.environ,
    reason="Ray starts in half a minute, and gives up what takes 30 s: BABYSIT_TEST_RAY=1 runs it",
)


class Hook(http.server.ThreadingHTTPServer):
    """Keeps the messages that are posted to it."""

    def __init__(self) -> None:
        self.messages: list[dict[str, Any]] = []
        super().__init__(("127.0.0.1", 0), _Handler)


class _Handler(http.server.BaseHTTPRequestHandler):
    server: Hook

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.messages.append(json.loads(body))
        self.send_response(204)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """The messages say it all."""


@pytest.fixture
def hook() -> Iterator[Hook]:
    with Hook() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def plane(servers: Servers, tmp_path: Path, hook: Hook) -> Iterator[ControlPlane]:
    url, secret = f"http://127.0.0.1:{hook.server_port}", "whsec_c2VjcmV0IG9mIGEgdGVzdA=="
    settings = {"alerts": "webhook", "webhook_url": url, "webhook_secret": secret}
    with control_plane(servers, tmp_path / "home", **settings) as opened:
        yield opened


def of_kind(plane: ControlPlane, run: str, kind: str) -> dict[str, Any] | None:
    found = [each for each in plane.show(run)["incidents"] if each["kind"] == kind]
    return found[0] if found else None


@pytest.mark.timeout(1500)
def test_ray_restarts_its_workers_while_babysit_watches(
    plane: ControlPlane, hook: Hook, tmp_path: Path
) -> None:
    """Steps, losses, checkpoints, a killed worker and a NaN of one; no restart by babysit."""
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    spec = tmp_path / "run.yaml"
    with tempfile.TemporaryDirectory(prefix="r-") as short:  # of a socket's path
        command = [sys.executable, str(DRIVER), str(scratch), short]
        body = {
            "name": "ray",
            "command": [*command, str(KILLED_AT), str(NAN_FROM)],
            "env": {
                "PYTHONPATH": str(ROOT),
                "RAY_USAGE_STATS_ENABLED": "0",
                "RAY_raylet_start_wait_time_s": "60",
            },
        }
        spec.write_text(json.dumps(body))
        run = plane.submit(spec)
        killed = until(lambda: of_kind(plane, run, "signal"), "the kill is known", PATIENCE)
        assert killed["subject"].startswith("rank 1 of ray on ")
        assert killed["remedy"] == "left to its engine"
        plane.at_step(run, NAN_FROM + 1, PATIENCE)
        nan = until(lambda: of_kind(plane, run, "non_finite"), "the NaN is known", PATIENCE)
        assert nan["remedy"].startswith("none (ray restarts the run); would roll back")
        until(lambda: of_kind(plane, run, "signal")["state"] == "resolved", "it trains again")
        until(lambda: "non_finite" in json.dumps(hook.messages), "the NaN is an alert")
        (scratch / "finish").touch()
        plane.state(run, "succeeded", seconds=PATIENCE)
    shown = plane.show(run)
    assert (shown["attempt"], shown["restarts_count"]) == (1, 0)
    assert shown["step"] > NAN_FROM
    assert "signal" in json.dumps(hook.messages)
    listed = plane.ask("checkpoints", "ls", run)
    # Ray keeps two; one that it never heard of, since a worker died as it was saved, may lie there.
    there = [Path(row["path"]) for row in listed]
    assert len(there) == 2
    assert all((path / "step").is_file() for path in there)
