"""The agent follows the checkpoints of real scripts that save and rotate by themselves."""

from __future__ import annotations

import datetime as dt
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from babysit.wire import Tier
from jobs.agent.script_checkpoints import ScriptCheckpoints
from jobs.clock import ManualClock
from jobs.commands import RestoreCandidate, StartAttempt
from jobs.config import AgentConfig
from jobs.events import CheckpointDeleted, ShardWritten
from jobs.spec import RunSpec

ROTATES = """
import os, pathlib, shutil, sys
out, first, last = pathlib.Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
for step in range(first, last + 1):
    place = out / f"checkpoint-{step}"
    place.mkdir(parents=True)
    (place / "model.bin").write_text(f"weights of {step}")
    (place / "done").touch()
    link = out / "latest.new"
    link.symlink_to(place.name)
    os.replace(link, out / "latest")
    found = sorted(out.glob("checkpoint-*"), key=lambda each: int(each.name[11:]))
    for old in found[:-2]:
        shutil.rmtree(old)
"""


class Said:
    """A reporter that keeps the events."""

    def __init__(self) -> None:
        self.events: list[Any] = []

    def fields(self, attempt: int, cause: str | None = None) -> dict[str, Any]:
        at = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
        fields = {"run": "run-1", "worker": "w", "attempt": attempt, "cause": cause}
        return fields | {"id": f"e{len(self.events)}", "at": at}

    def say(self, event: Any) -> None:
        self.events.append(event)

    def steps(self) -> list[int]:
        return [each.shard.step for each in self.events if isinstance(each, ShardWritten)]


def script(out: Path, first: int, last: int) -> None:
    command = [sys.executable, "-c", ROTATES, str(out), str(first), str(last)]
    subprocess.run(command, check=True, timeout=60)


def followed(root: Path) -> tuple[ScriptCheckpoints, Said]:
    spec = {
        "name": "run",
        "command": ["python", "t.py"],
        "resume": {"checkpoints": str(root / "out" / "checkpoint-{step}"), "complete": "done"},
    }
    config = AgentConfig(
        run="run-1",
        worker="w",
        node="n",
        server_url="ws://127.0.0.1:1/agent",
        token="t",
        directory=root,
        log_directory=root,
        memory_directory=root,
        spec=RunSpec.model_validate(spec),
    )
    said = Said()
    return ScriptCheckpoints(config, said, ManualClock()), said  # type: ignore[arg-type]


def start(attempt: int, restore: tuple[RestoreCandidate, ...] = ()) -> StartAttempt:
    fields = {"world_size": 1, "node_rank": 0, "nodes": 1, "master_address": "a", "master_port": 1}
    return StartAttempt.model_validate(
        {"id": f"c{attempt}", "run": "run-1", "attempt": attempt, "ranks": (0,), **fields}
        | {"restore": restore}
    )


def candidate(place: Path, step: int, attempt: int = 1) -> RestoreCandidate:
    return RestoreCandidate(
        id=f"run-1/{attempt}/{Tier.DIRECTORY}/{step}",
        step=step,
        world_size=1,
        attempt=attempt,
        tier=Tier.DIRECTORY,
        path=str(place),
    )


async def test_a_script_that_keeps_two_and_links_the_newest_loses_nothing(tmp_path: Path) -> None:
    out = tmp_path / "out"
    scripts, said = followed(tmp_path)
    await scripts.begin(start(1))
    script(out, 1, 2)
    await scripts.look()
    script(out, 3, 4)
    await scripts.look()
    assert said.steps() == [1, 2, 3, 4]
    gone = [each.checkpoint for each in said.events if isinstance(each, CheckpointDeleted)]
    assert gone == ["run-1/1/directory/1", "run-1/1/directory/2"]

    resumption = await scripts.begin(start(2, (candidate(out / "checkpoint-3", 3),)))
    assert resumption.variables["BABYSIT_RESUME"] == str(out / "checkpoint-3")
    assert sorted(each.name for each in out.glob("checkpoint-*")) == ["checkpoint-3"]
    script(out, 4, 4)  # again, and with it step 3 stays
    await scripts.look()
    assert said.steps() == [1, 2, 3, 4, 4]
    texts = {f.parent.name: f.read_text() for f in out.glob("checkpoint-*/model.bin")}
    assert texts == {"checkpoint-3": "weights of 3", "checkpoint-4": "weights of 4"}
    aside = list((out / ".babysit").rglob("model.bin"))
    assert [each.read_text() for each in aside] == ["weights of 4"]
    assert (out / "latest" / "model.bin").read_text() == "weights of 4"


async def test_a_checkpoint_that_the_script_is_deleting_is_not_whole(tmp_path: Path) -> None:
    """Its last file may go last; a crash in the middle leaves it like that."""
    scripts, said = followed(tmp_path)
    await scripts.begin(start(1))
    place = tmp_path / "out" / "checkpoint-1"
    script(tmp_path / "out", 1, 1)
    await scripts.look()
    (place / "model.bin").unlink()
    await scripts.look(last=True)
    assert said.steps() == [1]
    resumption = await scripts.begin(start(2, (candidate(place, 1),)))
    assert resumption.chosen is None


async def test_an_attempt_does_not_begin_anew_where_nothing_can_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Storage that hangs for a moment is not a run without checkpoints."""
    scripts, _ = followed(tmp_path)
    await scripts.begin(start(1))
    script(tmp_path / "out", 1, 2)
    await scripts.look()

    def stale(_path: Path) -> object:
        raise OSError(116, "Stale file handle")

    with monkeypatch.context() as patched:
        patched.setattr("jobs.agent.script_records.signature", stale)
        with pytest.raises(OSError, match="Stale"):
            await scripts.begin(start(2, (candidate(tmp_path / "out" / "checkpoint-1", 1),)))
    assert len(list((tmp_path / "out").glob("checkpoint-*"))) == 2
