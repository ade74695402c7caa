"""`resume` in a spec: checkpoints that a script saves by itself, found, recorded and put aside."""

from __future__ import annotations

import asyncio
import datetime as dt
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from pydantic import ValidationError

from jobs import checkpoint_pattern
from jobs.agent.errors import RefusedPathError
from jobs.agent.script_checkpoints import Resumption, ScriptCheckpoints
from jobs.agent.script_records import ScriptRecords
from jobs.clock import ManualClock
from jobs.commands import RestoreCandidate, StartAttempt
from jobs.config import AgentConfig
from jobs.spec import RunSpec

START = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)


def never() -> bool:
    return False


def saved(place: Path, content: str = "weights") -> Path:
    """A checkpoint that is a directory, whole."""
    place.mkdir(parents=True)
    (place / "model.bin").write_text(content)
    (place / "done").touch()
    return place


def records(root: Path) -> ScriptRecords:
    return ScriptRecords(str(root / "out" / "checkpoint-{step}"), "done", "run-1")


@pytest.mark.parametrize(
    ("pattern", "names", "steps"),
    [
        ("checkpoint-{step}", ["checkpoint-5", "checkpoint-500", "checkpoint-", "tmp-7"], [5, 500]),
        ("checkpoint-{step}", ["checkpoint-5.tmp", "checkpoint-x"], []),
        ("epoch=*-step={step}.ckpt", ["epoch=0-step=9.ckpt", "epoch=1-step=30.ckpt"], [9, 30]),
        ("global_step{step}/model", ["global_step3/model"], [3]),
        ("iter_{step}", ["iter_0000100"], [100]),
        ("last.ckpt", ["last.ckpt"], [0]),
        ("a[b]-{step}", ["a[b]-3", "ab-4"], None),
    ],
)
def test_checkpoints_are_found_by_their_names(
    pattern: str, names: list[str], steps: list[int] | None, tmp_path: Path
) -> None:
    if steps is None:
        assert checkpoint_pattern.problem_of(pattern) is not None
        return
    for name in names:
        (tmp_path / name).mkdir(parents=True)
    found = checkpoint_pattern.find(str(tmp_path / pattern))
    assert sorted(found) == steps


@pytest.mark.parametrize(
    ("resume", "complaint"),
    [
        ({}, "expected args, or checkpoints"),
        ({"args": ["--resume", "{checkpoint}"]}, "needs checkpoints with {step}"),
        ({"args": ["{checkpoint}"], "checkpoints": "last.pt"}, "needs checkpoints with {step}"),
        ({"checkpoints": "out/{step}/{step}"}, "expected {step} once"),
        ({"checkpoints": "out/{epoch}"}, "unknown placeholder {epoch}"),
        ({"checkpoints": "out/**/{step}"}, "expected no **"),
        ({"args": ["--go-on"], "complete": "done"}, "need checkpoints"),
        ({"checkpoints": "last.pt", "keep": 2}, "keep needs"),
    ],
)
def test_what_cannot_work_is_refused(resume: dict[str, object], complaint: str) -> None:
    with pytest.raises(ValidationError, match=complaint.replace("*", "[*]")):
        RunSpec.model_validate({"name": "run", "command": ["python", "t.py"], "resume": resume})


def test_a_script_that_saves_by_itself_has_no_directory_of_babysit() -> None:
    spec = {
        "name": "run",
        "command": ["python", "t.py"],
        "resume": {"args": ["--go-on"]},
        "checkpoint": {"directory": "/c"},
    }
    with pytest.raises(ValidationError, match="give one of them"):
        RunSpec.model_validate(spec)


@pytest.mark.parametrize(
    ("script", "fine"), [("python t.py", False), ('python t.py "$@"', True), ("t ${@}", True)]
)
def test_arguments_reach_a_program_behind_a_shell(script: str, fine: bool) -> None:
    command = ["bash", "-c", script, "train"]
    spec = {"name": "run", "command": command, "resume": {"args": ["--go-on"]}}
    if fine:
        RunSpec.model_validate(spec)
    else:
        with pytest.raises(ValidationError, match="arguments of the shell"):
            RunSpec.model_validate(spec)


