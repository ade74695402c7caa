"""What the agent reads on the node: a rank's directory, and checkpoint shards."""

from __future__ import annotations

import errno
import hashlib
import json
import mmap
import os
import shutil
import tempfile
from pathlib import Path

import pytest

from babysit.checkpoint.shard import hidden_directory
from babysit.reporter import Reporter
from babysit.ring import Record, RingWriter
from babysit.wire import Note, Phase, Tier, rank_directory, step_directory
from jobs.agent import inventory, page_cache
from jobs.agent.errors import RefusedPathError
from jobs.agent.rank_reader import RankReader
from jobs.commands import VerifyCheckpoint
from jobs.events import RankBeat
from jobs.shards import ShardFile, ShardReport

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
        "printed": False,
        "parts": (),
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
    reader.close()


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


def test_shards_of_ranks_that_a_worker_has_no_more_are_dropped(tmp_path: Path):
    for step in (1, 2):
        for rank in (0, 1):
            shard(tmp_path, step, rank)
    shard(tmp_path, 3, 1)
    for rank in (0, 1):  # left by a killed writer
        (tmp_path / f"step-000000002/.rank-{rank:05d}.run.1.0a0b0c0d").mkdir()
    (tmp_path / "step-000000001/notes").touch()
    inventory.drop_others(tmp_path, (0,))
    assert [(s.step, s.rank) for s in inventory.memory_shards(tmp_path)] == [(2, 0), (1, 0)]
    left = {path.name for path in tmp_path.rglob("*rank-*")}
    assert left == {"rank-00000", ".rank-00000.run.1.0a0b0c0d"}
    assert not (tmp_path / "step-000000003").exists()
    inventory.drop_others(tmp_path / "none", (0,))


def test_a_shard_that_cannot_be_deleted_keeps_no_attempt_from_starting(tmp_path: Path):
    (tmp_path / "step-000000004/rank-00001" / inventory.MANIFEST_FILE).mkdir(parents=True)
    inventory.drop_others(tmp_path, (0,))
    assert not (tmp_path / "step-000000004").exists()


def test_inventory_says_where_shards_are_now(tmp_path: Path):
    shard(tmp_path / "old", 3)
    (tmp_path / "old").rename(tmp_path / "new")
    [found] = inventory.memory_shards(tmp_path / "new")
    assert found.path == str(tmp_path / "new/step-000000003")
    assert inventory.memory_shards(tmp_path / "none") == ()


def verify(root: Path, **fields) -> str:
    command = {"id": "v", "attempt": 1, "checkpoint": "c", "path": str(step_directory(root, 3))}
    return inventory.verify(VerifyCheckpoint(**{**command, **fields}), "r")[0]


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


def test_what_is_read_back_is_the_medium_or_named_as_memory(tmp_path: Path):
    shard(tmp_path, 3)
    command = {"id": "v", "attempt": 1, "checkpoint": "c", "ranks": (0,)}
    path = str(step_directory(tmp_path, 3))
    fault, medium = inventory.verify(VerifyCheckpoint(**command, path=path), "r")
    assert (fault, medium) == ("", page_cache.DROPPED)
    with tempfile.TemporaryDirectory(dir="/dev/shm") as memory:
        shard(Path(memory), 3)
        path = str(step_directory(memory, 3))
        fault, medium = inventory.verify(VerifyCheckpoint(**command, path=path), "r")
        assert (fault, medium) == ("", page_cache.MEMORY)


def test_a_file_that_another_process_keeps_in_memory_is_said_to_be_read_from_there(tmp_path: Path):
    file = tmp_path / "file"
    file.write_bytes(b"x" * 65536)
    with file.open("rb") as stream:
        assert page_cache.drop(stream.fileno(), 65536) == page_cache.DROPPED
        with mmap.mmap(stream.fileno(), 0, prot=mmap.PROT_READ) as mapped:
            assert sum(mapped[::4096]) > 0  # pages that are mapped cannot be dropped
            assert page_cache.drop(stream.fileno(), 65536) == page_cache.CACHED


