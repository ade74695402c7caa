"""`babysit demo`: five things go wrong with a real model, nobody helps, and the story is true."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestrator.server.server_file import is_alive, read_record
from tests.control_plane import until

pytest.importorskip("torch")
ROOT = Path(__file__).parents[2]
PNG = b"\x89PNG\r\n\x1a\n"


class Shell:
    """Runs `babysit` with the demo's own control plane."""

    def __init__(self, output: Path) -> None:
        self.output = output
        self.home = output / "home"
        inherited = {k: v for k, v in os.environ.items() if not k.startswith("BABYSIT_")}
        self.environment = {
            **inherited,
            "BABYSIT_HOME": str(self.home),
            "PYTHONPATH": str(ROOT),
        }

    def __call__(self, *arguments: str) -> tuple[int, str, str]:
        done = subprocess.run(
            [sys.executable, "-P", "-m", "orchestrator.cli.main", *arguments],
            cwd=self.output.parent,
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
        )
        return done.returncode, done.stdout, done.stderr


@pytest.fixture
def shell(tmp_path: Path) -> Iterator[Shell]:
    here = Shell(tmp_path / "out")
    yield here
    record = read_record(here.home / "server.json")
    if record is not None:
        here("server", "stop")
        until(lambda: not is_alive(record) or None, "the demo's server to leave")


@pytest.mark.slow
def test_the_demo_recovers_from_all_five_and_tells_so(shell: Shell) -> None:
    code, told, said = shell("demo", "--output", str(shell.output))
    assert code == 0, said
    run: dict[str, Any] = json.loads(shell("show", "tiny-gpt", "-o", "json")[1])
    assert (run["state"], run["step"]) == ("succeeded", 360)

    classes = [restart["class"] for restart in run["restarts"]]
    in_order = [name for name, _ in itertools.groupby(classes)]
    assert in_order == ["signal", "hang", "numerics", "signal"], classes

    incidents = sorted(run["incidents"], key=lambda incident: incident["opened_at"])
    remedies = [i["remedy"] for i in incidents if i["kind"] in {"loss_spike", "non_finite"}]
    assert remedies == ["roll back", "roll back", "roll back and skip batches"]
    onsets = [i["onset_step"] for i in incidents if i["remedy"].startswith("roll back")]
    assert 150 <= onsets[0] < 160, "the flipped bit"
    assert 211 <= onsets[1] < 221, "the spoiled batches"
    assert any(first <= 211 and last >= 240 for first, last in run["skip_batches"])
    assert "checkpoint_corrupt" in {incident["kind"] for incident in incidents}
    assert {incident["state"] for incident in incidents} == {"resolved"}

    assert "The logbook" in told
    assert "batches 211 to 240 are quarantined" in told
    assert (shell.output / "run.png").read_bytes().startswith(PNG)
