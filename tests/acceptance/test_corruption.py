"""Checkpoints are damaged behind the run's back; what is loaded is always sound."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest

from babysit.wire import MANIFEST_FILE
from tests.acceptance.conftest import Job, Jobs
from tests.acceptance.record import check_record
from tests.control_plane import REFUSED, ControlPlane, until

SLOW = {"pace": 0.1, "monitors": {"hang": {"after": "60s"}}}
"""So that ranks can be stopped before they have come much further, and are not called hung."""


def freeze(plane: ControlPlane, run: str) -> None:
    """Stop all ranks where they are."""
    for pid, _ in plane.rings(run).values():
        os.kill(pid, signal.SIGSTOP)


def thaw(plane: ControlPlane, run: str) -> None:
    """Let them go on."""
    for pid, _ in plane.rings(run).values():
        os.kill(pid, signal.SIGCONT)


def content(shard: Path) -> list[Path]:
    """Files of a shard, without its manifest."""
    return [p for p in shard.rglob("*") if p.is_file() and p.name != MANIFEST_FILE]


def truncate(shard: Path) -> None:
    """Cut the files of a shard in half."""
    assert content(shard)
    for file in content(shard):
        os.truncate(file, file.stat().st_size // 2)


def flip(shard: Path) -> None:
    """Change one bit in each file of a shard: the sizes stay."""
    assert content(shard)
    for file in content(shard):
        data = bytearray(file.read_bytes())
        data[len(data) // 2] ^= 1
        file.write_bytes(data)


def is_read_back(plane: ControlPlane, run: str, step: int) -> None:
    """Wait until the directory checkpoint of a step is there, and was found whole."""

    def verified() -> bool:
        rows = plane.ask("checkpoints", "ls", run)
        return any(row["step"] == step and row["trust"] in {"verified", "good"} for row in rows)

    until(verified, f"step {step} is verified")


def shards(job: Job, step: int) -> list[Path]:
    """The shards of a directory checkpoint, by rank."""
    return sorted((job.checkpoints / f"step-{step:09d}").iterdir())


@pytest.mark.parametrize("damaged", [(1,), (0, 1)], ids=["of one rank", "of all ranks"])
def test_the_newest_checkpoints_are_damaged_before_a_kill(
    plane: ControlPlane, jobs: Jobs, damaged: tuple[int, ...]
) -> None:
    """Node memory has flipped bits, the newest directory is cut: the run goes on from step 20."""
    job = jobs(**SLOW)
    run = plane.submit(job.spec)
    plane.at_step(run, 31)
    is_read_back(plane, run, 30)
    freeze(plane, run)
    for rank in damaged:
        truncate(shards(job, 30)[rank])
        for shard in plane.memory().glob(f"{run}/*/checkpoints/step-*/rank-{rank:05d}"):
            flip(shard)
    plane.signal_rank(run, 1, signal.SIGKILL)
    thaw(plane, run)

    until(lambda: _recovered(plane, run), "past where it was killed")
    shown = plane.show(run)
    assert shown["restarts"][-1]["resumed_step"] == 20
    assert {i["kind"] for i in shown["incidents"]} >= {"signal", "checkpoint_corrupt"}
    told = [i["reason"] for i in shown["incidents"] if i["kind"] == "checkpoint_corrupt"]
    assert any("directory checkpoint of step 30 is corrupt" in reason for reason in told), told
    assert any("truncated" in reason or "bytes" in reason for reason in told), told
    story = plane.babysit("logbook", run).stdout
    assert "checkpoint of step 30 is corrupt" in story
    job.finish()
    plane.state(run, "succeeded")
    check_record(plane, run, job)


def _recovered(plane: ControlPlane, run: str) -> bool:
    restarts = plane.show(run)["restarts"]
    return bool(restarts) and restarts[-1]["recovered_at"] is not None


def test_retention_keeps_what_can_be_trusted(plane: ControlPlane, jobs: Jobs) -> None:
    """Only one is to be kept; the newest good one is too, and not even a person may delete it."""
    job = jobs(**SLOW, checkpoint={"keep": 1})
    run = plane.submit(job.spec)
    plane.at_step(run, 31)
    is_read_back(plane, run, 30)
    freeze(plane, run)
    assert {row["step"]: row["trust"] for row in plane.ask("checkpoints", "ls", run)} == {
        30: "verified",
        20: "good",
    }
    until(lambda: len(list(job.checkpoints.glob("step-*"))) == 2, "step 10 is deleted")

    flip(shards(job, 30)[0])
    assert plane.babysit("checkpoints", "verify", run, 30).exit_code == 0
    until(lambda: _trust(plane, run, 30) == "bad", "step 30 is bad")
    (incident,) = plane.show(run)["incidents"]
    assert (incident["kind"], incident["state"]) == ("checkpoint_corrupt", "open")
    assert "content differs from what was written" in incident["reason"]
    kept = plane.babysit("checkpoints", "rm", run, 20)
    assert kept.exit_code == REFUSED
    assert "the last checkpoint of the run that can be trusted" in kept.stderr
    assert plane.show(run)["checkpoint"]["step"] == 20

    thaw(plane, run)
    plane.at_step(run, 52)
    is_read_back(plane, run, 50)
    until(lambda: _on_disk(job) == {40, 50}, "the bad one is gone, and the good one before it")
    job.finish()
    plane.state(run, "succeeded")
    check_record(plane, run, job)


def _trust(plane: ControlPlane, run: str, step: int) -> str:
    rows = plane.ask("checkpoints", "ls", run)
    return next((str(row["trust"]) for row in rows if row["step"] == step), "")


def _on_disk(job: Job) -> set[int]:
    return {int(path.name.removeprefix("step-")) for path in job.checkpoints.glob("step-*")}


def test_a_directory_that_is_away_for_a_while(plane: ControlPlane, jobs: Jobs) -> None:
    """A mount that is gone says nothing about what is on it: the run waits, and loses nothing."""
    job = jobs(**SLOW, checkpoint={"memory_every_steps": 0})
    run = plane.submit(job.spec)
    plane.at_step(run, 25)
    is_read_back(plane, run, 20)
    freeze(plane, run)
    aside = job.checkpoints.rename(job.checkpoints.with_name("aside"))
    plane.signal_rank(run, 1, signal.SIGKILL)
    thaw(plane, run)

    def waits() -> list[dict[str, Any]] | None:
        restarts: list[dict[str, Any]] = plane.show(run)["restarts"]
        return restarts if [r["class"] for r in restarts[1:3]] == ["storage"] * 2 else None

    (first, second, *_) = until(waits, "two attempts could load nothing")[1:]
    assert "none of 2 checkpoints could be loaded" in first["reason"]
    assert (second["node"], second["cause"]) == (None, "infrastructure")
    assert job.steps().keys() == {(1, 0), (1, 1)}, "nothing began again"
    aside.rename(job.checkpoints)
    until(lambda: _recovered(plane, run), "past where it was killed")
    assert plane.show(run)["restarts"][-1]["resumed_step"] == 20
    assert _trust(plane, run, 20) in {"verified", "good"}
    assert {i["kind"] for i in plane.show(run)["incidents"]} == {"signal", "storage"}
    job.finish()
    plane.state(run, "succeeded")
    check_record(plane, run, job)


def test_a_disk_that_cannot_be_written(plane: ControlPlane, jobs: Jobs) -> None:
    """Saves fail: training goes on without them, and someone is told."""
    job = jobs()
    run = plane.submit(job.spec)
    plane.at_step(run, 12)
    is_read_back(plane, run, 10)
    aside = job.checkpoints.rename(job.checkpoints.with_name("aside"))
    job.checkpoints.touch()  # a file where the directory was
    shown = until(lambda: _pages(plane, run), "the second failed save pages")
    (incident,) = shown["incidents"]
    assert (incident["kind"], incident["state"]) == ("checkpoint_failed", "open")
    assert "could not save step" in incident["reason"]
    assert shown["restarts"] == []
    job.checkpoints.unlink()
    aside.rename(job.checkpoints)
    step = shown["step"]
    plane.at_step(run, step + 25)
    until(lambda: plane.show(run)["checkpoint"]["step"] > step, "saves work again")
    assert plane.show(run)["incidents"][0]["state"] == "resolved"
    job.finish()
    plane.state(run, "succeeded")
    check_record(plane, run, job)


def _pages(plane: ControlPlane, run: str) -> dict[str, Any] | None:
    shown = plane.show(run)
    severities = {incident["severity"] for incident in shown["incidents"]}
    return shown if "critical" in severities else None
