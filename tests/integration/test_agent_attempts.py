"""Attempts on a real agent: start, samples, ends, restarts."""

from __future__ import annotations

import math
import os
import shutil
import signal
from pathlib import Path

from babysit import wire
from jobs.events import (
    AttemptStopped,
    Place,
    RankExited,
    RankReady,
    RankRestored,
    RanksStarted,
    ShardWritten,
    StorageTrouble,
)
from jobs.log_files import LogLimit
from monitors.failures import Advice, Evidence, FailureClass
from tests.agent_helpers import ended, playground, start, stop

THREE_STEPS = """
    import babysit
    class State:
        def save(self, directory): pass
        def load(self, directory): pass
    run = babysit.init()
    run.restore(State())
    for step, _ in run.steps(list(range(100)), total=3):
        run.report(loss=float("nan") if step == 2 else 1 / step, tokens=7)
"""
REPORT_AND_WAIT = """
    import signal, babysit
    run = babysit.init()
    run.report(step=1, loss=1.0)
    signal.pause()
"""


async def test_samples_and_notes_of_every_rank_arrive_in_order(tmp_path: Path):
    async with playground(tmp_path, THREE_STEPS) as (server, _):
        await server.send(start(ranks=(0, 1)))
        for rank in (0, 1):
            exited = await server.event(RankExited, lambda e, rank=rank: e.rank == rank)
            assert (exited.code, exited.failure, exited.last_step) == (0, None, 3)
            assert server.steps(rank) == [1, 2, 3]
            [loss] = [[v for s in server.samples(rank) for v in s.loss]]
            assert loss[0] == 1
            assert math.isnan(loss[1])
        kinds = [event.kind for event in server.events if getattr(event, "rank", 0) == 0]
        assert kinds == [
            "worker_joined",
            "ranks_started",
            "rank_ready",
            "rank_restored",
            "rank_exited",
        ]
        [started] = server.of(RanksStarted)
        assert started.cause == "start-1"
        assert {e.attempt for e in (*server.of(RankReady), *server.of(RankRestored))} == {1}
        assert server.authorizations == ["Bearer secret-token"]


async def test_exception_is_reported_with_its_last_line_and_peers_are_killed(tmp_path: Path):
    script = """
        import os, signal, sys, babysit
        run = babysit.init()
        if os.environ["RANK"] == "1":
            print("about to fail", flush=True)
            raise ValueError("the batch is empty")
        signal.pause()
    """
    async with playground(tmp_path, script) as (server, agent):
        await server.send(start())
        guilty = await server.event(RankExited, lambda e: e.rank == 1)
        assert guilty.code == 1
        assert guilty.failure.failure_class is FailureClass.USER_CODE
        assert guilty.failure.reason == "ValueError: the batch is empty"
        peer = await server.event(RankExited, lambda e: e.rank == 0)
        assert peer.code == -signal.SIGKILL
        assert peer.failure.failure_class is FailureClass.CASCADE
        assert [e.rank for e in server.of(RankExited)] == [1, 0]
        log = agent.log(1, 1)
        assert log.startswith("about to fail\nTraceback")
        assert "fork_server.py" not in log


async def test_rules_of_the_run_say_what_its_words_mean(tmp_path: Path):
    script = """
        import babysit
        babysit.init()
        print("the frobnicator lost its flux")
        raise SystemExit(3)
    """
    rule = {"name": "flux", "class": "network", "match": "lost its flux", "action": "replace_node"}
    async with playground(tmp_path, script, monitors={"logs": [{"rules": [rule]}]}) as (server, _):
        await server.send(start(ranks=(0,), world_size=1))
        failure = (await server.event(RankExited)).failure
        assert failure.failure_class is FailureClass.NETWORK
        assert (failure.advice, failure.source) == (Advice.REPLACE_NODE, Evidence.LOG)
        assert failure.reason == "the frobnicator lost its flux"


async def test_killed_rank_is_reported_and_next_attempt_forks_from_the_same_standby(tmp_path: Path):
    async with playground(tmp_path, REPORT_AND_WAIT) as (server, agent):
        standby = agent.standby
        await server.send(start(attempt=1))
        await server.until(lambda: server.steps(0) and server.steps(1))
        victim = next(b for b in agent.ranks() if b.rank == 1)
        os.kill(victim.pid, signal.SIGKILL)
        first = await server.event(RankExited)
        assert (first.rank, first.code) == (1, -signal.SIGKILL)
        assert first.failure.failure_class is FailureClass.SIGNAL
        second = await server.event(RankExited, lambda e: e.rank == 0)
        assert second.failure.failure_class is FailureClass.CASCADE

        await server.send(stop(attempt=1))
        stopped = await server.event(AttemptStopped)
        assert (stopped.attempt, stopped.cause, stopped.last_step) == (1, "stop-1", 1)
        assert 20000 <= stopped.port < 32000
        await server.send(start(attempt=2))
        await server.event(RankReady, lambda e: e.attempt == 2 and e.rank == 1)
        assert agent.standby == standby
        assert all(rank.parent == standby for rank in agent.ranks())


