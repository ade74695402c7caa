"""Nothing of a worker outlives its agent, whoever is killed, in whatever order."""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path

import pytest

from jobs.events import AttemptStopped, RankExited, RankReady
from monitors.failures import Cause
from tests.agent_helpers import PATIENCE, ended, eventually, playground, shutdown, start, stop

FAMILY = """
    import os, signal, subprocess, sys, babysit
    run = babysit.init()
    # in the rank's own group, and one that moved out of it
    subprocess.Popen(["sleep", "1000"])
    subprocess.Popen(["sleep", "1000"], start_new_session=True)
    run.report(step=1, loss=1.0)
    signal.pause()
"""


def family(agent) -> list[int]:
    """Ranks and all that they started: everything with the mark but the standby."""
    return [pid for pid in agent.marked() if pid != agent.standby]


@pytest.mark.parametrize("who", ["agent", "agent, standby", "agent, standby, ranks"])
async def test_nothing_is_left_when_the_agent_is_killed(tmp_path: Path, who: str):
    async with playground(tmp_path, FAMILY) as (server, agent):
        await server.send(start())
        await server.until(lambda: server.steps(0) and server.steps(1))
        assert len(family(agent)) == 6
        victims = {
            "agent": [agent.pid],
            "standby": [agent.standby],
            "ranks": [rank.pid for rank in agent.ranks()],
        }
        for name in who.split(", "):
            for pid in victims[name]:
                with contextlib.suppress(ProcessLookupError):  # the reaper was faster
                    os.kill(pid, signal.SIGKILL)
        assert await agent.gone() == -signal.SIGKILL
        await agent.nothing_left()


async def test_killed_standby_takes_its_ranks_and_is_replaced(tmp_path: Path):
    async with playground(tmp_path, FAMILY) as (server, agent):
        await server.send(start())
        await server.until(lambda: server.steps(0) and server.steps(1))
        before = agent.marked()
        os.kill(agent.standby, signal.SIGKILL)
        for rank in (0, 1):
            exited = await server.event(RankExited, lambda e, rank=rank: e.rank == rank)
            assert exited.code == -signal.SIGKILL
            assert exited.last_step == 1
        assert not set(before) & set(agent.marked())

        await server.send(stop())
        await server.event(AttemptStopped)
        await server.send(start(attempt=2))
        await server.event(RankReady, lambda e: e.attempt == 2)


async def test_ranks_do_not_survive_their_standby_even_when_nobody_looks(tmp_path: Path):
    async with playground(tmp_path, FAMILY) as (server, agent):
        await server.send(start())
        await server.until(lambda: server.steps(0) and server.steps(1))
        ranks, standby = agent.ranks(), agent.standby
        assert len(ranks) == 2
        os.kill(agent.pid, signal.SIGSTOP)
        os.kill(standby, signal.SIGKILL)
        for rank in ranks:
            await ended(rank.pid)


async def test_children_die_with_their_rank(tmp_path: Path):
    async with playground(tmp_path, FAMILY) as (server, agent):
        await server.send(start(ranks=(0,)))
        await server.until(lambda: server.steps(0))
        members = family(agent)
        grouped = [pid for pid in members if os.getpgid(pid) == agent.ranks()[0].pid]
        assert len(members) == 3
        assert len(grouped) == 2
        os.kill(agent.ranks()[0].pid, signal.SIGKILL)
        await server.event(RankExited)
        for pid in grouped:
            await ended(pid)
        await server.send(stop())
        await server.event(AttemptStopped)  # says that nothing of the attempt is alive
        assert family(agent) == []


async def test_shutdown_leaves_nothing(tmp_path: Path):
    async with playground(tmp_path, FAMILY) as (server, agent):
        await server.send(start())
        await server.until(lambda: server.steps(0) and server.steps(1))
        assert agent.config.memory_directory.exists()
        await server.send(shutdown())
        assert await agent.gone() == 0
        assert agent.marked() == []
        assert not agent.config.memory_directory.exists()
        assert "shutdown" in server.acknowledged


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_agent_asked_to_end_leaves_nothing(tmp_path: Path, number: signal.Signals):
    async with playground(tmp_path, FAMILY) as (server, agent):
        await server.send(start())
        await server.until(lambda: server.steps(0) and server.steps(1))
        os.kill(agent.pid, number)
        assert await agent.gone() == 0
        assert agent.marked() == []


SAVER = """
    import time, pathlib, babysit
    run = babysit.init()
    run.report(step=1, loss=1.0)
    while not run.should_stop:
        time.sleep(0.01)
    time.sleep(0.5)
    print("saved", flush=True)
"""


