"""What the agent reads on the node: a rank's directory, and checkpoint shards."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from babysit.ring import Record, RingWriter
from babysit.wire import Phase, Tier, rank_directory, step_directory
from jobs.agent import inventory
from jobs.agent.errors import RefusedPathError
from jobs.agent.rank_reader import RankReader
from jobs.commands import VerifyCheckpoint
from jobs.events import RankBeat, ShardFile, ShardReport

# --- a rank's directory -------------------------------------------------------------------------


def record(step: int) -> Record:
    return Record(step, step + 1, 5.0, 0.5, -1.0, 0.0, 0.1, 0.0, -1.0)


def test_feed_reads_every_record_and_whole_notes_once(tmp_path: Path):
    reader = RankReader(2, tmp_path, 9.0)
    assert reader.samples() is None
    assert reader.notes() == []
    assert reader.beat(alive=True) == RankBeat(
        rank=2, step=0, phase="starting", beat=9.0, alive=True, moved=False
    )
    assert reader.request_stop() is False

    (tmp_path / "ring").touch()  # created, nothing in it yet
    assert reader.samples() is None
    writer = RingWriter(tmp_path / "ring")
    for step in range(1, 3001):
        writer.write(record(step))
    writer.progress(3000, 3001, 17.0, Phase.EVALUATING)
    samples = reader.samples()
    assert (samples.step, samples.lost) == (list(range(1, 3001)), 0)
    assert samples.batch[0] == 2
    assert reader.samples() is None
    assert reader.last_step == 3000
    assert reader.beat(alive=False).model_dump() == {
        "rank": 2,
        "step": 3000,
        "phase": "evaluating",
        "beat": 17.0,
        "alive": False,
        "moved": True,
        "first_step": 1,
    }
    assert reader.request_stop()
    assert writer.stop_requested

    notes = tmp_path / "notes.jsonl"
    notes.write_text('{"a": 1}\n{"b"')
    assert reader.notes() == ['{"a": 1}']
    assert reader.notes() == []
    with notes.open("a") as file:
        file.write(': "ü"}\n')
    assert reader.notes() == ['{"b": "ü"}']
    reader.close()


@pytest.mark.parametrize("draws", [True, False])
def test_the_first_step_of_a_rank_that_reports_nothing(tmp_path: Path, draws: bool) -> None:
    """A loop of `steps()` counts from 1; another rank is first seen at a later step."""
    writer = RingWriter(tmp_path / "ring")
    reader = RankReader(0, tmp_path, 0.0)
    (tmp_path / "notes.jsonl").write_text('{"kind": "looping", "step": 0}\n' if draws else "")
    reader.notes()
    writer.progress(17, 17, 1.0, Phase.LOADING)
    assert reader.beat(alive=True).first_step == (1 if draws else 17)
    writer.write(record(12))
    reader.samples()
    assert reader.beat(alive=True).first_step == 12, "a report says which it was"


def test_feed_says_how_many_records_were_overwritten(tmp_path: Path):
    writer = RingWriter(tmp_path / "ring", capacity=10)
    reader = RankReader(0, tmp_path, 0.0)
    for step in range(1, 26):
        writer.write(record(step))
    samples = reader.samples()
    assert samples.lost >= 15  # the ring may give up one more: the slot being written
    assert samples.step == list(range(samples.lost + 1, 26))


# --- inventory ----------------------------------------------------------------------------------


def shard(root: Path, step: int, rank: int = 0, attempt: int = 1, run: str = "r") -> ShardReport:
    """A whole shard on disk."""
    checkpoint = step_directory(root, step)
    directory = rank_directory(checkpoint, rank)
    directory.mkdir(parents=True)
    content = b"weights" * step
    (directory / "w").write_bytes(content)
    digest = hashlib.blake2b(content, digest_size=16).hexdigest()
    report = ShardReport(
        attempt=attempt,
        step=step,
        rank=rank,
        world_size=2,
        tier=Tier.MEMORY,
        path=str(checkpoint),
        batch=step,
        files=(ShardFile(name="w", bytes=len(content), blake2b=digest),),
        run=run,
    )
    (directory / "manifest.json").write_text(report.model_dump_json())
    return report


def test_inventory_keeps_the_newest_whole_shards_of_each_rank(tmp_path: Path):
    for step in range(1, 7):
        for rank in (0, 1):
            shard(tmp_path, step, rank)
    with (tmp_path / "step-000000006/rank-00001/w").open("ab") as file:
        file.truncate(3)
    (tmp_path / "step-000000005/rank-00000/w").unlink()
    (tmp_path / "step-000000004/rank-00000/manifest.json").write_text("{")
    found = [(s.step, s.rank) for s in inventory.memory_shards(tmp_path)]
    assert found == [(6, 0), (5, 1), (4, 1), (3, 0), (3, 1), (2, 0)]


def test_inventory_says_where_shards_are_now(tmp_path: Path):
    shard(tmp_path / "old", 3)
    (tmp_path / "old").rename(tmp_path / "new")
    [found] = inventory.memory_shards(tmp_path / "new")
    assert found.path == str(tmp_path / "new/step-000000003")
    assert inventory.memory_shards(tmp_path / "none") == ()


def verify(root: Path, **fields) -> str:
    command = {"id": "v", "attempt": 1, "checkpoint": "c", "path": str(step_directory(root, 3))}
    return inventory.verify(VerifyCheckpoint(**{**command, **fields}), "r")


def test_verify_by_manifest_refuses_another_attempts_shard(tmp_path: Path):
    shard(tmp_path, 3, rank=0)
    shard(tmp_path, 3, rank=1, attempt=2)
    assert verify(tmp_path, ranks=(0,)) == ""
    assert "written by attempt 2, not 1" in verify(tmp_path, ranks=(0, 1))
    with pytest.raises(FileNotFoundError, match="rank-00002"):
        verify(tmp_path, ranks=(0, 2))
    (rank_directory(step_directory(tmp_path, 3), 0) / "manifest.json").write_text("{}")
    assert "not a valid manifest" in verify(tmp_path, ranks=(0,))


def test_another_runs_shard_is_neither_verified_nor_deleted(tmp_path: Path):
    shard(tmp_path, 3, rank=0, run="")  # of a version that did not say
    shard(tmp_path, 3, rank=1, run="other")
    assert verify(tmp_path, ranks=(0,)) == ""
    assert "belongs to run other, not to r" in verify(tmp_path, ranks=(0, 1))
    with pytest.raises(RefusedPathError, match="run other has saved there"):
        inventory.delete(step_directory(tmp_path, 3), 1, "r")


def test_what_a_later_attempt_saved_again_is_not_deleted(tmp_path: Path):
    shard(tmp_path, 3, rank=0)
    shard(tmp_path, 3, rank=1, attempt=2)
    with pytest.raises(RefusedPathError, match="later attempt than 1"):
        inventory.delete(step_directory(tmp_path, 3), 1, "r")
    inventory.delete(step_directory(tmp_path, 3), 2, "r")
    assert not step_directory(tmp_path, 3).exists()


@pytest.mark.parametrize("name", ["/", "/home", "step-5", "/tmp/step-", "/tmp/step-5/rank-00000"])
def test_only_checkpoints_are_deleted(name: str):
    with pytest.raises(RefusedPathError):
        inventory.delete(Path(name), 1, "r")


def test_link_to_a_checkpoint_is_not_followed(tmp_path: Path):
    shard(tmp_path, 3)
    link = tmp_path / "step-9"
    link.symlink_to(step_directory(tmp_path, 3))
    with pytest.raises(RefusedPathError):
        inventory.delete(link, 1, "r")