async def test_commands_are_carried_out_once_and_stale_starts_never(tmp_path: Path):
    async with playground(tmp_path, REPORT_AND_WAIT) as (server, agent):
        await server.send(stop(attempt=3))  # nothing is running: answered all the same
        await server.event(AttemptStopped)
        await server.send(stop(attempt=3))  # the same command again
        await server.send(start(attempt=3, id="late"))  # what was stopped must not start
        await server.send(start(attempt=4))
        await server.until(lambda: server.steps(0) and server.steps(1))
        pids = {rank.pid for rank in agent.ranks()}
        assert len(pids) == 2
        await server.send(start(attempt=4))
        await server.send(start(attempt=4, id="again"))
        await server.send(stop(attempt=2, id="old"))  # must not touch attempt 4
        await server.event(AttemptStopped, lambda e: e.cause == "old")
        assert {rank.pid for rank in agent.ranks()} == pids
        assert len(server.of(RanksStarted)) == 1
        assert [e.cause for e in server.of(AttemptStopped)] == ["stop-3", "old"]
        assert server.acknowledged.count("stop-3") == 2


async def test_a_newer_start_ends_the_older_attempt_first(tmp_path: Path):
    async with playground(tmp_path, REPORT_AND_WAIT) as (server, agent):
        await server.send(start(attempt=1))
        await server.until(lambda: server.steps(0) and server.steps(1))
        old = [rank.pid for rank in agent.ranks()]
        await server.send(start(attempt=2, ranks=(0,)))
        await server.event(RankReady, lambda e: e.attempt == 2)
        for pid in old:
            await ended(pid)
        assert [rank.rank for rank in agent.ranks()] == [0]
        last_of_old = max(i for i, e in enumerate(server.events) if e.attempt == 1)
        first_of_new = min(i for i, e in enumerate(server.events) if e.attempt == 2)
        assert last_of_old < first_of_new


async def test_stop_with_grace_lets_ranks_save_and_leave(tmp_path: Path):
    script = """
        import time, pathlib, babysit
        run = babysit.init()
        run.report(step=1, loss=1.0)
        while not run.should_stop:
            time.sleep(0.01)
        print("saved", flush=True)
    """
    async with playground(tmp_path, script) as (server, agent):
        await server.send(start())
        await server.until(lambda: server.steps(0) and server.steps(1))
        await server.send(stop(grace_seconds=30))
        await server.event(AttemptStopped)
        assert [e.code for e in server.of(RankExited)] == [0, 0]
        assert agent.log(1, 0) == agent.log(1, 1) == "saved\n"


async def test_without_grace_or_when_it_is_ignored_ranks_are_killed(tmp_path: Path):
    script = """
        import signal, babysit
        signal.signal(signal.SIGTERM, lambda *_: print("no", flush=True))
        run = babysit.init()
        run.report(step=1, loss=1.0)
        while True:
            signal.pause()
    """
    async with playground(tmp_path, script) as (server, agent):
        await server.send(start())
        await server.until(lambda: server.steps(0) and server.steps(1))
        await server.send(stop(grace_seconds=0.2))
        await server.event(AttemptStopped)
        assert [e.code for e in server.of(RankExited)] == [-signal.SIGKILL] * 2
        assert {e.failure.failure_class for e in server.of(RankExited)} == {FailureClass.CASCADE}
        assert agent.log(1, 0) == "no\n"


async def test_rank_that_dies_at_once_takes_those_still_being_forked(tmp_path: Path):
    command = ("sh", "-c", "test $RANK = 0 && exit 3; exec sleep 1000")
    async with playground(tmp_path, command=command) as (server, agent):
        await server.send(start(ranks=(0, 1, 2, 3)))
        await server.until(lambda: len(server.of(RankExited)) == 4)
        codes = {e.rank: e.code for e in server.of(RankExited)}
        assert codes == {0: 3, 1: -9, 2: -9, 3: -9}
        assert agent.marked() == [agent.standby]


