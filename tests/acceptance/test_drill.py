"""`babysit monitors drill` on real ranks: faults are found, scored, and nothing is left behind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.acceptance.conftest import JOB
from tests.control_plane import ROOT

OK, FAILED = 0, 1
GENEROUS = ("--recover-within", "10m")


def drill(directory: Path, *arguments: str) -> tuple[int, dict[str, Any], str]:
    """The exit code, the scoreboard and the progress of a drill."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("BABYSIT_")}
    done = subprocess.run(
        [
            *(sys.executable, "-P", "-m", "orchestrator.cli.main", "monitors", "drill"),
            *(*arguments, "--directory", str(directory), *GENEROUS, "-o", "json"),
        ],
        env={**environment, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout), done.stderr


def left(home: Path) -> list[str]:
    """Processes with this home in their environment."""
    mark = str(home).encode()
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and mark in (entry / "environ").read_bytes():
                found.append((entry / "cmdline").read_text())
        except OSError:
            continue
    return found


def test_a_run_of_ones_own_misses_a_target_that_nothing_meets(tmp_path: Path) -> None:
    """Exit code 1: one fault is found too late for its target, the other in time."""
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    file = tmp_path / "run.yaml"
    command = [sys.executable, str(JOB), "--scratch", str(scratch), "--pace", "0.05"]
    spec = {
        "name": "mine",
        "command": command,
        "env": {"PYTHONPATH": str(ROOT)},
        "resources": {"nodes": 2},
        "checkpoint": {"directory": "./mine", "every_steps": 10, "memory_every_steps": 1},
    }
    file.write_text(json.dumps(spec))
    targets = ("--target", "kill=0.000001", "--target", "hang=120")
    code, found, said = drill(
        tmp_path / "out", str(file), "--yes", "--faults", "kill,hang", *targets
    )
    kill, hang = found["faults"]
    assert (code, found["ok"], kill["ok"], hang["ok"]) == (FAILED, False, False, True), said
    assert (kill["found_as"], hang["found_as"]) == ("signal", "hang")
    assert kill["missed"].startswith("found after")
    assert not (tmp_path / "mine").exists(), "the caller's checkpoints are left alone"
    assert left(tmp_path / "out") == []


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_built_in_job_meets_its_targets(tmp_path: Path) -> None:
    """Exit code 0: a signal from outside, and two orders to the script, which goes on with one."""
    pytest.importorskip("torch")
    targets = ("--target", "kill=120", "--target", "slow=240", "--target", "raise=120")
    code, found, said = drill(tmp_path / "out", "--faults", "kill,slow,raise", *targets)
    assert (code, found["ok"]) == (OK, True), said
    assert [(row["found_as"], row["ending"]) for row in found["faults"]] == [
        ("signal", "recovers"),
        ("straggler", "goes on"),
        ("user_code", "stops"),
    ]
    assert {each["class"] for each in found["not_provoked"]} > {"hang", "27 many nodes at once"}
    assert left(tmp_path / "out") == []
