"""A run leaves the machine: its code goes as a bundle to nodes that share nothing with anybody."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.acceptance.conftest import JOB
from tests.certificates import make_certificate
from tests.control_plane import USAGE, until
from tests.elsewhere import RemotePlane, servers

_TRAIN = """
import os, sys
from helpers.told import SECRET_WORD
assert SECRET_WORD == "naïve"
assert os.access("run.sh", os.X_OK)
assert os.readlink("newest") == "helpers"
assert not os.path.exists("data.bin"), "left out by .gitignore"
assert not os.path.exists(".env"), "a secret does not travel"
with open(os.environ["TOLD"], "a") as told:
    told.write(f"{os.environ['RANK']} {os.environ['MASTER_ADDR']} {os.getcwd()}\\n")
sys.argv[0] = "job.py"
exec(compile(open("job.py").read(), "job.py", "exec"))
"""


@pytest.fixture(scope="module")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RemotePlane]:
    with started(tmp_path_factory.mktemp("plane")) as running:
        yield running


@contextlib.contextmanager
def started(directory: Path, **settings: object) -> Iterator[RemotePlane]:
    made = servers()
    certificate = make_certificate(directory)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    running = RemotePlane(made, directory / "home", certificate, port, **settings)
    running.start()
    try:
        yield running
    finally:
        running.close()
        made.close()


def write_code(code: Path, scratch: Path, **spec: object) -> Path:
    """A workdir of many kinds of files, and its spec."""
    (code / "helpers").mkdir(parents=True)
    scratch.mkdir(exist_ok=True)
    (code / "helpers" / "told.py").write_text('SECRET_WORD = "naïve"\n')
    (code / "helpers" / "__init__.py").touch()
    (code / "newest").symlink_to("helpers")
    (code / "run.sh").write_text("#!/bin/sh\n")
    (code / "run.sh").chmod(0o755)
    (code / "train.py").write_text(_TRAIN)
    (code / "data.bin").write_bytes(b"x" * 4096)
    (code / ".gitignore").write_text("*.bin\n")
    (code / ".env").write_text("TOKEN=hush\n")
    shutil.copy(JOB, code / "job.py")
    body = {
        "name": "far",
        "command": ["python", "train.py", "--scratch", str(scratch), "--pace", "0.02"],
        "resources": {"nodes": 2},
        "env": {"TOLD": str(scratch / "told.txt")},
        "checkpoint": {
            "directory": str(scratch / "checkpoints"),
            "every_steps": 10,
            "memory_every_steps": 1,
        },
        **spec,
    }
    file = code / "run.yaml"
    file.write_text(json.dumps(body))
    return file


@pytest.mark.slow
def test_a_run_trains_where_only_its_bundle_is(plane: RemotePlane, tmp_path: Path) -> None:
    scratch = tmp_path / "shared"
    spec = write_code(tmp_path / "code", scratch)
    submitted = plane.babysit("submit", spec, "-o", "json")
    assert submitted.exit_code == 0, submitted.output
    assert "look like secrets: .env" in submitted.stderr
    run = json.loads(submitted.stdout)["id"]
    shutil.rmtree(spec.parent)  # nobody but the store has the code now
    bundle = plane.show(run)["bundle"]
    stored = plane.home / "bundles" / f"{bundle}.tar"
    assert stat.S_IMODE(stored.stat().st_mode) == 0o600

    plane.at_step(run, 10)
    plane.stop()
    plane.start()
    plane.signal_rank(run, 1, signal.SIGKILL)
    until(lambda: plane.show(run)["attempt"] == 2, "the run recovers")
    told = [line.split() for line in (scratch / "told.txt").read_text().splitlines()]
    until(lambda: plane.show(run)["state"] == "running", "and trains on")
    step = plane.show(run)["step"]
    until(lambda: plane.show(run)["step"] > step, "with new steps")
    assert {rank for rank, _, _ in told} == {"0", "1"}
    masters = {address for _, address, _ in told}
    assert masters <= {"127.0.0.11", "127.0.0.12"}, "an address of the node of rank 0"
    assert all(Path(workdir).is_relative_to(plane.disk) for _, _, workdir in told)

    (scratch / "finish").touch()
    plane.state(run, "succeeded")


@pytest.mark.slow
def test_what_cannot_leave_is_refused_before_it_is_submitted(
    plane: RemotePlane, tmp_path: Path
) -> None:
    before = {row["id"] for row in plane.ask("ls")}
    spec = write_code(tmp_path / "code", tmp_path / "shared", checkpoint={"directory": "ckpt"})
    refused = plane.babysit("submit", spec)
    assert refused.exit_code == USAGE
    assert "expected an absolute path that every node mounts, got ckpt" in refused.stderr
    spec = write_code(tmp_path / "code2", tmp_path / "shared")
    (spec.parent / "data").symlink_to("/usr/share")
    refused = plane.babysit("submit", spec)
    assert refused.exit_code == USAGE
    assert "data leads out of the workdir, to /usr/share" in refused.stderr
    assert {row["id"] for row in plane.ask("ls")} == before


@pytest.mark.slow
def test_a_run_whose_code_is_lost_ends_with_the_reason(plane: RemotePlane, tmp_path: Path) -> None:
    spec = write_code(tmp_path / "code", tmp_path / "shared")
    run = plane.submit(spec)
    plane.at_step(run, 3)
    bundle = plane.show(run)["bundle"]
    (plane.home / "bundles" / f"{bundle}.tar").write_bytes(b"tampered")
    os.kill(plane.agents(run)["node-1"], signal.SIGKILL)
    ended = plane.state(run, "failed", seconds=90)
    assert "no server gives the code of the run" in ended["reason"]
    assert f"answered 404: the bundle {bundle} is not in the store" in ended["reason"]
    again = plane.submit(spec)  # the same code: it is uploaded again, and runs
    assert plane.show(again)["bundle"] == bundle
    plane.at_step(again, 3)
    (tmp_path / "shared" / "finish").touch()
    plane.state(again, "succeeded")


@pytest.mark.slow
def test_a_run_restarts_when_the_home_with_its_code_is_lost(
    postgres_database: Callable[[], str], tmp_path: Path
) -> None:
    """As in a chart without storage for bundles, whose upgrade replaces the Pod of the server."""
    with started(tmp_path, database_url=postgres_database()) as plane:
        run = plane.submit(write_code(tmp_path / "code", tmp_path / "shared"))
        plane.at_step(run, 3)
        plane.stop()
        shutil.rmtree(plane.home / "bundles")
        plane.start()
        os.kill(plane.agents(run)["node-1"], signal.SIGKILL)
        until(lambda: plane.show(run)["attempt"] == 2, "the run recovers")
        until(lambda: plane.show(run)["state"] == "running", "on code from the database")
        (tmp_path / "shared" / "finish").touch()
        plane.state(run, "succeeded")