def test_what_is_whole_is_recorded_and_read_back(tmp_path: Path) -> None:
    place = saved(tmp_path / "out" / "checkpoint-10")
    known = records(tmp_path)
    shard = known.register(10, place, 1, never)
    assert shard is not None
    assert (shard.step, shard.world_size, {f.name for f in shard.files}) == (
        10,
        1,
        {"model.bin", "done"},
    )
    assert records(tmp_path).whole(1, above=9) == (shard,), "another agent finds it"
    assert records(tmp_path).whole(1, above=10) == ()
    assert known.verify(str(place), 1)[0] == ""
    (place / "model.bin").write_text("weighty")
    assert "content differs" in known.verify(str(place), 1)[0]
    (place / "model.bin").write_text("wei")
    assert "3 bytes, 7 expected" in known.verify(str(place), 1)[0]
    assert not known.is_there(10, place)


def test_a_restart_does_not_wait_for_hashes(tmp_path: Path) -> None:
    place = saved(tmp_path / "out" / "checkpoint-10")
    shard = records(tmp_path).register(10, place, 1, lambda: True)
    assert shard is not None
    assert {file.blake2b for file in shard.files if file.bytes} == {""}
    assert records(tmp_path).verify(str(place), 1)[0] == "", "its size is right"


def test_what_was_there_before_the_run_is_not_touched(tmp_path: Path) -> None:
    old = saved(tmp_path / "out" / "checkpoint-500")
    known = records(tmp_path)
    known.note_before()
    new = saved(tmp_path / "out" / "checkpoint-510")
    assert dict(known.found()) == {510: new}
    known.leave_only(0, None)
    assert old.exists()
    assert not new.exists()


def test_the_first_attempt_may_end_before_it_notes_what_was_there(tmp_path: Path) -> None:
    """Another node failed to start: the second attempt is the first that comes so far."""
    old = saved(tmp_path / "out" / "checkpoint-500")
    for file in old.iterdir():
        os.utime(file, (1e9, 1e9))
    half = tmp_path / "out" / "checkpoint-510"
    half.mkdir()
    known = records(tmp_path)
    known.note_before(since=1.1e9)
    known.leave_only(0, None)
    assert old.exists()
    assert not half.exists()


def test_a_checkpoint_from_before_that_the_run_writes_again_is_the_runs(tmp_path: Path) -> None:
    """The same command in the same directory: else the run had nothing to go on from."""
    old = saved(tmp_path / "out" / "checkpoint-500")
    for file in old.iterdir():
        os.utime(file, (1e9, 1e9))
    known = records(tmp_path)
    known.note_before()
    (old / "model.bin").write_text("new weights")
    assert known.found() == {}, "its last file is the old one"
    (old / "done").write_text("")
    assert dict(known.found()) == {500: old}
    shutil.rmtree(old)
    saved(tmp_path / "out" / "checkpoint-500")
    assert dict(known.found()) == {500: old}


def test_a_damaged_list_of_what_was_there_stops_before_anything_is_moved(tmp_path: Path) -> None:
    old = saved(tmp_path / "out" / "checkpoint-500")
    known = records(tmp_path)
    known.note_before()
    (tmp_path / "out" / ".babysit" / "run-1" / "before.json").write_text("")
    with pytest.raises(OSError, match="damaged; write the steps"):
        known.leave_only(0, None)
    assert old.exists()


def test_nothing_is_written_before_the_script_has_saved(tmp_path: Path) -> None:
    """Some scripts refuse to start in a directory that is not empty."""
    (tmp_path / "out").mkdir()
    records(tmp_path).note_before()
    assert list((tmp_path / "out").iterdir()) == []


def test_a_rollback_puts_later_ones_aside_and_can_be_undone(tmp_path: Path) -> None:
    known = records(tmp_path)
    places = {step: saved(tmp_path / "out" / f"checkpoint-{step}") for step in (10, 20, 30)}
    for step, place in places.items():
        known.register(step, place, 1, never)
    known.leave_only(10, places[10])
    assert [p.name for p in (tmp_path / "out").glob("checkpoint-*")] == ["checkpoint-10"]
    assert known.is_there(30, places[30]), "aside, and not lost"
    known.leave_only(30, places[30])
    assert (places[30] / "model.bin").read_text() == "weights"
    assert known.verify(str(places[30]), 1)[0] == ""


