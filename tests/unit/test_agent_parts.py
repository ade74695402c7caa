"""The agent's small parts: frames, notes, inventory, evidence, commands, plans, ports."""

from __future__ import annotations

import datetime as dt
import json
import math
import os
import random
import socket
from pathlib import Path

import msgpack
import pytest

import jobs
from babysit.wire import Note, Tier
from jobs import frames
from jobs.agent import evidence, fork_server, stacks
from jobs.agent.__main__ import read_config
from jobs.agent.errors import ConfigError, NoteError
from jobs.agent.fork_client import rank_environment
from jobs.agent.gang import rank_plan
from jobs.agent.network import PORTS, free_port
from jobs.agent.note_events import Author, translate
from jobs.commands import RestoreCandidate
from jobs.config import AgentConfig
from jobs.environment import Environment
from jobs.events import RankReady, RankSamples, Report, SaveFailed
from jobs.shards import ShardFile
from jobs.spec import RunSpec
from tests.agent_helpers import start

FIELDS = {
    "id": "01J",
    "at": dt.datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=dt.UTC),
    "run": "r",
    "worker": "w",
    "attempt": 3,
}
AUTHOR = Author(rank=1, world_size=4)


# --- frames -------------------------------------------------------------------------------------


def test_report_survives_the_wire_with_nan_and_microseconds():
    samples = RankSamples(rank=0, step=[1, 2], loss=[math.nan, math.inf])
    ready = RankReady(rank=0, **FIELDS)
    kind, body = frames.decode(
        frames.encode("report", Report(sequence=7, attempt=3, samples=(samples,), events=(ready,)))
    )
    report = Report.model_validate(body)
    assert kind == "report"
    assert report.events == (ready,)
    assert math.isnan(report.samples[0].loss[0])
    assert report.samples[0].loss[1] == math.inf


@pytest.mark.parametrize(
    "data", [b"", b"\xc1", "text", msgpack.packb([1]), msgpack.packb({"type": "x"}), b"\x81\xa4ty"]
)
def test_what_is_no_frame_is_refused(data):
    with pytest.raises(frames.FrameError):
        frames.decode(data)


def test_what_cannot_travel_is_refused():
    with pytest.raises(TypeError, match="cannot contain a set"):
        frames.encode("hello", {"who": {1}})


# --- notes --------------------------------------------------------------------------------------


def note(kind: str, **fields) -> str:
    return json.dumps({"kind": kind, "time": 1.0, "rank": 1, **fields})


def test_shard_note_is_completed_with_what_the_agent_knows():
    files = [{"name": "a", "bytes": 3, "blake2b": "ff"}]
    line = note(
        Note.SHARD,
        step=20,
        tier="directory",
        path="/c/step-000000020",
        files=files,
        batch=21,
        seconds={"copy": 0.5, "write": 2.0},
    )
    shard = translate(line, AUTHOR, FIELDS).shard
    assert (shard.attempt, shard.rank, shard.world_size, shard.batch) == (3, 1, 4, 21)
    assert (shard.copy_seconds, shard.write_seconds) == (0.5, 2.0)
    assert shard.files == (ShardFile(name="a", bytes=3, blake2b="ff"),)


def test_restored_note_carries_what_was_rejected():
    rejected = [{"id": "c2", "reason": "truncated"}]
    line = note(Note.RESTORED, step=10, checkpoint=None, seconds=0.25, rejected=rejected)
    event = translate(line, AUTHOR, FIELDS)
    assert (event.step, event.checkpoint, event.rejected[0].id) == (10, "", "c2")


def test_save_failed_note():
    line = note(Note.SAVE_FAILED, step=4, tier="memory", error="no space")
    expected = SaveFailed(rank=1, step=4, tier=Tier.MEMORY, error="no space", **FIELDS)
    assert translate(line, AUTHOR, FIELDS) == expected


@pytest.mark.parametrize("kind", [Note.FINISHED, Note.FINGERPRINT])
def test_notes_without_an_event(kind):
    assert translate(note(kind, step=3, digest="00"), AUTHOR, FIELDS) is None


@pytest.mark.parametrize(
    "line",
    [
        "",
        "{",
        "[]",
        "3",
        note("gossip"),
        note(Note.SHARD, step="x"),
        note(Note.SAVE_FAILED, step=1, tier="moon", error=""),
    ],
)
def test_what_is_no_note_is_refused(line):
    with pytest.raises(NoteError, match="rank 1"):
        translate(line, AUTHOR, FIELDS)


# --- evidence -----------------------------------------------------------------------------------


