"""Room for checkpoints, checked before a run starts."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from typer.testing import CliRunner

from jobs import room
from jobs.spec import RunSpec
from orchestrator.cli.main import app


class Usage(NamedTuple):
    total: int
    used: int
    free: int


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """Free bytes of the disk and of the tmpfs."""
    bytes_ = {"disk": 10**12, "tmpfs": 10**12, "memory": 10**12}

    def usage(path: Path) -> Usage:
        return Usage(10**12, 0, bytes_["tmpfs" if str(path).startswith("/dev/shm") else "disk"])

    monkeypatch.setattr(shutil, "disk_usage", usage)
    monkeypatch.setattr(room, "available_memory", lambda: bytes_["memory"])
    return bytes_


def spec(root: Path, **checkpoint: Any) -> RunSpec:
    fields = {"directory": str(root / "ck"), "keep": 3, **checkpoint}
    return RunSpec(name="r", command=("true",), workdir=str(root), checkpoint=fields)


def saved(root: Path, size: int) -> None:
    """A checkpoint of two ranks lies in the directory, and half of a newer one."""
    for rank in (0, 1):
        shard = root / "ck" / "step-000000010" / f"rank-{rank:05d}"
        shard.mkdir(parents=True)
        (shard / "data").write_bytes(b"x" * (size // 2))
        (shard / "manifest.json").touch()
    half = root / "ck" / "step-000000020" / ".rank-00000.r.1.ab"
    half.mkdir(parents=True)
    (half / "data").write_bytes(b"x")


def test_keep_and_one_more_copy_must_fit(tmp_path: Path, free: dict[str, int]) -> None:
    saved(tmp_path, 1000)
    free["disk"] = 4000
    [need] = room.needs(spec(tmp_path))
    assert (need.needed, need.ok) == (4000, True)
    free["disk"] = 3999
    [need] = room.needs(spec(tmp_path))
    assert not need.ok
    assert "keep + 1 = 4 checkpoints of 1000 B need 3.9 KiB" in str(need)


def test_before_the_first_save_only_a_disk_that_is_nearly_full_is_short(
    tmp_path: Path, free: dict[str, int]
) -> None:
    [need] = room.needs(spec(tmp_path))
    assert need.ok
    assert "not known before the first one is saved" in str(need)
    free["disk"] = room.LOW_BYTES - 1
    assert not room.needs(spec(tmp_path))[0].ok
    assert room.needs(RunSpec(name="r", command=("true",))) == []


@pytest.mark.parametrize(("short", "copies"), [("tmpfs", 4), ("memory", 5)])
def test_copies_in_memory_must_fit_the_tmpfs_and_the_host(
    tmp_path: Path, free: dict[str, int], short: str, copies: int
) -> None:
    saved(tmp_path, 1000)
    needs = room.needs(spec(tmp_path, memory_every_steps=1))
    assert [need.ok for need in needs] == [True, True, True]
    free[short] = copies * 1000 - 1
    [lacking] = [n for n in room.needs(spec(tmp_path, memory_every_steps=1)) if not n.ok]
    assert lacking.field == "checkpoint.memory_every_steps"
    assert lacking.needed == copies * 1000


def test_doctor_holds_a_spec_against_the_machine(tmp_path: Path, free: dict[str, int]) -> None:
    saved(tmp_path, 1000)
    free["disk"] = 2000
    (tmp_path / "run.yaml").write_text(
        "name: r\ncommand: [sh, -c, 'true']\nresources: {nodes: 1}\n"
        "checkpoint: {directory: ck, keep: 3}\n"
    )
    home = {"BABYSIT_HOME": str(tmp_path / "home"), "COLUMNS": "200"}
    done = CliRunner().invoke(app, ["doctor", str(tmp_path / "run.yaml")], env=home)
    assert done.exit_code == 1
    assert "keep + 1 = 4 checkpoints of 1000 B need 3.9 KiB" in done.stdout
