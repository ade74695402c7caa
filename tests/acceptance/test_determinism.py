"""A real model, killed and recovered by the whole path: as if nothing had happened, bit for bit."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from tests.control_plane import ROOT, ControlPlane, Servers, control_plane

TEMPLATE = ROOT / "jobs" / "templates" / "tiny_gpt"
STEPS, KILL = 18, 12
Losses = dict[tuple[int, int], tuple[float, float]]


@pytest.fixture(scope="module")
def plane(servers: Servers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    """One control plane for the three runs."""
    with control_plane(servers, tmp_path_factory.mktemp("plane") / "home") as running:
        yield running


def trained(plane: ControlPlane, job: Path, drill: str = "", **checkpoint: Any) -> dict[str, Any]:
    """Run the template with FSDP2 on two nodes; the run at its end."""
    shutil.copytree(TEMPLATE, job, ignore=shutil.ignore_patterns("__pycache__", "checkpoints"))
    spec = YAML(typ="safe").load(job / "run.yaml")
    spec["name"] = job.name
    spec["command"] = ["python", "train.py", "--steps", str(STEPS)]
    spec["env"] |= {"BABYSIT_DRILL": drill, "BABYSIT_DRILL_DIRECTORY": str(job / "drill")}
    spec["checkpoint"] |= {"every_steps": 5, **checkpoint}
    (job / "run.yaml").write_text(json.dumps(spec))
    return plane.state(plane.submit(job / "run.yaml"), "succeeded", seconds=120)


def losses(plane: ControlPlane, run: str) -> Losses:
    """(rank, step) → loss and gradient norm, of every step of every attempt that is on record.

    Rank 0 speaks for the run, so its samples are kept. Its losses come from gradients of both.
    """
    found: Losses = {}
    for (_, rank), samples in sorted(plane.samples(run).items()):
        if rank != 0:
            continue  # kept around a failure alone
        figures = zip(samples.step, samples.loss, samples.grad_norm, strict=True)
        for step, loss, norm in figures:
            known = found.setdefault((rank, step), (loss, norm))
            assert known == (loss, norm), f"step {step} came out otherwise when computed again"
    return found


@pytest.fixture(scope="module")
def left_alone(plane: ControlPlane, tmp_path_factory: pytest.TempPathFactory) -> Losses:
    """Losses of the run that nothing happened to."""
    run = trained(plane, tmp_path_factory.mktemp("alone") / "alone")
    assert run["restarts"] == []
    found = losses(plane, run["id"])
    assert found.keys() == {(0, step) for step in range(1, STEPS + 1)}
    return found


@pytest.mark.slow
def test_recovered_from_node_memory(
    plane: ControlPlane, left_alone: Losses, tmp_path: Path
) -> None:
    """Rank 1 is killed as step 12 begins; both ranks go on from the step before, or one earlier."""
    run = trained(plane, tmp_path / "memory", f"kill@{KILL}:1", memory_every_steps=1)
    (restart,) = run["restarts"]
    assert restart["resumed_step"] >= KILL - 2
    assert losses(plane, run["id"]) == left_alone


@pytest.mark.slow
def test_recovered_from_the_directory(
    plane: ControlPlane, left_alone: Losses, tmp_path: Path
) -> None:
    """Without a memory tier: from step 10, and steps 11 and on come out the same again."""
    run = trained(plane, tmp_path / "directory", f"kill@{KILL}:1", memory_every_steps=0)
    (restart,) = run["restarts"]
    assert restart["resumed_step"] == 10
    assert losses(plane, run["id"]) == left_alone
