"""The soak finds every wrong that was done to a run, and nothing else."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.soak.judge import complaints_about_nodes, complaints_about_run
from benchmarks.soak.kinds import KINDS

ROOT = Path(__file__).parents[2]


def run(**changes: Any) -> dict[str, Any]:
    left_alone = {
        "name": "uploads",
        "state": "succeeded",
        "reason": "",
        "restarts": [],
        "incidents": [],
        "avoid": [],
        "skip_batches": [],
    }
    return left_alone | changes


def restart(remedy: str) -> dict[str, Any]:
    return {"remedy": remedy, "class": "hang", "reason": "no progress"}


def incident(remedy: str) -> dict[str, Any]:
    return {"remedy": remedy, "kind": "hang", "reason": "no progress"}


def test_a_run_left_alone() -> None:
    watched = [incident("wait"), incident("recorded")]
    assert complaints_about_run(run(incidents=watched)) == []
    assert complaints_about_run(run(restarts=[restart("as asked")]), asked_restarts=1) == []


@pytest.mark.parametrize(
    "wrong",
    [
        {"state": "failed"},
        {"state": "held"},
        {"restarts": [restart("retry")]},
        {"restarts": [restart("as asked")]},
        {"incidents": [incident("restart")]},
        {"incidents": [incident("roll back")]},
        {"avoid": ["node-1"]},
        {"skip_batches": [(3, 4)]},
    ],
)
def test_each_wrong_is_a_complaint(wrong: dict[str, Any]) -> None:
    assert len(complaints_about_run(run(**wrong))) == 1


def test_a_restart_that_was_asked_for_and_did_not_come() -> None:
    assert len(complaints_about_run(run(), asked_restarts=1)) == 1


def test_nodes_that_are_blamed() -> None:
    sound = {"id": "node-1", "state": "ready", "reason": "", "faults": []}
    cordoned = sound | {"id": "node-2", "state": "cordoned"}
    blamed = sound | {"id": "node-3", "faults": [{"class": "hang"}]}
    assert complaints_about_nodes([sound]) == []
    assert len(complaints_about_nodes([sound, cordoned, blamed])) == 2


def test_the_soak_has_ten_kinds_and_explains_itself() -> None:
    assert sum(kind.default for kind in KINDS.values()) == 10
    command = [sys.executable, "-m", "benchmarks.soak", "--help"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert all(name in done.stdout.replace("\n", " ") for name in ("--minutes", "--scale"))
