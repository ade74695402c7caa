"""Files of metrics are followed for one attempt: what others wrote before does not count."""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from jobs.agent.log_metrics import PREFER_LINES_SECONDS, LogMetrics
from jobs.agent.metric_files import MetricFiles, metric_files
from jobs.clock import ManualClock
from jobs.spec import RunSpec
from jobs.watch.files import Names

REAL = gzip.decompress(
    (Path(__file__).parents[1] / "data" / "metrics" / "tensorboardX-2.6.gz").read_bytes()
)
"""Twelve steps, written long before."""


def line(step: int, loss: float = 1.0) -> str:
    """A line of JSON."""
    return json.dumps({"step": step, "loss": loss}) + "\n"


def steps(files: MetricFiles, now: float, pid: int = 0) -> list[int]:
    """The steps that two looks find: the second one completes the last."""
    files.look(pid, now)
    files.look(pid, now)
    return [record.step for record in files.take()]


def following(*patterns: Path, began: float = 1000.0) -> MetricFiles:
    """Files of a pattern, as an attempt begins."""
    made = MetricFiles([str(pattern) for pattern in patterns], Names(), began)
    made.note_before()
    return made


HOLD = """
import sys
files = [open(name, "ab") for name in sys.argv[1:]]
print("open", flush=True)
sys.stdin.read()
"""


