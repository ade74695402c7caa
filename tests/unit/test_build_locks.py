"""Locks of torch's builds are deleted only if their writers are dead for certain."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from jobs.agent.build_locks import BuildLocks, holder_of, waited_for

HOLD = """
import os, sys
os.open(sys.argv[1], os.O_CREAT | os.O_EXCL)
print("held", flush=True)
sys.stdin.read()
"""
FRAMES = ("wait (torch/utils/file_baton.py:55)", "jit_load (deepspeed/ops/op_builder/builder.py:1)")


def builder(lock: Path) -> subprocess.Popen[bytes]:
    """A process that takes a lock as torch does, and holds it."""
    lock.parent.mkdir(parents=True, exist_ok=True)
    started = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(lock)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert started.stdout is not None
    assert started.stdout.readline() == b"held\n"
    return started


@pytest.fixture
def lock(tmp_path: Path) -> Path:
    """Where torch would put it."""
    return tmp_path / "torch_extensions" / "py311_cpu" / "fused_adam" / "lock"


def test_the_lock_of_a_dead_writer_is_deleted(lock: Path) -> None:
    """It is kept for as long as the writer lives."""
    with builder(lock) as writer:
        locks = BuildLocks()
        locks.note(writer.pid)
        assert locks.clear() == []
        assert holder_of(lock) == writer.pid
        writer.kill()
        writer.wait()
        assert locks.clear() == [lock]
    assert not lock.exists()


@pytest.mark.parametrize("other", ["another build", "never seen"])
def test_a_lock_that_may_be_in_use_is_kept(lock: Path, other: str) -> None:
    """Another build has taken it since, or nobody knows who left it."""
    locks = BuildLocks()
    with builder(lock) as writer:
        if other == "another build":
            locks.note(writer.pid)
        writer.kill()
        writer.wait()
    if other == "another build":
        kept = lock.with_name("kept")
        lock.rename(kept)  # so that the new file is another one for certain
        with builder(lock) as second:
            assert locks.clear() == []
            second.kill()
    assert locks.clear() == []
    assert lock.exists()


def test_a_lock_made_anew_while_it_is_noted(lock: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The new one may be another node's: only the file that the process had open is its lock."""
    read = os.readlink

    def readlink(path: os.PathLike[str] | str) -> str:
        target = read(path)
        if target == str(lock):
            lock.unlink()
            lock.touch()
        return target

    locks = BuildLocks()
    with builder(lock) as writer:
        monkeypatch.setattr(os, "readlink", readlink)
        locks.note(writer.pid)
        writer.kill()
    monkeypatch.undo()
    assert locks.clear() == []
    assert lock.exists()


def test_locks_of_several_ranks_and_their_children(lock: Path) -> None:
    """All are found by one look at the processes."""
    other = lock.parents[1] / "utils" / "lock"
    locks = BuildLocks()
    with builder(lock) as first, builder(other) as second:
        locks.note(os.getpid(), second.pid)
        first.kill()
        second.kill()
    assert sorted(locks.clear()) == [lock, other]


def test_a_wait_is_named(lock: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reason has the file, and the command that ends the wait, or the process that builds."""
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(lock.parents[1]))
    # Another builder, since its environment is to be seen only once its program runs.
    with builder(lock) as writer, builder(tmp_path / "other") as waiting:
        assert waited_for(waiting.pid, ("train (train.py:1)",)) == ""
        assert f"held by process {writer.pid}" in waited_for(waiting.pid, FRAMES)
        writer.kill()
        writer.wait()
        assert f"`rm {lock}`" in waited_for(waiting.pid, FRAMES)
        lock.unlink()
        assert waited_for(waiting.pid, FRAMES) == "a build lock of torch extensions"
        waiting.kill()