async def test_stop_need_not_wait_for_a_cold_standby(tmp_path: Path):
    gate = tmp_path / "closed"
    (tmp_path / "gated.py").write_text(
        f"import pathlib, time\nwhile pathlib.Path({str(gate)!r}).exists(): time.sleep(0.01)\n"
    )
    async with playground(tmp_path, REPORT_AND_WAIT, preload=("gated",)) as (server, agent):
        gate.touch()
        os.kill(agent.standby, signal.SIGKILL)
        await server.send(start(attempt=1))
        await server.send(stop(attempt=1))
        await server.event(AttemptStopped, lambda e: e.attempt == 1)
        assert gate.exists()
        await server.send(start(attempt=2))
        gate.unlink()
        await server.until(lambda: server.steps(0) and server.steps(1))
        assert {e.attempt for e in server.of(RanksStarted)} == {2}


async def test_ranks_that_cannot_be_started_are_reported(tmp_path: Path):
    async with playground(tmp_path, REPORT_AND_WAIT) as (server, agent):
        obstacle = agent.config.memory_directory / "ranks"
        obstacle.write_text("a file where a directory should be")
        await server.send(start(attempt=1))
        await server.until(lambda: len(server.of(RankExited)) == 2)
        exited = server.of(RankExited)[0]
        assert exited.failure.failure_class is FailureClass.STORAGE
        assert str(obstacle) in exited.failure.reason
        await server.send(stop(attempt=1))
        await server.event(AttemptStopped)
        obstacle.unlink()
        await server.send(start(attempt=2))
        await server.until(lambda: server.steps(0) and server.steps(1))


SAVES = """
    import time, babysit
    class State:
        def save(self, directory): (directory / "x").write_text("x")
        def load(self, directory): pass
    run, state = babysit.init(), State()
    run.restore(state)
    for step, _ in run.steps(list(range(1000)), total=1000):
        run.report(loss=1.0)
        run.checkpoint(state)
        time.sleep(0.02)
"""


async def test_saves_are_recorded_though_the_files_on_tmpfs_are_removed(tmp_path: Path):
    spec = {"checkpoint": {"directory": str(tmp_path / "ck"), "every_steps": 5}}
    async with playground(tmp_path, SAVES, **spec) as (server, agent):
        await server.send(start(ranks=(0,)))
        await server.event(ShardWritten)
        shutil.rmtree(agent.config.memory_directory)
        newest = max(e.shard.step for e in server.of(ShardWritten))
        await server.event(ShardWritten, lambda e: e.shard.step > newest + 5)
        lost = await server.event(StorageTrouble, lambda e: not e.over)
        assert (lost.place, lost.full) == (Place.RANKS, False)
        await server.event(StorageTrouble, lambda e: e.over)
        again = wire.rank_directory(agent.config.memory_directory / "ranks", 0)
        assert (again / wire.PLAN_FILE).exists()
        newest = max(e.shard.step for e in server.of(ShardWritten))
        await server.event(ShardWritten, lambda e: e.shard.step > newest)
        await server.send(stop())
        await server.event(AttemptStopped)


CHATTY = """
    import os, signal, sys, babysit
    run = babysit.init()
    for number in range(20_000):
        print(f"line {number}")
    for number in range(1000):
        sys.stderr.write(f"\\r{number / 10:.0f}%|###| {number}/1000")
    raise RuntimeError("after a lot of output")
"""


async def test_output_is_folded_and_rotated_and_its_end_is_the_verdict(tmp_path: Path):
    limit = LogLimit(bytes=20_000, files=2)
    async with playground(tmp_path, CHATTY, log_limit=limit) as (server, agent):
        await server.send(start(ranks=(0,)))
        exited = await server.event(RankExited)
        assert exited.failure is not None
        assert exited.failure.reason == "RuntimeError: after a lot of output"
        log = agent.log(1, 0)
        assert log.count("/1000") == 1  # of the bar, its last state
        directory = agent.config.log_directory / "attempt-0001"
        assert sum(file.stat().st_size for file in directory.iterdir()) <= 2 * 20_000
        await server.send(stop())


async def test_full_disk_under_the_log_costs_lines_and_neither_rank_nor_verdict(tmp_path: Path):
    full = tmp_path / "logs" / "attempt-0001" / "rank-00000.log"
    full.parent.mkdir(parents=True)
    full.symlink_to("/dev/full")  # each write fails with ENOSPC
    async with playground(tmp_path, CHATTY) as (server, _):
        await server.send(start(ranks=(0,)))
        exited = await server.event(RankExited)
        assert exited.failure is not None
        assert exited.failure.reason == "RuntimeError: after a lot of output"
        assert exited.failure.failure_class is not FailureClass.STORAGE
        await server.send(stop())
