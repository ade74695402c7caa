"""Directories of workers in node memory: made for one user, and gone with the last of them."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from orchestrator.clusters.errors import ClusterError
from orchestrator.clusters.local import worker_records
from orchestrator.clusters.local.worker_records import Records


@pytest.fixture
def tmpfs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    place = tmp_path / "shm"
    place.mkdir()
    monkeypatch.setattr(worker_records, "_TMPFS", place)
    return place


def test_nothing_is_left_when_the_last_worker_leaves(tmp_path: Path, tmpfs: Path) -> None:
    one, two = Records(tmp_path / "one"), Records(tmp_path / "two")
    assert not list(tmpfs.iterdir()), "looking makes nothing"
    paths = []
    for home, worker in ((one, "w1"), (one, "w2"), (two, "w1")):
        paths.append(home.memory("run", worker))
        assert not paths[-1].exists()
        home.make_memory("run", worker)
        (paths[-1] / "ring").touch()
    made = [path for path in tmpfs.rglob("*") if path.is_dir()]
    assert {stat.S_IMODE(path.stat().st_mode) for path in made} == {0o700}
    assert one.free_memory("run", "w1")
    assert [path.exists() for path in paths] == [False, True, True]
    assert one.free_memory("run", "w2")
    assert two.free_memory("run", "w1")
    assert two.free_memory("run", "w1"), "again does no harm"
    assert not list(tmpfs.iterdir())


def test_a_directory_of_someone_else_is_not_used(tmp_path: Path, tmpfs: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    here = Records(tmp_path / "home")
    ours = here.memory("run", "w1").parents[2]
    ours.symlink_to(elsewhere)
    for use in (here.memory, here.make_memory, here.free_memory):
        with pytest.raises(ClusterError, match="belongs to someone else"):
            use("run", "w1")
    assert not list(elsewhere.iterdir())


def test_without_tmpfs_the_home_is_used_and_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_records, "_TMPFS", tmp_path / "none")
    home = tmp_path / "home"
    home.mkdir()
    here = Records(home)
    (home / "babysit.db").touch()
    here.make_memory("run", "w1")
    assert here.memory("run", "w1").is_relative_to(home)
    assert here.free_memory("run", "w1")
    assert [path.name for path in home.iterdir()] == ["babysit.db"]