@pytest.mark.parametrize("ordered", [True, False])
async def test_ranks_save_before_an_agent_that_gets_sigterm_leaves(tmp_path: Path, ordered: bool):
    """By order of the control plane, or by themselves where no order comes."""
    async with playground(tmp_path, SAVER) as (server, agent):
        await agent.kill()
        agent.start(grace_seconds=PATIENCE)
        await server.until(lambda: len(server.hellos) == 2)
        await server.send(start())
        await server.until(lambda: server.steps(0) and server.steps(1))
        os.kill(agent.pid, signal.SIGTERM)
        if ordered:
            await server.send(stop(grace_seconds=PATIENCE))
        assert await agent.gone() == 0
        assert agent.marked() == []
        assert agent.log(1, 0) == agent.log(1, 1) == "saved\n"
        exits = server.of(RankExited)
        assert [e.code for e in exits] == [0, 0]
        if ordered:
            assert server.of(AttemptStopped)
        else:
            causes = {e.failure and e.failure.cause for e in exits}
            assert causes == {Cause.PREEMPTION}, "the run has not succeeded, and pays nothing"


HANDLER = """
    import signal, sys, time, babysit
    run = babysit.init()
    def save(*_):
        print("asked", flush=True)
        time.sleep(1)
        print("saved", flush=True)
        sys.exit(0)
    assert signal.signal(signal.SIGTERM, save) is signal.SIG_DFL
    run.report(step=1, loss=1.0)
    while True:
        time.sleep(0.01)
"""
LAST_STEPS = """
    import time, babysit
    run = babysit.init()
    run.report(step=1, loss=1.0)
    for step, _ in run.steps([0, 1, 2]):
        while not run._reporter.stop_requested:
            time.sleep(0.01)
"""


async def leaving(tmp_path: Path, script: str, *, beside: bool, late: bool) -> list[RankExited]:
    """How ranks end whose agent gets SIGTERM: `beside` it, or the order comes `late`."""
    async with playground(tmp_path, script) as (server, agent):
        await agent.kill()
        agent.start(grace_seconds=PATIENCE)
        await server.until(lambda: len(server.hellos) == 2)
        await server.send(start())
        await server.until(lambda: server.steps(0) and server.steps(1))
        ranks = agent.ranks()
        os.kill(agent.pid, signal.SIGTERM)
        for pid in [agent.standby, *(rank.pid for rank in ranks)] if beside else ():
            os.kill(pid, signal.SIGTERM)
        if late:
            await server.until(lambda: "asked" in agent.log(1, 0) and "asked" in agent.log(1, 1))
            await server.send(stop(grace_seconds=PATIENCE))
        assert await agent.gone() == 0
        if script is HANDLER:
            assert agent.log(1, 0) == agent.log(1, 1) == "asked\nsaved\n", "asked once"
        return list(server.of(RankExited))


async def test_ranks_that_leave_on_the_sigterm_of_their_machine_have_not_succeeded(
    tmp_path: Path,
) -> None:
    exits = await leaving(tmp_path, HANDLER, beside=True, late=False)
    assert [e.code for e in exits] == [0, 0]
    assert {e.failure and e.failure.cause for e in exits} == {Cause.PREEMPTION}


async def test_ranks_that_their_agent_has_asked_are_not_asked_again_by_a_late_order(
    tmp_path: Path,
) -> None:
    assert [e.code for e in await leaving(tmp_path, HANDLER, beside=False, late=True)] == [0, 0]


async def test_ranks_that_come_to_their_end_while_their_agent_leaves_have_succeeded(
    tmp_path: Path,
) -> None:
    exits = await leaving(tmp_path, LAST_STEPS, beside=False, late=False)
    assert [(e.code, e.failure) for e in exits] == [(0, None), (0, None)]


async def test_orphan_with_nothing_to_do_leaves(tmp_path: Path):
    async with playground(tmp_path) as (_, agent):
        await agent.kill()
        agent.start(orphan_seconds=0.5, server_url="ws://127.0.0.1:9/agent")
        assert await agent.gone() == 0


async def test_agent_killed_while_the_standby_imports(tmp_path: Path):
    (tmp_path / "slow.py").write_text("import signal; signal.pause()")
    async with playground(tmp_path) as (_, agent):
        await agent.kill()
        slow = agent.config.spec.model_copy(update={"preload": ("slow",)})
        agent.start(spec=slow)
        await eventually(agent.marked)
        os.kill(agent.pid, signal.SIGKILL)
        await agent.gone()
        await agent.nothing_left()