def test_log_tail_is_the_end_of_the_log():
    bar = "".join(f"\r {i}%" for i in range(2000))
    log = "".join(f"line {n}\n" for n in range(2000)) + bar
    lines = evidence.log_tail(log.encode()).split("\n")
    assert (len(lines), lines[0], lines[-1]) == (1000, "line 1001", bar)
    assert evidence.log_tail(b"x\xff end\n") == "x\ufffd end"
    assert evidence.log_tail(b"") == ""


@pytest.mark.parametrize(
    ("line", "file", "text"),
    [
        ("0::/job", "job/memory.events", "low 0\noom 4\noom_kill 2\noom_group_kill 0\n"),
        ("0::/job", "memory.events", "oom_kill 2\n"),
        ("4:memory:/job", "memory/job/memory.oom_control", "under_oom 0\noom_kill 2\n"),
    ],
)
def test_oom_kills_are_counted_in_both_versions_of_cgroups(
    tmp_path: Path, monkeypatch, line, file, text
):
    monkeypatch.setattr(evidence, "_CGROUPS", tmp_path)
    (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / file).write_text(text)
    assert max(map(evidence._count, evidence._counters(line))) == 2
    assert evidence._counters("3:cpuset:/") == []


def test_oom_kills_can_be_read_here_or_count_none():
    assert evidence.oom_kills() >= 0


# --- stacks -------------------------------------------------------------------------------------


def test_frames_are_the_main_threads_without_the_standbys():
    def frame(name, filename, line):
        return {"name": name, "filename": filename, "short_filename": None, "line": line}

    worker = {"thread_name": "loader", "frames": [frame("get", "queue.py", 1)]}
    main = {
        "thread_name": "MainThread",
        "frames": [
            frame("step", "train.py", 9),
            frame("<module>", "train.py", 20),
            frame("_run", fork_server.__file__, 200),
        ],
    }
    assert stacks.frames([worker, main]) == ("step (train.py:9)", "<module> (train.py:20)")
    assert stacks.frames([worker]) == ("get (queue.py:1)",)
    assert stacks.frames([]) == ()


def test_process_state():
    assert stacks.process_state(os.getpid()) == "R"
    assert stacks.process_state(2**22 + 1) == "X"


# --- commands and environment -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "kind", "target", "argv"),
    [
        ("python train.py -v", "script", "train.py", "train.py -v"),
        ("python3 -u train.py", "script", "train.py", "train.py"),
        ("python -m pkg.train --lr 1", "module", "pkg.train", "--lr 1"),
        ("python -u -m pkg", "module", "pkg", ""),
        ("python -X dev train.py", "exec", "python", "python -X dev train.py"),
        ("python -c pass", "exec", "python", "python -c pass"),
        ("python app.zip", "exec", "python", "python app.zip"),
        ("python", "exec", "python", "python"),
    ],
)
def test_commands_are_told_apart(command, kind, target, argv):
    program = fork_server.parse_command(command.split(), forks=True)
    assert (program.kind, program.target, " ".join(program.argv)) == (kind, target, argv)
    elsewhere = fork_server.parse_command(command.split(), forks=False)
    assert (elsewhere.kind, elsewhere.target) == ("exec", command.split()[0])


def test_import_path_follows_links_as_python_does(tmp_path: Path):
    (tmp_path / "real").mkdir()
    (tmp_path / "real/train.py").touch()
    (tmp_path / "train.py").symlink_to(tmp_path / "real/train.py")
    script = fork_server.parse_command(["python", "train.py"], forks=True)
    assert fork_server.import_path(script, str(tmp_path)) == str(tmp_path / "real")
    module = fork_server.parse_command(["python", "-m", "m"], forks=True)
    assert fork_server.import_path(module, "/work") == "/work"
    assert fork_server.import_path(fork_server.parse_command(["sh"], forks=False), "/work") is None


def config(tmp_path: Path, **spec) -> AgentConfig:
    settings = {"name": "t", "command": ["python", "t.py"], "workdir": "/w", **spec}
    return AgentConfig(
        run="r",
        worker="w1",
        node="n",
        token="hush",
        directory=tmp_path,
        log_directory=tmp_path / "logs",
        memory_directory=tmp_path / "memory",
        spec=RunSpec.model_validate(settings),
    )


