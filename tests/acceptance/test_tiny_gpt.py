"""The template, killed and damaged, must go on as if nothing had happened: bit for bit."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from babysit import flight_record
from babysit.wire import Tier, rank_directory, step_directory
from tests.launch import TRAIN, Job, Rank

STEPS = 16
KILL = 11
COMMAND = (str(TRAIN), "--steps", str(STEPS))


def succeeded(ranks: list[Rank]) -> list[Rank]:
    assert [rank.code for rank in ranks] == [0, 0], "\n".join(rank.output for rank in ranks)
    return ranks


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[int, float]:
    """Losses of the run left alone."""
    ranks = succeeded(Job(tmp_path_factory.mktemp("alone"), command=COMMAND).attempt())
    assert ranks[0].losses() == ranks[1].losses()  # the mean over the ranks
    losses = ranks[0].losses()
    assert list(losses) == list(range(1, STEPS + 1))
    return losses


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What is left of a run whose rank 1 was killed when step 11 began."""
    job = Job(tmp_path_factory.mktemp("killed"), command=COMMAND)
    ranks = job.attempt(environment={"BABYSIT_DRILL": f"kill@{KILL}:1"})
    assert ranks[1].code == -9
    return job.root


@pytest.fixture
def killed(scene: Path, tmp_path: Path) -> Job:
    """That run, this test's own."""
    ignored = shutil.ignore_patterns(flight_record.ASK_FILE)  # a pipe
    job = Job(shutil.copytree(scene, tmp_path / "killed", ignore=ignored), command=COMMAND)
    job.attempts = 1
    return job


def after(losses: dict[int, float], step: int) -> dict[int, float]:
    return {s: loss for s, loss in losses.items() if s > step}


@pytest.mark.slow
def test_restored_from_memory_no_step_is_lost(killed: Job, undisturbed: dict[int, float]) -> None:
    # The kill strikes while the save of the step before may still be on its way.
    newest = max(s for s in range(KILL) if whole(killed, s))
    assert newest >= KILL - 2
    ranks = succeeded(killed.attempt([(Tier.MEMORY, newest, 1)]))
    assert ranks[0].note("restored")["step"] == newest
    assert ranks[0].losses() == after(undisturbed, newest)


def whole(job: Job, step: int) -> bool:
    return all(
        (rank_directory(step_directory(job.memory(rank), step), rank) / "manifest.json").exists()
        for rank in range(job.world_size)
    )


@pytest.mark.slow
def test_restored_from_the_directory(killed: Job, undisturbed: dict[int, float]) -> None:
    ranks = succeeded(killed.attempt([(Tier.DIRECTORY, 8, 1)]))
    assert ranks[0].losses() == after(undisturbed, 8)


@pytest.mark.slow
def test_workers_that_load_ahead_change_nothing(killed: Job, undisturbed: dict[int, float]) -> None:
    killed.command = (*COMMAND, "--workers", "2")
    ranks = succeeded(killed.attempt([(Tier.DIRECTORY, 4, 1)]))
    assert ranks[0].losses() == after(undisturbed, 4)


@pytest.mark.slow
def test_a_truncated_checkpoint_is_refused_by_all(
    tmp_path: Path, undisturbed: dict[int, float]
) -> None:
    job = Job(tmp_path, command=COMMAND)
    ranks = job.attempt(environment={"BABYSIT_DRILL": f"truncate@{KILL}:1"})
    assert ranks[1].code == -9

    ranks = succeeded(
        job.attempt([(Tier.MEMORY, 10, 1), (Tier.DIRECTORY, 8, 1), (Tier.DIRECTORY, 4, 1)])
    )
    for rank in ranks:
        assert rank.note("restored")["checkpoint"] == "directory-4"
        assert rank.losses() == after(undisturbed, 4)
    # Whoever found the damage says what it is; the ranks that saw none of it have nothing to tell.
    told = [rank.note("restored")["rejected"] for rank in ranks]
    assert told[0] == []
    assert [refused["id"] for refused in told[1]] == ["memory-10", "directory-8"]
    assert all("bytes" in refused["reason"] for refused in told[1])


@pytest.mark.slow
def test_quarantined_batches_are_passed_over(tmp_path: Path, undisturbed: dict[int, float]) -> None:
    job = Job(tmp_path, command=COMMAND)
    ranks = succeeded(job.attempt(skip_batches=((6, 8),)))
    for rank in ranks:
        batches = [record.batch for record in rank.records]
        assert batches == [*range(1, 6), *range(9, STEPS + 4)]
    before = {s: loss for s, loss in undisturbed.items() if s < 6}
    assert {s: loss for s, loss in ranks[0].losses().items() if s < 6} == before
    assert ranks[0].losses()[6] != undisturbed[6]


LOAD_ALONE = """
import sys; sys.path.insert(0, sys.argv[1])
import babysit, torch
from model import GPT, Config
model = GPT(Config())
optimizer = torch.optim.AdamW(model.parameters(), lr=0.0)
run = babysit.init()
assert run.restore({"model": model, "optimizer": optimizer}) == 8
assert len(optimizer.state) == len(list(model.parameters()))
torch.save(model.state_dict(), "whole.pt")
"""


@pytest.mark.slow
def test_two_shards_load_into_one_process(killed: Job, tmp_path: Path) -> None:
    import torch

    from babysit.checkpoint.tensors import read

    saved = read(step_directory(killed.directory, 8), world_size=2)
    alone = Job(tmp_path, world_size=1, command=("-c", LOAD_ALONE, str(TRAIN.parent)))
    (rank,) = alone.attempt(restore=(killed.candidate(Tier.DIRECTORY, 8, 1, 0),))
    assert rank.code == 0, rank.output
    loaded = torch.load(tmp_path / "whole.pt")
    expected = {name[6:]: t for name, t in saved.items() if name.startswith("model/")}
    assert loaded.keys() == expected.keys()
    assert all(torch.equal(loaded[name], expected[name]) for name in expected)
