"""`FullyShardedDataParallel` (FSDP 1) in a loop: killed, asked to leave, and on other ranks."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from babysit.wire import Tier
from tests.acceptance.trainer_attempts import HERE, Attempts, go_through
from tests.launch import Job, Rank

SCRIPT = "fsdp1_job.py"


@pytest.mark.parametrize("parameters", ["flat", "orig"])
def test_a_loop_with_fsdp_1_goes_on_bit_for_bit(tmp_path: Path, parameters: str) -> None:
    straight = Attempts(tmp_path / "straight", SCRIPT, parameters).attempt()
    assert [rank.code for rank in straight] == [0, 0], straight[0].output
    story = Attempts(tmp_path / "hurt", SCRIPT, parameters)
    go_through(story, straight, kill="1:8", stop="0:11", accumulate=1)


def shown(rank: Rank, what: str) -> list[float]:
    line = next(line for line in rank.output.splitlines() if line.startswith(f"{what} ["))
    found: list[float] = json.loads(line.removeprefix(what))
    return found


@pytest.mark.parametrize("ranks", [1, 3])
def test_fsdp_1_is_loaded_by_another_number_of_ranks(tmp_path: Path, ranks: int) -> None:
    job = Job(tmp_path, command=(str(HERE / SCRIPT), "flat"))
    first = job.attempt()
    assert [rank.code for rank in first] == [0, 0], first[0].output
    found = [(Tier.DIRECTORY, 8, job.attempts)]
    candidates = [job.candidate(*each, rank=0) for each in found]
    job.world_size = ranks
    again = job.attempt(restore=tuple(candidates))
    for rank in again:
        assert rank.code == 0, rank.output
        assert rank.note("restored")["step"] == 8
        assert shown(rank, "restored") == shown(first[0], "saved")