def test_half_of_a_checkpoint_is_put_aside(tmp_path: Path) -> None:
    """The rank that wrote it died: a script that takes the newest one must not find it."""
    known = records(tmp_path)
    place = saved(tmp_path / "out" / "checkpoint-10")
    known.register(10, place, 1, never)
    half = tmp_path / "out" / "checkpoint-20"
    half.mkdir()
    assert known.has_marker(half) is False
    known.leave_only(10, place)
    assert place.exists()
    assert not half.exists()


def test_a_step_that_is_written_again_replaces_nothing(tmp_path: Path) -> None:
    known, place = records(tmp_path), tmp_path / "out" / "checkpoint-30"
    for content in ("first", "other", "third"):
        saved(place, content)
        known.register(30, place, 1, never)
        known.leave_only(0, None)
    aside = tmp_path / "out" / ".babysit" / "run-1" / "aside"
    kept = {file.read_text() for file in aside.glob("*/checkpoint-30/model.bin")}
    assert kept == {"first", "other", "third"}
    known.leave_only(30, place)
    assert (place / "model.bin").read_text() == "third", "the one that is registered"


@pytest.mark.parametrize("goes_to", [10, 30])
def test_half_of_a_step_that_is_written_again_does_not_replace_the_whole(
    goes_to: int, tmp_path: Path
) -> None:
    """The run went back from 30 to 10, came to 30 again, and died while it saved."""
    known = records(tmp_path)
    places = {step: saved(tmp_path / "out" / f"checkpoint-{step}") for step in (10, 30)}
    for step, place in places.items():
        known.register(step, place, 1, never)
    known.leave_only(10, places[10])
    places[30].mkdir()
    (places[30] / "model.bin").write_text("wei")
    known.leave_only(goes_to, places[goes_to])
    assert known.is_there(30, places[30])
    known.leave_only(30, places[30])
    assert (places[30] / "model.bin").read_text() == "weights"
    assert (places[30] / "done").exists()


def test_a_delete_spares_what_a_later_attempt_is_writing(tmp_path: Path) -> None:
    known, place = records(tmp_path), saved(tmp_path / "out" / "checkpoint-30")
    known.register(30, place, 1, never)
    known.leave_only(0, None)
    place.mkdir()
    known.delete(place, 1)
    assert place.exists(), "the one aside was meant"
    saved(tmp_path / "out" / "checkpoint-40")
    known.register(40, tmp_path / "out" / "checkpoint-40", 1, never)
    (tmp_path / "out" / "checkpoint-40" / "model.bin").write_text("of attempt 2")
    with pytest.raises(RefusedPathError, match="has changed since"):
        known.delete(tmp_path / "out" / "checkpoint-40", 1)


def test_a_delete_that_was_interrupted_is_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another client of NFS has a file open."""
    known, place = records(tmp_path), saved(tmp_path / "out" / "checkpoint-30")
    known.register(30, place, 1, never)
    with monkeypatch.context() as patched:
        patched.setattr(shutil, "rmtree", lambda _path: (place / "busy").rmdir())
        with pytest.raises(OSError, match="busy"):
            known.delete(place, 1)
    assert not place.exists(), "the script never finds half of it"
    known.delete(place, 1)
    assert list((tmp_path / "out").rglob("model.bin")) == []
    assert known.registered() == []


def test_storage_that_cannot_be_read_is_not_a_missing_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a stale NFS handle would send the run back to step 0."""
    known, place = records(tmp_path), saved(tmp_path / "out" / "checkpoint-30")
    known.register(30, place, 1, never)

    def stale(_path: Path) -> object:
        raise OSError(116, "Stale file handle")

    monkeypatch.setattr("jobs.agent.script_records.signature", stale)
    with pytest.raises(OSError, match="Stale"):
        known.is_there(30, place)


