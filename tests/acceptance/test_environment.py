"""The environment of the shell that submits: each run has its own, for as long as it can start."""

from __future__ import annotations

import hashlib
import os
import signal
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.control_plane import ControlPlane, Servers, control_plane, until

SECRET = "a-secret-that-is-in-no-log"
TRAIN = """
import hashlib, os, signal, time
from pathlib import Path
token = hashlib.sha256(os.environ["TOKEN"].encode()).hexdigest()
print(os.environ.get("MY_PROJECT"), os.environ.get("SSH_TTY"), token, flush=True)
again = Path(os.environ["BABYSIT_RUN"])
if not again.exists():
    again.touch()
    while not Path("go").exists():
        time.sleep(0.02)
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def plane(servers: Servers, tmp_path: Path) -> Iterator[ControlPlane]:
    with control_plane(servers, tmp_path / "home") as running:
        yield running


def spec(directory: Path, name: str) -> Path:
    """A spec whose TOKEN is in a file."""
    (directory / "train.py").write_text(TRAIN)
    (directory / "token").write_text(f"{SECRET}\n")
    file = directory / f"{name}.yaml"
    file.write_text(
        f"name: {name}\ncommand: [python, train.py]\nresources: {{nodes: 1}}\n"
        "env_from:\n  - secrets: {TOKEN: 'file:token'}\n"
    )
    return file


def blobs(plane: ControlPlane) -> list[Path]:
    return sorted((plane.home / "environments").iterdir())


def test_restarts_of_run_and_server_keep_what_was_submitted_and_nothing_tells_it(
    plane: ControlPlane, tmp_path: Path
) -> None:
    runs = []
    for project in ("alpha", "beta"):
        plane.environment |= {"MY_PROJECT": project, "SSH_TTY": "/dev/pts/1"}
        submitted = plane.babysit("submit", spec(tmp_path, project), "-o", "json")
        assert "Not passed to the run:" in submitted.stderr
        assert "SSH_TTY" in submitted.stderr
        runs.append(plane.show(project)["id"])
    del plane.environment["MY_PROJECT"]
    until(lambda: all((tmp_path / run).exists() for run in runs), "both runs have started")
    assert [path.name for path in blobs(plane)] == sorted(f"{run}.json" for run in runs)
    assert {stat.S_IMODE(path.stat().st_mode) for path in blobs(plane)} == {0o600}

    plane.kill()
    plane.start()
    (tmp_path / "go").touch()
    digest = hashlib.sha256(SECRET.encode()).hexdigest()
    for run, project in zip(runs, ("alpha", "beta"), strict=True):
        plane.state(run, "succeeded")
        for attempt in (1, 2):
            log = plane.home / f"runs/{run}/logs/attempt-{attempt:04d}/rank-00000.log"
            assert log.read_text() == f"{project} None {digest}\n"
    until(lambda: not blobs(plane), "the environments of runs that are over are gone")

    said = [
        plane.babysit(*words, "-o", "json").output
        for run in runs
        for words in (("show", run), ("events", run), ("logbook", run), ("explain", run))
    ]
    files = [path.read_bytes() for path in plane.home.rglob("*") if path.is_file()]
    assert not any(SECRET in text for text in said)
    assert not any(SECRET.encode() in data for data in files)


def test_a_run_whose_environment_is_lost_starts_nothing_without_it(
    plane: ControlPlane, tmp_path: Path
) -> None:
    run = plane.submit(spec(tmp_path, "lost"))
    until((tmp_path / run).exists, "the run has started")
    (blob,) = blobs(plane)
    blob.unlink()
    for agent in plane.agents(run).values():
        os.kill(agent, signal.SIGKILL)
    shown = plane.state(run, "held")
    assert "that was submitted with it is not on this server's disk" in shown["reason"]