@contextlib.contextmanager
def rank(*files: Path) -> Iterator[int]:
    """A process that has these files open for writing, and no others; its number."""
    command = [sys.executable, "-S", "-c", HOLD, *map(str, files)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"open\n"
        yield process.pid
        process.kill()


def test_only_lines_of_this_attempt_count(tmp_path: Path) -> None:
    """A script that appends to one file goes on in it, from an earlier step, behind half a line."""
    file = tmp_path / "metrics.jsonl"
    file.write_text("".join(map(line, range(1, 10))) + '{"step": 10, "lo')
    files = following(tmp_path / "*.jsonl")
    assert steps(files, 1001.0) == []
    with file.open("a") as stream:
        stream.write('\n{"step": 4, "loss": 1.0}\n{"step": 5, "l')
        stream.flush()
        assert steps(files, 1002.0) == [4]
        stream.write('oss": 2}\n')
        stream.flush()
        assert steps(files, 1003.0) == [5]
    assert (files.seen.step, files.seen.first_step) == (5, 4)


def test_a_file_that_is_written_anew_or_replaced(tmp_path: Path) -> None:
    """It is read from its beginning: all of it is new."""
    file = tmp_path / "metrics.jsonl"
    file.write_text("".join(map(line, range(1, 10))))
    files = following(file)
    file.write_text(line(3))  # shorter
    assert steps(files, 1001.0) == [3]
    (tmp_path / "new").write_text("".join(map(line, range(4, 30))))
    (tmp_path / "new").replace(file)
    assert steps(files, 1002.0) == list(range(4, 30))


def test_new_files_of_a_rotation(tmp_path: Path) -> None:
    """They are found, and validations in directories beside are not taken for steps."""
    (tmp_path / "val").mkdir()
    files = following(tmp_path / "*.jsonl", tmp_path / "*" / "*.jsonl")
    (tmp_path / "a.jsonl").write_text(line(1) + line(2))
    (tmp_path / "val" / "a.jsonl").write_text(line(500))
    assert steps(files, 1001.0) == [1, 2]
    (tmp_path / "b.jsonl").write_text(line(3))
    assert steps(files, 1002.0) == [3]
    assert steps(following(tmp_path / "*.jsonl"), 1003.0) == []


def test_more_files_than_are_followed_at_once(tmp_path: Path) -> None:
    """Neither old files nor those that the attempt has written before hide its newest one."""
    for number in range(70):
        (tmp_path / f"old-{number}.jsonl").write_text(line(number))
    files = following(tmp_path / "*.jsonl")
    assert steps(files, 1000.0) == []
    for step in range(1, 71):
        file = tmp_path / f"new-{step}.jsonl"
        file.write_text(line(step))
        os.utime(file, (2e9 + step, 2e9 + step))
        assert steps(files, 1000.0 + 30.0 * step) == [step]


def state(step: int, *logged: int, loss: float = 1.0) -> str:
    """A `trainer_state.json` with losses of these steps."""
    log = [{"step": at, "loss": loss, "epoch": 0.1} for at in logged]
    log.append({"step": logged[-1], "eval_loss": 9.0})
    return json.dumps({"global_step": step, "log_history": log, "max_steps": 100})


def test_the_state_of_the_trainer(tmp_path: Path) -> None:
    """An attempt that goes on from step 60 writes the losses of the one before it once more."""

    def save(step: int, *logged: int, loss: float = 1.0) -> None:
        place = tmp_path / f"checkpoint-{step}"
        place.mkdir(exist_ok=True)
        (place / "trainer_state.json").write_text(state(step, *logged, loss=loss))

    save(60, 20, 40, 60)
    save(80, 20, 40, 60, 80)
    files = following(tmp_path / "checkpoint-*" / "trainer_state.json")
    assert steps(files, 1001.0) == []
    (tmp_path / "checkpoint-70").mkdir()
    (tmp_path / "checkpoint-70" / "trainer_state.json").write_text('{"global_step": 7')
    assert steps(files, 1002.0) == []
    save(80, 20, 40, 60, 80)  # the same loss as before: known by the step of the checkpoint
    assert steps(files, 1003.0) == [80]
    save(110, 20, 40, 60, 80, 100)
    files.look(0, 1030.0)
    files.look(0, 1030.0)
    assert [(r.step, r.loss) for r in files.take()] == [(100, 1.0), (110, None)]


@pytest.mark.parametrize(("began", "due"), [(1e9, list(range(1, 13))), (1.95e9, [])])
def test_files_that_the_rank_has_open(tmp_path: Path, began: float, due: list[int]) -> None:
    """Without a pattern, nothing that others wrote is read, nor what an earlier attempt wrote."""
    mine, other = tmp_path / "events.out.tfevents.1.n", tmp_path / "other.jsonl"
    other.write_text("".join(map(line, range(90, 95))))
    files = MetricFiles((), Names(), began)
    mine.write_bytes(REAL)
    with rank(mine) as pid:
        assert steps(files, began + 5e8, pid) == due


def test_event_files_with_the_number_of_the_process(tmp_path: Path) -> None:
    """`tensorboard` opens its file only to write to it."""
    place = tmp_path / "out" / "runs" / "today"
    place.mkdir(parents=True)
    files = MetricFiles((), Names(), 1e9, directory=tmp_path)
    with rank() as pid:
        (place / f"events.out.tfevents.1796.n.o.de.{pid + 1}.0").write_bytes(REAL)
        assert steps(files, 1.9e9, pid) == []
        (place / f"events.out.tfevents.1796.n.o.de.{pid}.0").write_bytes(REAL)
        assert steps(files, 2.9e9, pid) == list(range(1, 13))


def test_lines_without_dates_in_a_file_that_the_rank_has_open(tmp_path: Path) -> None:
    """Those that were there when it was found may be another attempt's; babysit's own are none."""
    file = tmp_path / "log.jsonl"
    file.write_text("".join(map(line, range(90, 95))))
    files = MetricFiles((), Names(), 1000.0)
    notes = tmp_path / "notes.jsonl"
    with rank(file, notes) as pid, file.open("a") as stream:
        assert steps(files, 1001.0, pid) == []
        stream.write(line(7))
        stream.flush()
        notes.write_text(line(70))
        assert steps(files, 1002.0, pid) == [7]


def test_a_duration_called_time_is_no_date(tmp_path: Path) -> None:
    """The line is not taken for one of an earlier attempt."""
    file = tmp_path / "log.jsonl"
    files = MetricFiles((), Names(), 1e9)
    with rank(file) as pid, file.open("a") as stream:
        assert steps(files, 1e9 + 1.0, pid) == []
        stream.write(json.dumps({"step": 7, "loss": 1.0, "time": 0.35}) + "\n")
        stream.flush()
        assert steps(files, 1e9 + 2.0, pid) == [7]


@pytest.mark.parametrize("name", ["metrics.jsonl", "trainer_state.json"])
def test_a_pipe_is_left_to_its_reader(tmp_path: Path, name: str) -> None:
    """The agent neither waits for the next writer, nor takes what was written."""
    pipe = tmp_path / name
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    files = MetricFiles((), Names(), 1000.0)
    try:
        with rank(pipe) as pid, pipe.open("ab") as stream:
            files.look(pid, 1001.0)
            stream.write(line(1).encode())
            stream.flush()
            files.look(pid, 1002.0)
            assert os.read(reader, 100) == line(1).encode()
        late = threading.Thread(target=files.look, args=(0, 1003.0), daemon=True)
        late.start()
        late.join(30.0)
        assert not late.is_alive()
    finally:
        os.close(reader)
    assert files.take() == []


def test_what_cannot_be_read_ends_nothing(tmp_path: Path) -> None:
    """A file that is no event file, a directory of that name, and one that disappears."""
    (tmp_path / "events.out.tfevents.1").write_bytes(b"x" * 100)
    (tmp_path / "events.out.tfevents.2").mkdir()
    gone = tmp_path / "events.out.tfevents.3"
    gone.write_bytes(REAL)
    files = MetricFiles([str(tmp_path / "events.out.tfevents.*")], Names(), 1000.0)
    files.look(0, 1.9e9)
    gone.unlink()
    files.look(0, 1.9e9)
    assert [record.step for record in files.take()] == list(range(1, 13))
    [(file, why)] = files.troubles.items()
    assert (file.name, "not an event file" in why) == ("events.out.tfevents.1", True)
    shutil.rmtree(tmp_path)
    assert steps(files, 2e9) == []


def metrics_of(directory: Path, watch: object = "auto") -> tuple[LogMetrics, ManualClock]:
    """The metrics of rank 0, as its agent has them."""
    spec = RunSpec.model_validate({"name": "x", "command": ("x",), "watch": watch})
    clock = ManualClock()
    files = metric_files(spec, directory, clock.now().timestamp())
    return LogMetrics(0, spec, clock, files), clock


def test_named_files_replace_the_output(tmp_path: Path) -> None:
    """The output may then count whatever it likes."""
    metrics, clock = metrics_of(tmp_path, {"files": "m.jsonl"})
    metrics.note_before()
    (tmp_path / "m.jsonl").write_text(line(5) + line(6))
    metrics.look_at_files(0)
    samples = metrics.read(b"iter 900: loss 3.0, time\n")
    assert samples is not None
    assert (samples.step, metrics.seen.step) == ([5, 6], 6)
    with (tmp_path / "m.jsonl").open("a") as stream:
        stream.write(line(7))
    clock.advance(1.0)
    samples = metrics.finish(b"iter 901: loss 3.0, time\n")
    assert samples is not None
    assert samples.step == [7]


@pytest.mark.parametrize("prints", [True, False])
def test_lines_are_preferred_to_files_that_nobody_named(tmp_path: Path, *, prints: bool) -> None:
    """Both may count differently, and one source is kept for the attempt."""
    metrics, clock = metrics_of(tmp_path)
    file = tmp_path / "m.jsonl"
    with rank(file) as pid, file.open("a") as stream:
        metrics.look_at_files(pid)  # found
        stream.write(line(5))
        stream.flush()
        metrics.look_at_files(pid)
        assert metrics.read(b"") is None
        assert metrics.seen.step == 0
        if prints:
            metrics.read(b"iter 0: loss 3.0, time\niter 1: loss 3.0, time\n")
        clock.advance(PREFER_LINES_SECONDS)
        samples = metrics.read(b"")
        assert metrics.seen.step == (2 if prints else 5)
        assert (samples is None) == prints
        assert metrics.reads_files != prints
        metrics.read(b"iter 2: loss 3.0, time\n")
        assert metrics.seen.step == (3 if prints else 5)