def hidden(root: Path, step: int, writer: str) -> Path:
    final = rank_directory(step_directory(root, step), 0)
    path = hidden_directory(final, writer)
    path.mkdir(parents=True)
    return path


def test_a_checkpoint_that_a_later_attempt_is_writing_again_is_not_deleted(tmp_path: Path):
    shard(tmp_path, 3, attempt=1)
    hidden(tmp_path, 3, "r.2")
    with pytest.raises(RefusedPathError, match="later attempt"):
        inventory.delete(step_directory(tmp_path, 3), 1, "r")


def test_notes_arrive_though_the_directory_is_removed_and_made_again(tmp_path: Path):
    rank = tmp_path / "rank-00000"
    rank.mkdir()
    reader, writer = RankReader(0, rank, 0.0), Reporter(rank, 0)
    writer.note(Note.STARTED)
    assert len(reader.notes()) == 1
    shutil.rmtree(rank)
    writer.note(Note.SHARD, step=5)
    [line] = reader.notes()
    assert json.loads(line)["step"] == 5
    rank.mkdir()
    late = Reporter(rank, 0)
    late.note(Note.STARTED)
    writer.note(Note.SHARD, step=10)
    assert {json.loads(line)["kind"] for line in reader.notes()} == {"started", "shard"}
    reader.close()


def test_notes_that_a_full_tmpfs_refuses_are_written_once_there_is_room(tmp_path, monkeypatch):
    rank = tmp_path / "rank-00000"
    rank.mkdir()
    reader, writer = RankReader(0, rank, 0.0), Reporter(rank, 0)
    write = os.write
    room = {"bytes": 50}

    def scarce(descriptor: int, data: bytes) -> int:
        if room["bytes"] <= 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        room["bytes"] -= len(data[: room["bytes"]])
        return write(descriptor, data[: room["bytes"] or 50])

    monkeypatch.setattr("babysit.reporter.os.write", scarce)
    for step in (1, 2):
        writer.note(Note.SHARD, step=step)
    assert reader.notes() == []
    room["bytes"] = 10**6
    writer.record(record(3), Phase.TRAINING)
    assert [json.loads(line)["step"] for line in reader.notes()] == [1, 2]
    reader.close()


def test_whole_checkpoints_on_disk_are_those_of_the_last_attempt(tmp_path: Path):
    def save(step: int, attempt: int = 2, *, world: int = 2, **fields: str) -> None:
        for rank in range(world):
            report = shard(tmp_path, step, rank, attempt=attempt, **fields)
            manifest = rank_directory(report.path, rank) / "manifest.json"
            manifest.write_text(report.model_copy(update={"world_size": 2}).model_dump_json())

    def found(attempt: int = 2, above: int = 0) -> list[tuple[int, int]]:
        return [
            (s.step, s.rank) for s in inventory.whole_checkpoints(tmp_path, "r", attempt, above)
        ]

    assert inventory.whole_checkpoints(tmp_path / "none", "r", 1, 0) == ()
    save(5)
    save(20)
    save(30)
    save(40, world=1)  # a rank was killed before its shard was whole
    save(50, run="other")
    save(60, run="")  # nobody knows whose
    save(70, attempt=1)  # the run went on from before it
    save(80)
    (tmp_path / "step-000000080/rank-00001/w").write_bytes(b"cut")
    (tmp_path / "step-000000090").mkdir()
    (tmp_path / "notes").mkdir()
    assert found(above=5) == [(30, 0), (30, 1), (20, 0), (20, 1)]
    assert {s.tier for s in inventory.whole_checkpoints(tmp_path, "r", 2, 20)} == {Tier.DIRECTORY}
    assert found(attempt=1) == found(), "an older attempt's are not taken beside newer ones"
    assert found(attempt=3) == []
