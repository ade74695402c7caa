"""Edges of the agent: other versions, dead helpers, reused pids, several threads that report."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import struct
import subprocess
import sys
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog

from babysit import wire
from babysit.checkpoint import shard
from babysit.checkpoint.shard import Manifest
from babysit.reporter import Reporter
from babysit.ring import Record, RingReader, RingWriter
from babysit.wire import Phase, Tier
from jobs.agent import gang as gang_module
from jobs.agent import reaper
from jobs.agent.__main__ import log_to
from jobs.agent.gang import Gang
from jobs.agent.log_metrics import JOIN_SECONDS
from jobs.agent.log_pump import LogPump
from jobs.agent.rank_reader import RankReader
from jobs.clock import Clock, ManualClock, SystemClock
from jobs.config import AgentConfig
from jobs.log_files import LogLimit
from jobs.spec import RunSpec
from monitors.failures import FailureClass
from tests.agent_helpers import start


@contextlib.contextmanager
def gang_of(root: Path, *ranks: int, clock: Clock | None = None, **spec: object) -> Iterator[Gang]:
    config = AgentConfig(
        run="r",
        worker="w",
        node="n",
        server_url="ws://127.0.0.1:1/agent",
        token="t",
        directory=root,
        log_directory=root / "logs",
        memory_directory=root / "memory",
        spec=RunSpec.model_validate(
            {"name": "x", "command": ("true",), "workdir": str(root), **spec}
        ),
    )
    gang = Gang(start(ranks=ranks), config, clock or SystemClock())
    gang.prepare()
    try:
        yield gang
    finally:
        for process in gang.ranks.values():
            process.reader.close()


def sleeper() -> subprocess.Popen[bytes]:
    return subprocess.Popen(["sleep", "600"], start_new_session=True)


def test_memory_of_ranks_that_have_moved_is_freed_before_the_ranks_start(tmp_path: Path) -> None:
    step = tmp_path / "memory" / "checkpoints" / "step-000000005"
    for rank in (0, 1):
        (step / f"rank-{rank:05d}").mkdir(parents=True)
    with gang_of(tmp_path, 1) as gang:
        gang.look_around()
    assert [path.name for path in step.iterdir()] == ["rank-00001"]


def test_a_ring_of_another_version_is_a_clear_failure_and_logged_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with gang_of(tmp_path, 0) as gang:
        ring = tmp_path / "memory" / "ranks" / "rank-00000" / wire.RING_FILE
        ring.write_bytes(bytes(8192))  # not begun yet: no reason to complain
        process = gang.ranks[0]
        assert process.reader.samples() is None
        assert not process.reader.mismatch
        ring.write_bytes(struct.pack("<I", 0x41414141) + bytes(8192))
        with structlog.testing.capture_logs() as logged:
            for _ in range(50):
                process.reader.samples()
        assert len(logged) == 1
        with sleeper() as rank:
            gang.started(0, rank.pid)
            gang.end_misfits()
            assert rank.wait(30) == -signal.SIGKILL
        assert process.failure is not None
        assert process.failure.failure_class is FailureClass.USER_CODE
        assert process.failure.final
        assert "another version of babysit" in process.failure.reason


def test_a_pid_that_was_reaped_is_not_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fork server reaps; until the agent has read that, the pid may be another process's."""
    with gang_of(tmp_path, 0, 1) as gang:
        killed: list[int] = []
        asked: list[int] = []
        monkeypatch.setattr(gang_module, "kill_group", killed.append)
        dead, alive = sleeper(), sleeper()
        try:
            gang.started(0, dead.pid)
            gang.started(1, alive.pid)
            dead.kill()
            dead.wait()
            with monkeypatch.context() as patch:  # `Popen.kill` below needs the real one
                patch.setattr(gang_module.os, "kill", lambda pid, _signal: asked.append(pid))
                gang.request_stop()
            assert asked == [alive.pid]
            gang.ranks[0].reader.mismatch = "another version"
            gang.end_misfits()
            gang.kill()
            assert killed == [alive.pid]
            assert not gang.ranks[0].killed
        finally:
            alive.kill()
            alive.wait()
        for rank in (0, 1):
            gang.ended(rank, -9)
        assert [process.pidfd for process in gang.ranks.values()] == [-1, -1]


def test_a_reaper_that_was_killed_is_replaced_and_a_late_death_does_no_harm() -> None:
    worker = f"w-{uuid.uuid4().hex}"
    own = reaper.Reaper(worker)
    first = own.pid
    own.ensure()
    assert own.pid == first
    os.kill(first, signal.SIGKILL)
    own._process.wait()
    own.ensure()
    assert own.pid != first
    stray = subprocess.Popen(
        [sys.executable, "-c", "import time; time.sleep(600)"],
        env={**os.environ, reaper.ENV_WORKER: worker},
        start_new_session=True,
    )
    os.kill(own.pid, signal.SIGKILL)
    own._process.wait()
    own.finish()
    assert stray.wait(30) == -signal.SIGKILL


def test_a_reaper_spares_the_children_of_the_process_that_adopts_it() -> None:
    """An agent that dies just after its request leaves its reaper to init, or to a subreaper."""
    agent = subprocess.Popen([sys.executable, "-c", ""])
    agent.wait()
    read, write = os.pipe()
    os.write(write, b"\0")
    arguments = [f"w-{uuid.uuid4().hex}", str(read), str(agent.pid), ""]
    with sleeper() as stranger:
        done = subprocess.run(
            [sys.executable, "-I", "-S", reaper.__file__, *arguments],
            pass_fds=[read],
            timeout=60,
            check=False,
        )
        assert done.returncode == 0
        assert stranger.poll() is None
        stranger.kill()
    os.close(read)
    os.close(write)