def test_rank_environment_keeps_the_users_and_drops_secrets(tmp_path: Path):
    ours = f"{Path(jobs.__file__).parents[1]}:/ours"
    base = {"PATH": "/bin", "PYTHONPATH": ours, "BABYSIT_TOKEN": "x", "BABYSIT_RANK_DIR": "/up"}
    found = rank_environment(config(tmp_path, env={"PYTHONPATH": "/theirs", "A": "1"}), base)
    assert found == {
        "PATH": "/bin",
        "PYTHONPATH": "/theirs:/ours",
        "A": "1",
        "OMP_NUM_THREADS": "1",
        "BABYSIT_WORKER": "w1",
        "BABYSIT_RUN": "r",
    }
    chosen = rank_environment(config(tmp_path, env={"OMP_NUM_THREADS": "4"}), {})
    assert chosen["OMP_NUM_THREADS"] == "4"
    assert rank_environment(config(tmp_path), {"OMP_NUM_THREADS": "2"})["OMP_NUM_THREADS"] == "2"


def test_a_submitted_shell_replaces_the_agents_environment_but_for_devices(tmp_path: Path):
    base = {"PATH": "/first", "MY": "first's", "CUDA_VISIBLE_DEVICES": "GPU-1", "PYTHONPATH": "/p"}
    shell = {"PATH": "/mine", "PYTHONPATH": "/mine/lib", "A": "shell", "B": "shell"}
    submitted = Environment(shell=shell, named={"A": "named", "C": "named"})
    settings = config(tmp_path, env={"C": "spec", "PYTHONPATH": "/spec"})
    whole = settings.model_copy(update={"submitted": submitted})
    assert "/mine" not in whole.model_dump_json(), "it goes into no file"
    assert rank_environment(whole, base) == {
        "PATH": "/mine",
        "PYTHONPATH": "/spec:/mine/lib",
        "A": "named",
        "B": "shell",
        "C": "spec",
        "CUDA_VISIBLE_DEVICES": "GPU-1",
        "OMP_NUM_THREADS": "1",
        "BABYSIT_WORKER": "w1",
        "BABYSIT_RUN": "r",
    }
    some = settings.model_copy(update={"submitted": Environment(named={"MY": "named"})})
    named = rank_environment(some, base)
    assert (named["MY"], named["PATH"], named["PYTHONPATH"]) == ("named", "/first", "/spec:/p")


def test_plan_points_memory_candidates_at_this_workers_own_directory(tmp_path: Path):
    settings = config(tmp_path, checkpoint={"directory": "/c", "every_steps": 9})
    near = RestoreCandidate(id="m", step=20, tier="memory", path="", world_size=2, attempt=1)
    far = RestoreCandidate(
        id="d", step=10, tier="directory", path="/c/step-000000010", world_size=2, attempt=1
    )
    command = start(attempt=2, restore=(near, far), skip_batches=((5, 9),))
    plan = rank_plan(command, settings, 1)
    memory = tmp_path / "memory/checkpoints"
    assert [c.path for c in plan.restore] == [f"{memory}/step-000000020", "/c/step-000000010"]
    assert (plan.rank, plan.world_size, plan.attempt) == (1, 2, 2)
    assert plan.skip_batches == ((5, 9),)
    assert (plan.save.directory, plan.save.every_steps) == ("/c", 9)
    assert plan.save.memory_directory == str(memory)
    assert rank_plan(command, config(tmp_path), 0).save.every_steps == 0


# --- ports and settings -------------------------------------------------------------------------


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
def test_port_is_free_and_a_taken_one_is_passed_over(family: socket.AddressFamily):
    if family == socket.AF_INET6 and not socket.has_dualstack_ipv6():
        pytest.skip("this machine has no IPv6")
    chance = random.Random(1)
    port = free_port(chance)
    with socket.socket(family) as taken:
        if family == socket.AF_INET6:
            taken.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        taken.bind(("", port))
        taken.listen()
        other = free_port(random.Random(1))
    assert port in PORTS
    assert other in PORTS
    assert other != port


def test_bad_settings_are_named_without_showing_the_token(tmp_path: Path):
    file = tmp_path / "config.json"
    with pytest.raises(ConfigError, match="No such file"):
        read_config(file)
    raw = json.loads(config(tmp_path).model_dump_json())
    file.write_text(json.dumps(raw | {"colour": "red"}))
    with pytest.raises(ConfigError, match="colour") as caught:
        read_config(file)
    assert "hush" not in str(caught.value)


def test_a_text_that_utf_8_does_not_have_is_escaped() -> None:
    """Such as the message of an exception about a file whose name is in another encoding."""
    name = os.fsdecode(b"caf\xe9.jpg")
    _, body = frames.decode(frames.encode("report", {"reason": f"no such file: {name}"}))
    assert body == {"reason": r"no such file: caf\udce9.jpg"}