def test_only_what_the_run_has_saved_is_deleted(tmp_path: Path) -> None:
    known = records(tmp_path)
    mine = saved(tmp_path / "out" / "checkpoint-10")
    other = saved(tmp_path / "out" / "checkpoint-20")
    known.register(10, mine, 1, never)
    for path, attempt in ((other, 1), (mine, 2)):
        with pytest.raises(RefusedPathError):
            known.delete(path, attempt)
    known.delete(mine, 1)
    assert not mine.exists()
    assert other.exists()
    assert known.registered() == []


@pytest.mark.parametrize("damage", ["", "{", json.dumps({"step": 1})])
def test_a_damaged_record_is_left_out(tmp_path: Path, damage: str) -> None:
    known = records(tmp_path)
    known.register(10, saved(tmp_path / "out" / "checkpoint-10"), 1, never)
    (tmp_path / "out" / ".babysit" / "run-1" / "step-20.json").write_text(damage)
    assert [shard.step for shard in known.registered()] == [10]


def test_a_file_can_be_a_checkpoint(tmp_path: Path) -> None:
    known = ScriptRecords(str(tmp_path / "step={step}.ckpt"), None, "run-1")
    place: Callable[[int], Path] = lambda step: tmp_path / f"step={step}.ckpt"  # noqa: E731
    for step in (1, 2):
        place(step).write_text("weights")
        known.register(step, place(step), 1, never)
    assert known.has_marker(place(1)) is None
    known.leave_only(1, place(1))
    assert not place(2).exists()
    known.delete(place(2), 1)
    known.delete(place(1), 1)
    assert not place(1).exists()


def start(tmp_path: Path, *offered: tuple[int, Path]) -> Resumption:
    """The second attempt begins on the node of rank 0, and is offered these checkpoints."""
    spec = {
        "name": "run",
        "command": ["python", "t.py"],
        "resume": {
            "args": ["--resume", "{checkpoint}", "--step={step}"],
            "checkpoints": str(tmp_path / "out" / "checkpoint-{step}"),
            "complete": "done",
        },
    }
    config = AgentConfig(
        run="run-1",
        worker="w",
        node="n",
        token="t",
        directory=tmp_path,
        log_directory=tmp_path,
        memory_directory=tmp_path,
        spec=RunSpec.model_validate(spec),
    )
    command = StartAttempt(
        id="1",
        attempt=2,
        ranks=(0,),
        world_size=1,
        node_rank=0,
        nodes=1,
        master_address="a",
        master_port=1,
        restore=tuple(
            RestoreCandidate(
                id=str(step), step=step, tier="directory", path=str(path), world_size=1, attempt=1
            )
            for step, path in offered
        ),
    )
    agent = ScriptCheckpoints(config, Silent(), ManualClock(START))  # type: ignore[arg-type]
    return asyncio.run(agent.begin(command))


class Silent:
    """A reporter that nobody hears."""


def test_the_newest_checkpoint_that_is_there_is_passed_on(tmp_path: Path) -> None:
    known = records(tmp_path)
    places = {step: saved(tmp_path / "out" / f"checkpoint-{step}") for step in (10, 20)}
    for step, place in places.items():
        known.register(step, place, 1, never)
    gone = (30, tmp_path / "out" / "checkpoint-30")  # the script has deleted it
    found = start(tmp_path, gone, (20, places[20]), (10, places[10]))
    assert found.arguments == ("--resume", str(places[20]), "--step=20")
    assert found.variables == {"BABYSIT_RESUME": str(places[20]), "BABYSIT_RESUME_STEP": "20"}


def test_what_cannot_be_put_aside_costs_no_work(tmp_path: Path) -> None:
    """Begun anew, the run would throw away all that it has."""
    known = records(tmp_path)
    places = {step: saved(tmp_path / "out" / f"checkpoint-{step}") for step in (10, 20)}
    for step, place in places.items():
        known.register(step, place, 1, never)
    (tmp_path / "out" / ".babysit" / "run-1" / "aside").write_text("in the way")
    assert start(tmp_path, (10, places[10])).arguments[1] == str(places[10])
    assert places[20].exists()


def test_without_a_checkpoint_the_command_is_as_it_was(tmp_path: Path) -> None:
    assert start(tmp_path).arguments == ()