def test_several_threads_may_write_notes(tmp_path: Path) -> None:
    """A save in the background notes its shard while the training thread notes something else."""
    reporter = Reporter(tmp_path, 0)
    begin = threading.Barrier(4)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)

    def note(first: int) -> None:
        begin.wait()
        for step in range(first, first + 500):
            reporter.note(wire.Note.FINGERPRINT, step=step)

    try:
        threads = [threading.Thread(target=note, args=(n * 500,)) for n in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    lines = (tmp_path / wire.NOTES_FILE).read_text().splitlines()
    assert sorted(json.loads(line)["step"] for line in lines) == list(range(2000))


def test_a_fork_server_whose_log_is_full_goes_on() -> None:
    """What imports have printed waits in its buffer until the first rank is forked."""
    code = """
import os
from jobs.agent.fork_server import flush_output
print("a banner")
flush_output()
os._exit(0)
"""
    environment = {**os.environ, "PYTHONUNBUFFERED": ""}
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            [sys.executable, "-c", code], stdout=full, env=environment, timeout=60, check=False
        )
    assert done.returncode == 0


def test_several_threads_may_report(tmp_path: Path) -> None:
    reporter = Reporter(tmp_path, 0)
    reader = RingReader(tmp_path / wire.RING_FILE)
    begin = threading.Barrier(4)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)

    def report(first: int) -> None:
        begin.wait()
        for step in range(first, first + 1000):
            record = Record(step, step, 0.0, 0.5, -1.0, 0.0, 0.1, 0.0, -1.0)
            reporter.record(record, Phase.TRAINING)

    try:
        threads = [threading.Thread(target=report, args=(n * 1000,)) for n in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    records, lost = reader.drain(5000)
    assert (sorted(record.step for record in records), lost) == (list(range(4000)), 0)
    reader.close()


def test_folders_of_a_framework_are_flushed_before_the_shard_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[Path] = []
    monkeypatch.setattr(shard, "_sync", synced.append)
    source = tmp_path / "staging"
    (source / "a" / "b").mkdir(parents=True)
    (source / "a" / "b" / "data").write_text("x")
    manifest = Manifest(5, 0, 1, Tier.DIRECTORY, str(tmp_path / "step-000000005"), 5)
    with shard.writing(manifest) as writer:
        writer.adopt(source)
        hidden = writer.directory
    assert {hidden / "a" / "b" / "data", hidden / "a" / "b", hidden / "a"} <= set(synced)


def test_the_log_of_an_agent_takes_a_bounded_part_of_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jobs.agent.__main__._LOG_BYTES", 4096)
    before = structlog.get_config()
    try:
        log_to(tmp_path / "agent.log", worker="w")
        for number in range(500):
            structlog.get_logger().info("something happened", number=number)
    finally:
        structlog.configure(**before)
        structlog.contextvars.clear_contextvars()
    assert sum(file.stat().st_size for file in tmp_path.iterdir()) <= 2 * 4096
    assert '"number": 499' in (tmp_path / "agent.log").read_text()


def test_a_ring_is_read_by_its_own_version(tmp_path: Path) -> None:
    RingWriter(tmp_path / wire.RING_FILE)
    reader = RankReader(0, tmp_path, 0.0)
    assert reader.samples() is None
    assert not reader.mismatch
    reader.close()


WARM_UP = b"iter 500: loss 3.0000, time 9.00ms, mfu -100.00%\n"
"""Step 501, as nanoGPT prints it."""


@pytest.mark.parametrize(
    ("spec", "seconds", "code", "step"),
    [
        ({"checkpoint": {"directory": "kept"}}, 0.0, None, 0),
        ({"checkpoint": {"directory": "kept"}}, 0.0, 1, 0),  # died before it joined
        ({"checkpoint": {"directory": "kept"}}, 0.0, 0, 501),
        ({"checkpoint": {"directory": "kept"}}, JOIN_SECONDS, None, 501),
        ({"checkpoint": {"directory": "kept"}, "watch": {"preset": "nanogpt"}}, 0.0, None, 501),
        ({}, 0.0, None, 501),
    ],
)
def test_steps_of_a_warm_up_are_none_of_the_run(
    tmp_path: Path, spec: dict[str, object], seconds: float, code: int | None, step: int
) -> None:
    """A script that is expected to join, and prints steps before, has not made them yet."""
    clock = ManualClock()
    pump = LogPump(clock, LogLimit())
    with gang_of(tmp_path, 0, clock=clock, **spec) as gang:
        [process] = gang.ranks.values()
        with pump.pipe(process.log) as output:
            os.write(output, WARM_UP)
        pump.drain(process.log)
        clock.advance(seconds)
        process.code = code
        gang.samples(pump)
        assert gang.last_step == step
        assert [beat.step for beat in gang.beats()] == [step]
        gang.close(pump)
    pump.finish()


def test_a_rank_that_joins_is_not_read_any_more(tmp_path: Path) -> None:
    """Its own word counts: the steps of its warm-up are not read afterwards, either."""
    clock = ManualClock()
    pump = LogPump(clock, LogLimit())
    with gang_of(tmp_path, 0, clock=clock, checkpoint={"directory": "kept"}) as gang:
        [process] = gang.ranks.values()
        with pump.pipe(process.log) as output:
            os.write(output, WARM_UP)
        pump.drain(process.log)
        writer = RingWriter(process.reader.directory / wire.RING_FILE)
        clock.advance(JOIN_SECONDS)
        assert gang.samples(pump) == []
        assert gang.last_step == 0
        writer.write(Record(8, 8, 1.0, 2.0, -1.0, 0.0, 0.1, 0.0, -1.0))
        assert [samples.step for samples in gang.samples(pump)] == [[8]]
        assert gang.last_step == 8
        gang.close(pump)
    pump.finish()
