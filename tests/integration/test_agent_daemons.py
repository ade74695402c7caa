"""Processes that shed the worker's mark and leave their session end with the attempt."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from jobs.agent import reaper
from jobs.events import AttemptStopped, RankExited
from tests.agent_helpers import PATIENCE, AgentProcess, ended, playground, shutdown, start, stop
from tests.control_plane import until

DAEMON = "echo $$ >> {pids}; sleep 1000 & echo $! >> {pids}; trap : TERM HUP; wait; wait"
WAYS = {
    "own session, clean environment": "subprocess.Popen(sh, env=bare, start_new_session=True)",
    "double fork": """
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        os.execve("/bin/sh", sh, bare)
    os._exit(0)
os.wait()
""",
    "background of a shell that ends": """
subprocess.run(["env", "-i", "sh", "-c", 'setsid sh -c "$0" &', sh[2]], check=True)
""",
    "daemon that starts a daemon": """
both = 'setsid sh -c "$0" & sleep 0.01; exec sh -c "$0"'
subprocess.Popen(["env", "-i", "sh", "-c", both, sh[2]], start_new_session=True)
""",
}
SCRIPT = """
import os, signal, subprocess, time
import babysit
run = babysit.init()
bare = {{"PATH": os.environ["PATH"]}}
sh = ["sh", "-c", {daemon!r}]
{way}
while not os.path.exists({pids!r}) or open({pids!r}).read().count("\\n") < {count}:
    time.sleep(0.01)
run.report(step=1, loss=1.0)
{end}
"""


def script(root: Path, way: str, end: str = "signal.pause()") -> str:
    pids = str(root / "pids")
    count = 4 if "starts" in way else 2
    daemon = DAEMON.format(pids=pids)
    return SCRIPT.format(daemon=daemon, way=WAYS[way], pids=pids, count=count, end=end)


def daemons(root: Path, agent: AgentProcess) -> list[int]:
    """The daemons, which are alive and known by no mark."""
    pids = [int(line) for line in (root / "pids").read_text().split()]
    assert not set(pids) & set(agent.marked())
    return pids


def alive(pids: list[int]) -> list[int]:
    return [pid for pid in pids if runs(pid)]


def runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


@pytest.mark.parametrize("way", WAYS)
async def test_they_end_with_the_last_rank_that_ends_well(tmp_path: Path, way: str):
    async with playground(tmp_path, script(tmp_path, way, "")) as (server, agent):
        await server.send(start(ranks=(0,), world_size=1))
        exited = await server.event(RankExited)
        assert exited.code == 0, agent.log(1, 0)
        assert alive(daemons(tmp_path, agent)) == []


@pytest.mark.parametrize("way", WAYS)
async def test_they_are_gone_when_an_attempt_has_stopped(tmp_path: Path, way: str):
    async with playground(tmp_path, script(tmp_path, way)) as (server, agent):
        await server.send(start(ranks=(0,), world_size=1))
        await server.until(lambda: server.steps(0))
        pids = daemons(tmp_path, agent)
        assert alive(pids) == pids
        await server.send(stop())
        await server.event(AttemptStopped)
        assert alive(pids) == []


@pytest.mark.parametrize("who", ["rank", "standby", "agent", "shutdown"])
async def test_they_are_gone_whoever_is_killed(tmp_path: Path, who: str):
    text = script(tmp_path, "daemon that starts a daemon")
    async with playground(tmp_path, text) as (server, agent):
        await server.send(start(ranks=(0,), world_size=1))
        await server.until(lambda: server.steps(0))
        pids = daemons(tmp_path, agent)
        if who == "shutdown":
            await server.send(shutdown())
            assert await agent.gone() == 0
        else:
            victims = {"rank": agent.ranks()[0].pid, "standby": agent.standby, "agent": agent.pid}
            os.kill(victims[who], signal.SIGKILL)
        if who in {"rank", "standby"}:
            await server.event(RankExited)
        else:
            await agent.gone()
            await agent.nothing_left()
        async with asyncio.timeout(PATIENCE):
            for pid in pids:
                await ended(pid)


@pytest.fixture
def stranger():
    process = subprocess.Popen(["sleep", "1000"])
    yield process
    process.kill()
    process.wait()


def test_seen_processes_and_those_below_them_are_killed_and_no_strangers(
    stranger: subprocess.Popen[bytes], tmp_path: Path
):
    """As the reaper does when agent and fork server have been killed at once."""
    shell = subprocess.Popen(["setsid", "sh", "-c", DAEMON.format(pids=tmp_path / "pids")])
    while not (tmp_path / "pids").exists() or (tmp_path / "pids").read_text().count("\n") < 2:
        pass
    seen = reaper.descendants([os.getpid()])
    below = int((tmp_path / "pids").read_text().split()[1])
    family = {shell.pid: seen[shell.pid], stranger.pid: "1"}  # the stranger has a recycled pid
    assert below in seen
    assert reaper.kill_family(family, spare=()) == []
    assert shell.wait() == -signal.SIGKILL
    assert alive([below, stranger.pid]) == [stranger.pid]


def test_only_reapers_are_waited_for(monkeypatch: pytest.MonkeyPatch):
    """Not a process with few arguments, nor one that is just ending and has none."""
    environment = {**os.environ, reaper.ENV_WORKER: "w-waited-for"}
    short = subprocess.Popen(["sleep", "1000"], env=environment)
    read, write = os.pipe()
    command = [sys.executable, "-I", "-S", reaper.__file__, "w-waited-for", str(read)]
    command += [str(os.getpid()), ""]
    own = subprocess.Popen(command, pass_fds=[read], env=environment)
    os.close(read)
    arguments = Path(f"/proc/{own.pid}/cmdline")
    until(lambda: arguments.read_bytes() != b"", "the new program has its arguments")
    assert [reaper._is_reaper(pid) for pid in (short.pid, own.pid, 2**22)] == [False, True, False]
    os.close(write)
    assert reaper.end_worker("w-waited-for") == []
    assert own.wait() >= 0, "the reaper ended by itself"
    assert short.wait() == -signal.SIGKILL


def test_only_own_children_are_ended_and_the_spared_live(stranger: subprocess.Popen[bytes]):
    code = (
        "import subprocess, sys; sys.path.insert(0, sys.argv[1]); import orphans\n"
        "orphans.adopt(); kept = subprocess.Popen(['sleep', '1000'])\n"
        "subprocess.run(['sh', '-c', 'setsid sleep 1000 & setsid sleep 1000 &'])\n"
        "assert len(orphans.children()) == 3, orphans.children()\n"
        "assert orphans.end_children({kept.pid}) == []\n"
        "print(orphans.children() == [kept.pid], kept.poll()); kept.kill()\n"
    )
    place = str(Path(reaper.__file__).parent)
    said = subprocess.check_output([sys.executable, "-c", code, place], text=True)
    assert said == "True None\n"
    assert stranger.poll() is None
