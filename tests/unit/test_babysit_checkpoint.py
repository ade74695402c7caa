"""Saving and restoring through a framework that writes a directory of its own; without torch."""

from __future__ import annotations

import errno
import json
import random
import threading
from pathlib import Path
from typing import Any

import pytest

from babysit.checkpoint.shard import ShardWriter
from babysit.errors import NotDistributedError, NothingLoadedError
from babysit.reporter import Reporter
from babysit.run import Run
from babysit.wire import (
    MANIFEST_FILE,
    NOTES_FILE,
    Candidate,
    Plan,
    SavePolicy,
    Tier,
    rank_directory,
    step_directory,
)
from jobs.shards import ShardReport


def mark(shard: Path, **fields: Any) -> None:
    """Have a manifest say something else."""
    manifest = shard / MANIFEST_FILE
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | fields))


class Counter:
    """A framework's state: one number, in a file in a folder."""

    def __init__(self) -> None:
        self.value = 0

    def save(self, directory: Path) -> None:
        (directory / "inner").mkdir()
        (directory / "inner" / "value").write_text(str(self.value))

    def load(self, directory: Path) -> None:
        self.value = int((directory / "inner" / "value").read_text())


class Home:
    """Where one rank's checkpoints and notes lie."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.memory = root / "memory"
        self.disk = root / "disk"
        self.policy = SavePolicy(str(self.disk), 4, str(self.memory), 1)

    def run(self, attempt: int = 1, **changes: Any) -> Run:
        (self.root / NOTES_FILE).unlink(missing_ok=True)
        fields = {"run": "r", "rank": 0, "world_size": 1, "save": self.policy} | changes
        return Run(Plan(attempt=attempt, **fields), Reporter(self.root, 0))

    def notes(self, kind: str) -> list[dict[str, Any]]:
        lines = (self.root / NOTES_FILE).read_text().splitlines()
        return [note for note in map(json.loads, lines) if note["kind"] == kind]

    def candidate(self, step: int, tier: Tier = Tier.MEMORY, attempt: int = 1) -> Candidate:
        path = step_directory(self.memory if tier is Tier.MEMORY else self.disk, step)
        return Candidate(f"{tier}-{step}", step, tier, str(path), 1, attempt, "r")

    def steps(self, tier: Tier) -> list[int]:
        root = self.memory if tier is Tier.MEMORY else self.disk
        return sorted(int(path.parts[-3][5:]) for path in root.glob(f"step-*/*/{MANIFEST_FILE}"))


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path)


def train(run: Run, total: int) -> Counter:
    state = Counter()
    run.restore(state)
    for _step, batch in run.steps([1, 2, 3, 4, 5], total=total):
        state.value += batch
        run.checkpoint(state)
    return state


def test_each_tier_gets_its_saves(home: Home) -> None:
    train(home.run(), total=10)
    assert home.steps(Tier.MEMORY) == [8, 9, 10]  # the newest three
    assert home.steps(Tier.DIRECTORY) == [4, 8, 10]  # the last step is saved though not due


def test_a_shard_is_told_as_the_agent_wants_it(home: Home) -> None:
    train(home.run(), total=4)
    manifest = json.loads(
        (rank_directory(step_directory(home.disk, 4), 0) / MANIFEST_FILE).read_text()
    )
    report = ShardReport.model_validate(manifest)
    assert (report.step, report.rank, report.world_size, report.batch) == (4, 0, 1, 4)
    assert report.path == str(step_directory(home.disk, 4))
    assert [file.name for file in report.files] == ["inner/value", "position.json"]
    assert report.files[0].bytes == len("10")
    (note,) = home.notes("shard")
    assert note["files"] == manifest["files"]
    assert set(note["seconds"]) == {"copy", "write"}


def test_restoring_continues_the_run(home: Home) -> None:
    train(home.run(), total=7)
    state = train(home.run(attempt=2, restore=(home.candidate(7),)), total=9)
    assert state.value == train(Home(home.root / "straight").run(), total=9).value
    (note,) = home.notes("restored")
    assert (note["step"], note["checkpoint"], note["rejected"]) == (7, "memory-7", [])


@pytest.mark.parametrize(
    "damage", ["truncated", "changed", "gone", "no manifest", "attempt", "run"]
)
def test_a_damaged_candidate_is_passed_over(home: Home, damage: str) -> None:
    train(home.run(), total=5)
    newest = rank_directory(step_directory(home.memory, 5), 0)
    attempt = 1
    match damage:
        case "truncated":
            (newest / "inner" / "value").write_text("1")
        case "changed":
            (newest / "inner" / "value").write_text("99")
        case "gone":
            (newest / "inner" / "value").unlink()
        case "no manifest":
            (newest / MANIFEST_FILE).unlink()
        case "attempt":
            attempt = 7
        case "run":
            mark(newest, run="another")
    run = home.run(2, restore=(home.candidate(5, attempt=attempt), home.candidate(4)))
    state = Counter()
    assert run.restore(state) == 4
    assert state.value == 1 + 2 + 3 + 4
    (note,) = home.notes("restored")
    assert [refused["id"] for refused in note["rejected"]] == ["memory-5"]
    assert note["rejected"][0]["reason"]


def test_a_shard_from_before_manifests_named_their_run_is_loaded(home: Home) -> None:
    train(home.run(), total=5)
    manifest = rank_directory(step_directory(home.memory, 5), 0) / MANIFEST_FILE
    old = json.loads(manifest.read_text())
    del old["run"]
    manifest.write_text(json.dumps(old))
    assert home.run(2, restore=(home.candidate(5),)).restore(Counter()) == 5


def test_where_nothing_can_be_loaded_nothing_begins_again(home: Home) -> None:
    """A stale mount must not cost the whole run, nor what is in memory."""
    train(home.run(), total=5)
    away = home.disk.rename(home.root / "away")
    run = home.run(2, restore=(home.candidate(4, Tier.DIRECTORY), home.candidate(5, attempt=7)))
    with pytest.raises(NothingLoadedError, match="none of 2 checkpoints can be loaded"):
        run.restore(Counter())
    (note,) = home.notes("restored")
    assert (note["step"], note["checkpoint"]) == (0, "")
    unreadable = [(refused["id"], refused["unreadable"]) for refused in note["rejected"]]
    assert unreadable == [("directory-4", True), ("memory-5", False)]
    assert home.steps(Tier.MEMORY)[-1] == 5
    away.rename(home.disk)
    assert home.run(3, restore=(home.candidate(4, Tier.DIRECTORY),)).restore(Counter()) == 4


def test_saves_of_a_future_that_was_rolled_back_are_forgotten(home: Home) -> None:
    train(home.run(), total=9)
    run = home.run(attempt=2, restore=(home.candidate(4, Tier.DIRECTORY),))
    train(run, total=5)
    assert home.steps(Tier.MEMORY) == [5]
    attempt = json.loads(
        (rank_directory(step_directory(home.memory, 5), 0) / MANIFEST_FILE).read_text()
    )["attempt"]
    assert attempt == 2
    assert home.steps(Tier.DIRECTORY) == [4, 5, 8, 9]  # the control plane's to prune


def test_a_step_saved_again_replaces_the_old_shard(home: Home) -> None:
    train(home.run(), total=4)
    state = train(home.run(attempt=2), total=4)
    assert state.value == 10
    manifest = rank_directory(step_directory(home.disk, 4), 0) / MANIFEST_FILE
    assert json.loads(manifest.read_text())["attempt"] == 2
    assert [p.name for p in step_directory(home.disk, 4).iterdir()] == ["rank-00000"]


def test_a_fenced_attempt_that_lives_on_overwrites_nothing(home: Home) -> None:
    train(home.run(attempt=2), total=4)
    train(home.run(attempt=1), total=4)
    manifest = rank_directory(step_directory(home.disk, 4), 0) / MANIFEST_FILE
    assert json.loads(manifest.read_text())["attempt"] == 2
    assert [p.name for p in step_directory(home.disk, 4).iterdir()] == ["rank-00000"]
    failed = [note for note in home.notes("save_failed") if note["tier"] == "directory"]
    assert [note["error"] for note in failed] == [
        "attempt 2 has saved there since; this is attempt 1"
    ]


def test_a_new_run_may_save_where_one_that_is_over_did(home: Home) -> None:
    train(home.run(attempt=2), total=4)
    train(home.run(run="next"), total=4)
    manifest = rank_directory(step_directory(home.disk, 4), 0) / MANIFEST_FILE
    assert json.loads(manifest.read_text())["run"] == "next"


def test_generators_come_back(home: Home) -> None:
    random.seed(5)
    train(home.run(), total=3)
    expected = random.random()
    random.seed(6)
    home.run(2, restore=(home.candidate(3),)).restore(Counter())
    assert random.random() == expected


def test_a_save_that_fails_is_noted_and_training_goes_on(home: Home) -> None:
    home.disk.write_text("a file where the directory should be")
    state = train(home.run(), total=5)
    assert state.value == 15
    failures = home.notes("save_failed")
    assert [(note["step"], note["tier"]) for note in failures] == [
        (4, "directory"),
        (5, "directory"),
    ]
    assert home.steps(Tier.MEMORY) == [3, 4, 5]  # the other tier is whole


def test_a_framework_that_cannot_save_is_noted(home: Home) -> None:
    class Full(Counter):
        def save(self, directory: Path) -> None:
            raise RuntimeError("PytorchStreamWriter failed writing file")

    run = home.run()
    for _ in run.steps([1], total=1):
        run.checkpoint(Full())
    assert [note["tier"] for note in home.notes("save_failed")] == ["memory", "directory"]
    assert not list(home.root.rglob(MANIFEST_FILE))


def test_training_goes_on_while_a_save_is_written(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    from babysit.checkpoint import saver, shard

    proceed, seal = threading.Event(), shard.ShardWriter.seal

    def slow_seal(writer: shard.ShardWriter) -> None:
        assert proceed.wait(60)
        seal(writer)

    monkeypatch.setattr(shard.ShardWriter, "seal", slow_seal)
    monkeypatch.setattr(saver, "INLINE_BYTES", 0)
    run = home.run()
    for step, _ in run.steps([1, 2], total=1):
        run.checkpoint(Counter())  # returns, though the writer is held up
        assert step == 1
        assert home.steps(Tier.MEMORY) == []  # and a half-written shard is not to be seen
        proceed.set()
    assert home.steps(Tier.MEMORY) == [1]  # the end of the loop waits for it


def test_a_small_memory_save_is_in_place_when_the_call_returns(home: Home) -> None:
    run = home.run()
    for step, _ in run.steps([1, 2], total=2):
        run.checkpoint(Counter())
        assert step in home.steps(Tier.MEMORY)  # from the first one on: a kill now loses nothing


def test_now_saves_what_is_not_due_but_nothing_twice(home: Home) -> None:
    run = home.run()
    for _step, _ in run.steps([1, 2, 3], total=3):
        run.checkpoint(Counter())
        run.checkpoint(Counter(), now=True)
        run.checkpoint(Counter(), now=True)
        break
    run.finish()
    assert home.steps(Tier.DIRECTORY) == [1]
    assert len(home.notes("shard")) == 1


def test_several_ranks_need_a_process_group(home: Home) -> None:
    with pytest.raises(NotDistributedError, match=r"init_process_group\(\) before"):
        home.run(world_size=2).restore({"weight": 1})


def test_alone_a_directory_is_resumed_from(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    import babysit

    for name in ("BABYSIT_RANK_DIR", "RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    train(babysit.init(checkpoint=home.disk, every_steps=2, keep=2), total=7)
    assert home.steps(Tier.DIRECTORY) == [6, 7]
    run = babysit.init(checkpoint=home.disk, every_steps=2)
    state = Counter()
    assert run.restore(state) == 7
    assert state.value == 15 + 3


@pytest.mark.parametrize("killed_after", [13, 20, 25, 40])
def test_a_loop_for_each_epoch_goes_on_after_a_restore(home: Home, killed_after: int) -> None:
    """The position of a checkpoint counts for the loop that it was saved in, and for no other."""
    state, trained = Counter(), 0

    def train(run: Run, last: int) -> None:
        nonlocal trained
        run.restore(state)
        for _ in range(state.value // 10, 4):
            for step, _ in run.steps(range(10), epochs=1):
                trained += 1
                state.value = step
                run.checkpoint(state, now=True)
                if step == last:
                    run.flush()
                    return

    train(home.run(), killed_after)
    state = Counter()
    newest = home.candidate(killed_after)
    train(home.run(attempt=2, restore=(newest,)), 99)
    assert (state.value, trained) == (40, 40)


class Full:
    """A tmpfs with room for `copies` shards; more are refused, as the kernel does."""

    def __init__(self, home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
        self.copies, self.home = 3, home
        write = ShardWriter._write

        def scarce(writer: ShardWriter, name: str, data: bytes) -> None:
            if self.home.memory in writer.directory.parents and self.used() >= self.copies:
                raise OSError(errno.ENOSPC, "No space left on device")
            write(writer, name, data)

        monkeypatch.setattr(ShardWriter, "_write", scarce)

    def used(self) -> int:
        return len(self.home.steps(Tier.MEMORY))


def test_a_full_memory_tier_makes_room_and_keeps_one_sound_copy(home: Home, monkeypatch) -> None:
    tmpfs = Full(home, monkeypatch)
    run, state = home.run(), Counter()
    for step in range(1, 13):
        tmpfs.copies = 3 if step < 6 else 2
        run.checkpoint(state, step=step)
        run.flush()
    assert home.steps(Tier.MEMORY)[-1] == 12
    assert home.notes("save_failed") == []
    tmpfs.copies = 1  # not even two copies: the sound one stays, and the save fails
    run.checkpoint(state, step=13)
    assert home.steps(Tier.MEMORY) == [12]
    [failed] = home.notes("save_failed")
    assert failed["full"]
    assert (failed["step"], failed["tier"]) == (13, "memory")
    tmpfs.copies = 9
    run.checkpoint(state, step=14)
    [resumed] = home.notes("save_resumed")
    assert (resumed["step"], resumed["tier"]) == (14, "memory")


def test_a_full_directory_is_said_and_leaves_nothing_half_written(home: Home, monkeypatch) -> None:
    def full(writer: ShardWriter, name: str, data: bytes) -> None:
        raise OSError(errno.EDQUOT, "Disk quota exceeded")

    run, state = home.run(save=SavePolicy(str(home.disk), 4)), Counter()
    with monkeypatch.context() as patch:
        patch.setattr(ShardWriter, "_write", full)
        run.checkpoint(state, step=4)
        run.flush()
    assert [note["full"] for note in home.notes("save_failed")] == [True]
    assert [path for path in home.disk.rglob("*") if path.is_file()] == []
    run.checkpoint(state, step=8)
    run.flush()
    assert home.steps(Tier.DIRECTORY) == [8]
    assert [note["tier"] for note in home.notes("save_resumed")] == ["directory"]


class _NotOnTmpfs(Counter):
    """A framework's state for which the tmpfs has no room."""

    def save(self, directory: Path) -> None:
        (directory / "begun").touch()
        if "memory" in directory.parts:
            raise OSError(errno.ENOSPC, "No space left on device")
        (directory / "begun").unlink()
        super().save(directory)


def test_a_full_tmpfs_costs_a_framework_no_checkpoint_on_disk(home: Home) -> None:
    run, state = home.run(), _NotOnTmpfs()
    run.restore(state)
    for _step, _batch in run.steps(range(12), total=12):
        run.checkpoint(state)
    assert home.steps(Tier.DIRECTORY) == [4, 8, 12]
    assert home.notes("save_failed")[0]["full"]
    assert list(home.root.rglob(".staging-*")) == []
