"""Stacks of ranks, and checkpoints read back and deleted, by a real agent."""

from __future__ import annotations

import hashlib
import json
import os
import signal
from pathlib import Path

from babysit.wire import Tier, rank_directory, step_directory
from jobs.agent.stacks import process_state
from jobs.commands import (
    CaptureStacks,
    DeleteCheckpoint,
    RestoreCandidate,
    VerifyCheckpoint,
)
from jobs.events import (
    AttemptStopped,
    CheckpointChecked,
    CheckpointDeleted,
    RankExited,
    RankRestored,
    RanksStarted,
    ShardWritten,
    StacksCaptured,
)
from jobs.shards import ShardFile, ShardReport
from tests.agent_helpers import eventually, playground, start, stop

STUCK = """
    import os, signal, time, babysit
    run = babysit.init()
    def wait_for_the_others():
        run.report(step=1, loss=1.0)
        signal.pause()
    def spin():
        run.report(step=1, loss=1.0)
        while True:
            pass
    spin() if run.rank == 1 else wait_for_the_others()
"""


async def test_stacks_of_stopped_sleeping_and_spinning_ranks(tmp_path: Path):
    async with playground(tmp_path, STUCK) as (server, agent):
        await server.send(start(ranks=(0, 1, 2)))
        await server.until(lambda: all(server.steps(rank) for rank in range(3)))
        stopped = agent.ranks()[2].pid
        os.kill(stopped, signal.SIGSTOP)
        await eventually(lambda: process_state(stopped) == "T")
        await server.send(CaptureStacks(id="look", attempt=1))
        captured = await server.event(StacksCaptured)
        assert captured.cause == "look"
        assert [s.rank for s in captured.stacks] == [0, 1, 2]
        assert [s.error for s in captured.stacks] == ["", "", ""]
        assert [s.process_state for s in captured.stacks] == ["S", "R", "T"]
        for stack, function in zip(
            captured.stacks, ["wait_for_the_others", "spin", "wait_for_the_others"], strict=True
        ):
            assert stack.frames[0].startswith(f"{function} (")
            assert "train.py:" in stack.frames[0]
            assert stack.frames[-1].startswith("<module> (")
            assert not any("fork_server.py" in frame for frame in stack.frames)


ONE_ENDS = """
    import signal, babysit
    run = babysit.init()
    run.report(step=1, loss=1.0)
    if run.rank == 0:
        signal.pause()
"""


async def test_a_rank_that_has_ended_is_not_looked_at(tmp_path: Path):
    """A process that is gone would look like a death; its exit has been told."""
    async with playground(tmp_path, ONE_ENDS) as (server, _):
        await server.send(start(ranks=(0, 1)))
        await server.event(RankExited)
        await server.send(CaptureStacks(id="look", attempt=1))
        assert [s.rank for s in (await server.event(StacksCaptured)).stacks] == [0]


async def test_a_rank_that_cannot_be_read_does_not_spoil_the_others(tmp_path: Path):
    command = ("sh", "-c", "exec sleep 1000")
    async with playground(tmp_path, command=command) as (server, _):
        await server.send(start(ranks=(0,)))
        await server.event(RanksStarted)
        await server.send(CaptureStacks(id="look", attempt=1))
        [stack] = (await server.event(StacksCaptured)).stacks
        assert stack.frames == ()
        assert "py-spy" in stack.error
        assert stack.process_state in {"S", "R"}


def shard(root: Path, rank: int = 0, step: int = 20) -> ShardReport:
    """A whole shard on disk."""
    checkpoint = step_directory(root, step)
    directory = rank_directory(checkpoint, rank)
    directory.mkdir(parents=True)
    content = os.urandom(5000)
    (directory / "weights").write_bytes(content)
    digest = hashlib.blake2b(content, digest_size=16).hexdigest()
    report = ShardReport(
        attempt=1,
        step=step,
        rank=rank,
        world_size=2,
        tier=Tier.DIRECTORY,
        path=str(checkpoint),
        batch=step,
        files=(ShardFile(name="weights", bytes=len(content), blake2b=digest),),
    )
    (directory / "manifest.json").write_text(report.model_dump_json())
    return report


async def test_verify_tells_whole_truncated_and_flipped_files_apart(tmp_path: Path):
    async with playground(tmp_path) as (server, _):
        shards = (shard(tmp_path), shard(tmp_path, rank=1))
        weights = rank_directory(shards[1].path, 1) / "weights"
        content = weights.read_bytes()

        async def check(name: str) -> CheckpointChecked:
            command = VerifyCheckpoint(
                id=name, attempt=1, checkpoint="c-20", path=shards[0].path, ranks=(0, 1)
            )
            await server.send(command)
            return await server.event(CheckpointChecked, lambda e: e.cause == name)

        whole = await check("whole")
        assert (whole.ok, whole.error, whole.checkpoint) == (True, "", "c-20")
        weights.write_bytes(content[:-1])
        assert "4999 bytes, 5000 expected" in (await check("truncated")).error
        weights.write_bytes(bytes([content[0] ^ 64]) + content[1:])
        flipped = await check("flipped")
        assert (flipped.ok, flipped.unreadable) == (False, False)
        assert str(weights) in flipped.error
        weights.unlink()
        missing = await check("missing")
        assert (missing.ok, missing.unreadable) == (False, True)
        assert missing.error == f"{weights}: No such file or directory"


