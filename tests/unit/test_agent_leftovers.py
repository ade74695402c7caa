"""Leftovers of killed writers are swept as the next attempt begins, and nothing else is."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from babysit.checkpoint.shard import hidden_directory, staging_directory
from babysit.wire import MANIFEST_FILE, Tier, rank_directory, step_directory
from jobs.agent import leftovers
from jobs.shards import ShardReport

RUN = "r"


def shard(root: Path, step: int, rank: int, attempt: int, run: str = RUN, world: int = 2) -> Path:
    checkpoint = step_directory(root, step)
    directory = rank_directory(checkpoint, rank)
    directory.mkdir(parents=True)
    report = ShardReport(
        attempt=attempt,
        step=step,
        rank=rank,
        world_size=world,
        tier=Tier.DIRECTORY,
        path=str(checkpoint),
        batch=step,
        files=(),
        run=run,
    )
    (directory / MANIFEST_FILE).write_text(report.model_dump_json())
    return directory


def whole(root: Path, step: int, attempt: int, run: str = RUN) -> list[Path]:
    return [shard(root, step, rank, attempt, run) for rank in (0, 1)]


def hidden(root: Path, step: int, writer: str, rank: int = 0) -> Path:
    path = hidden_directory(rank_directory(step_directory(root, step), rank), writer)
    path.mkdir(parents=True)
    return path


def staged(root: Path, writer: str) -> Path:
    path = staging_directory(root, 0, writer)
    path.mkdir(parents=True)
    (path / "weights").touch()
    return path


def sweep(root: Path, tier: Tier = Tier.DIRECTORY, kept: tuple[tuple[int, int], ...] = ()):
    """As attempt 3 begins."""
    return set(leftovers.sweep(root, 3, RUN, kept, tier))


def test_half_written_shards_of_dead_attempts_are_swept_and_no_others(tmp_path: Path):
    left = whole(tmp_path, 1, 1)
    old = {hidden(tmp_path, 1, "r.1"), hidden(tmp_path, 2, "r.2"), staged(tmp_path, "r.2")}
    left += [hidden(tmp_path, 1, "r.3"), hidden(tmp_path, 3, "other.1"), hidden(tmp_path, 4, ".0")]
    left += [staged(tmp_path, "r.3"), staged(tmp_path, "other.1"), staged(tmp_path, ".0")]
    assert sweep(tmp_path) == old
    assert not any(path.exists() for path in old)
    assert all(path.exists() for path in left)
    assert not step_directory(tmp_path, 2).exists()


@pytest.mark.parametrize("step", [5, 10, 20], ids=["older", "newest", "newer than all others"])
def test_a_whole_shard_without_its_peer_is_swept_at_any_age(tmp_path: Path, step: int):
    """The rank was killed after its peer had written, and before itself had."""
    left = whole(tmp_path, 7, 1) + whole(tmp_path, 9, 2)
    orphan = shard(tmp_path, step, 1, 2)
    assert sweep(tmp_path) == {orphan}
    assert not step_directory(tmp_path, step).exists()
    assert all(path.exists() for path in left)


def test_shards_of_two_attempts_do_not_make_one_checkpoint(tmp_path: Path):
    """Attempt 2 was killed while it saved step 5 again, after a rollback."""
    mixed = {shard(tmp_path, 5, 0, 2), shard(tmp_path, 5, 1, 1)}
    assert sweep(tmp_path) == mixed


def test_what_is_in_use_complete_or_of_others_is_not_touched(tmp_path: Path):
    offered = shard(tmp_path, 5, 0, 2)  # the control plane knows better
    mine = shard(tmp_path, 6, 0, 3)  # this attempt's, whose peer still writes
    other = shard(tmp_path, 7, 0, 1, run="other")
    alone = shard(tmp_path, 8, 0, 0, run="")
    unreadable = shard(tmp_path, 9, 0, 2)
    (shard(tmp_path, 9, 1, 2) / MANIFEST_FILE).write_text("{")
    copied = tmp_path / "step-copy" / "rank-00000"
    shutil.copytree(shard(tmp_path, 10, 0, 2), copied)
    shard(tmp_path, 10, 1, 2)
    assert sweep(tmp_path, kept=((2, 5),)) == set()
    assert all(path.exists() for path in (offered, mine, other, alone, unreadable, copied))


def test_on_tmpfs_only_what_no_other_node_can_complete_is_swept(tmp_path: Path):
    """A node has the shards of its own ranks, here 0 and 1 of 4."""
    left = [shard(tmp_path, 4, rank, 2, world=4) for rank in (0, 1)]
    orphan = shard(tmp_path, 5, 0, 2, world=4)
    assert sweep(tmp_path, Tier.MEMORY) == {orphan}
    half = hidden(tmp_path, 6, "r.1", rank=1)  # of an attempt that never saved twice
    orphan = shard(tmp_path, 6, 0, 1, world=4)
    assert sweep(tmp_path, Tier.MEMORY) == {orphan, half}
    assert all(path.exists() for path in left)


def test_a_shard_that_shows_at_the_second_look_is_no_loss(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """A file server shows a node what another one wrote up to a minute late."""
    left = [shard(tmp_path, 5, 0, 2)]
    look = leftovers._look_again

    def late(directory: Path) -> None:
        look(directory)
        left.append(shard(tmp_path, 5, 1, 2))

    monkeypatch.setattr(leftovers, "_look_again", late)
    assert sweep(tmp_path) == set()
    assert len(left) == 2
    assert sorted(path.name for path in left[0].parent.iterdir()) == ["rank-00000", "rank-00001"]
