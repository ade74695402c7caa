"""A benchmark that is interrupted, or that raises, leaves no process and no file behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from jobs import processes

ROOT = Path(__file__).parents[2]

RANK = """
import os, signal, sys, time
from pathlib import Path
for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
    signal.signal(number, signal.SIG_IGN)
if os.fork() == 0:
    os.setsid()
Path(sys.argv[1], str(os.getpid())).touch()
time.sleep(600)
"""
"""Ends only by SIGKILL, with a child in a session of its own."""

BENCHMARK = """
import signal, sys, time
from pathlib import Path
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background ignores it
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # nohup ignores it
sys.path.insert(0, sys.argv[1])
from benchmarks.support.harness import control_plane, submit, until, workplace
pids = Path(sys.argv[2])
with workplace("interrupted") as directory, control_plane(directory, idle_seconds=600) as session:
    (pids.parent / "directory").write_text(str(directory))
    command = [sys.executable, str(pids.parent / "rank.py"), str(pids)]
    submit(session, directory, {"name": "mute", "command": command, "resources": {"nodes": 2}})
    until(lambda: len(list(pids.iterdir())) == 4, "two ranks and their children", seconds=240)
    print("ready", flush=True)
    if sys.argv[3] == "raises":
        raise RuntimeError("a row failed")
    time.sleep(600)
"""


def with_home(home: str) -> list[str]:
    """Command lines of processes that name a directory in their environment or arguments."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                words = (entry / "cmdline").read_bytes() + (entry / "environ").read_bytes()
            except OSError:
                continue
            if home.encode() in words:
                found.append((entry / "cmdline").read_text().replace("\0", " "))
    return found


@pytest.mark.parametrize(
    ("how", "code"), [("SIGTERM", 143), ("SIGINT", 130), ("SIGHUP", 129), ("raises", 1)]
)
def test_an_interrupted_benchmark_leaves_nothing_behind(
    tmp_path: Path, how: str, code: int
) -> None:
    (tmp_path / "rank.py").write_text(RANK)
    pids = tmp_path / "pids"
    pids.mkdir()
    with subprocess.Popen(
        [sys.executable, "-c", BENCHMARK, str(ROOT), str(pids), how],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as benchmark:
        try:
            assert benchmark.stdout
            assert benchmark.stdout.readline() == "ready\n"
            ranks = [processes.identify(int(file.name)) for file in pids.iterdir()]
            if how != "raises":
                assert all(rank and processes.is_alive(rank) for rank in ranks)
                benchmark.send_signal(signal.Signals[how])
            _, errors = benchmark.communicate(timeout=120)
        finally:
            benchmark.terminate()  # without effect on one that has ended
    assert benchmark.returncode == code, errors
    assert ("RuntimeError: a row failed" in errors) == (how == "raises")
    assert not any(rank and processes.is_alive(rank) for rank in ranks)
    directory = (tmp_path / "directory").read_text()
    assert not Path(directory).exists()
    assert with_home(directory) == []