async def test_delete_removes_checkpoints_and_nothing_else(tmp_path: Path):
    async with playground(tmp_path) as (server, _):
        path = Path(shard(tmp_path / "checkpoints").path)
        precious = tmp_path / "checkpoints"
        refused = DeleteCheckpoint(id="no", attempt=1, checkpoint="x", path=str(precious))
        await server.send(refused)
        await server.send(DeleteCheckpoint(id="yes", attempt=1, checkpoint="c-20", path=str(path)))
        kept = await server.event(CheckpointDeleted, lambda e: e.cause == "no")
        assert (kept.checkpoint, kept.refused) == ("x", True)
        deleted = await server.event(CheckpointDeleted, lambda e: e.cause == "yes")
        assert (deleted.checkpoint, deleted.refused, deleted.error) == ("c-20", False, "")
        assert not path.exists()
        assert precious.is_dir()
        await server.send(
            DeleteCheckpoint(id="again", attempt=1, checkpoint="c-20", path=str(path))
        )
        await server.event(CheckpointDeleted, lambda e: e.cause == "again")
        assert {e.cause for e in server.of(CheckpointDeleted)} == {"no", "yes", "again"}


SAVING = """
    import json, signal, babysit
    class State:
        step = 0
        def save(self, directory): (directory / "state.json").write_text(json.dumps(self.step))
        def load(self, directory): self.step = json.loads((directory / "state.json").read_text())
    state = State()
    run = babysit.init()
    run.restore(state)
    for step, _ in run.steps(list(range(100)), total=100):
        state.step = step
        run.report(loss=1.0)
        run.checkpoint(state)
        if step == 7:
            signal.pause()
        if step == 9:
            raise SystemExit("restored at 7" if state.step == 9 else "?")
"""


async def test_memory_shards_survive_the_attempt_and_are_restored_from(tmp_path: Path):
    checkpoint = {"directory": str(tmp_path / "saved"), "every_steps": 5, "memory_every_steps": 1}
    async with playground(tmp_path, SAVING, checkpoint=checkpoint) as (server, agent):
        await server.send(start())
        await server.until(lambda: server.steps(0)[-1:] == server.steps(1)[-1:] == [7])
        await server.until(lambda: len(server.of(ShardWritten)) == 2)
        written = server.of(ShardWritten)[0].shard
        assert (written.step, written.tier, written.world_size) == (5, Tier.DIRECTORY, 2)
        assert written.path == str(step_directory(tmp_path / "saved", 5))
        where = agent.config.memory_directory / "checkpoints"
        newest = [rank_directory(step_directory(where, 7), r) / "manifest.json" for r in (0, 1)]
        await eventually(lambda: all(manifest.exists() for manifest in newest))
        await server.send(stop())
        stopped = await server.event(AttemptStopped)
        assert {(s.step, s.rank) for s in stopped.memory_shards} >= {(7, 0), (7, 1), (6, 0), (6, 1)}
        assert stopped.last_step == 7

        check = VerifyCheckpoint(
            id="check", attempt=1, checkpoint="c-5", path=written.path, ranks=(0, 1)
        )
        await server.send(check)
        assert (await server.event(CheckpointChecked)).ok
        candidate = RestoreCandidate(
            id="c-7", step=7, tier=Tier.MEMORY, path="", world_size=2, attempt=1
        )
        await server.send(start(attempt=2, restore=(candidate,)))
        restored = await server.event(RankRestored, lambda e: e.attempt == 2)
        assert (restored.step, restored.checkpoint, restored.rejected) == (7, "c-7", ())
        exited = await server.event(RankExited, lambda e: e.attempt == 2)
        assert exited.last_step == 9
        plan = json.loads(
            (agent.config.memory_directory / "ranks/rank-00000/plan.json").read_text()
        )
        assert (plan["attempt"], plan["save"]["memory_every_steps"]) == (2, 1)


async def test_the_files_of_an_agent_are_its_users_alone(tmp_path: Path):
    """The user's umask is the ranks' own: what the agent keeps must not depend on it."""
    async with playground(tmp_path, "print('secret')") as (server, _):
        await server.send(start(ranks=(0,)))
        await server.event(RankExited)
        kept = [*(tmp_path / "agent").glob("*.log"), *(tmp_path / "logs").rglob("*.log")]
        assert {path.name for path in kept} >= {"standby.log", "rank-00000.log"}
        kept += [path for path in (tmp_path / "agent" / "spool").rglob("*") if path.is_file()]
        assert [path for path in kept if path.stat().st_mode & 0o077] == []
