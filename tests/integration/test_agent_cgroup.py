"""The control group of a worker, on the real file system where this machine lets us make one."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from jobs.agent import cgroup, reaper
from tests.agent_helpers import PATIENCE, ended, playground, shutdown, start
from tests.control_plane import until
from tests.integration.test_agent_daemons import alive, daemons, script

NESTING = """
import os, signal, subprocess, sys
os.mkdir(sys.argv[1] + "/below")
child = subprocess.Popen(["sleep", "1000"], start_new_session=True, env={})
open(sys.argv[1] + "/below/cgroup.procs", "w").write(str(child.pid))
print(child.pid, flush=True)
signal.pause()
"""


@pytest.fixture
def group() -> Iterator[str]:
    worker = f"w-{uuid.uuid4().hex}"
    path = cgroup.create(worker)
    if not path:
        pytest.skip("this machine lets no control group be made (cgroup v2 absent or read-only)")
    assert cgroup.find(worker) == path
    yield path
    cgroup.end(path)
    cgroup.remove(path)
    assert cgroup.find(worker) == ""


def inside(path: str) -> tuple[subprocess.Popen[str], int]:
    """A process in the group, and its child in a group below that has shed session and mark."""
    process = subprocess.Popen(
        [sys.executable, "-c", NESTING, path],
        preexec_fn=lambda: cgroup.enter(path),  # noqa: PLW1509 - it opens and writes
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    return process, int(process.stdout.readline())


@pytest.mark.parametrize("kill_file", ["cgroup.kill", "absent"], ids=["5.14", "older kernels"])
def test_everything_in_a_group_ends_and_nothing_else(
    group: str, kill_file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cgroup, "_KILL_FILE", kill_file)
    stranger = subprocess.Popen(["sleep", "1000"])
    process, child = inside(group)
    with process:
        assert set(cgroup.members(group)) == {process.pid, child}
        cgroup.remove(group)  # not while somebody is in it
        assert cgroup.members(group)
        assert cgroup.end(group) == []
        assert process.wait() == -signal.SIGKILL
    assert alive([child]) == []
    assert stranger.poll() is None
    cgroup.remove(group)
    assert not Path(group).exists()
    assert cgroup.end(group) == cgroup.end("") == []
    stranger.kill()
    stranger.wait()


def test_a_group_that_cannot_be_emptied_is_said(
    group: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with a process that is stuck in the kernel."""
    process, child = inside(group)
    with process, monkeypatch.context() as patch:
        patch.setattr(cgroup, "_STUBBORN_SECONDS", 0.0)
        patch.setattr(cgroup, "_kill", lambda _path: None)
        assert set(cgroup.end(group)) == {process.pid, child}
        patch.undo()
        cgroup.end(group)


def test_end_worker_kills_what_only_the_group_shows(group: str) -> None:
    process, child = inside(group)
    with process:
        assert reaper.end_worker(Path(group).name.removeprefix("babysit-")) == []
    assert alive([child]) == []
    assert not Path(group).exists()


@pytest.mark.parametrize("victims", ["agent and standby", "shutdown"])
async def test_a_daemon_of_a_moment_ago_does_not_escape(tmp_path: Path, victims: str) -> None:
    """Without a group, one is found only if a look, every five seconds, has seen it."""
    async with playground(tmp_path, script(tmp_path, "double fork")) as (server, agent):
        await server.send(start(ranks=(0,), world_size=1))
        await server.until(lambda: server.steps(0))
        path = cgroup.find(agent.worker)
        if not path:
            await server.send(shutdown())
            pytest.skip("this machine lets no control group be made")
        pids = daemons(tmp_path, agent)
        assert set(pids) < set(cgroup.members(path))
        assert agent.pid not in cgroup.members(path)
        if victims == "shutdown":
            await server.send(shutdown())
        else:
            os.kill(agent.pid, signal.SIGSTOP)
            os.kill(agent.standby, signal.SIGKILL)
            os.kill(agent.pid, signal.SIGKILL)
        await agent.gone()
        async with asyncio.timeout(PATIENCE):
            for pid in pids:
                await ended(pid)
            until(lambda: not Path(path).exists(), "the group is removed")


def test_where_no_group_can_be_made_there_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cgroup, "_own", lambda: str(tmp_path))  # no file system of groups
    assert cgroup.create("w") == ""
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(cgroup, "_own", lambda: "/proc/1/fd/none")
    assert cgroup.create("w") == ""
    monkeypatch.undo()
    monkeypatch.setattr(cgroup, "_mount", lambda: ("/mounted", "/elsewhere"))
    with pytest.raises(ValueError, match="not below /elsewhere"):
        cgroup._own()
