"""Losing the control plane: training goes on, and nothing is lost or doubled."""

from __future__ import annotations

import json
from pathlib import Path

from jobs.events import RankExited, RankReady, WorkerJoined
from tests.agent_helpers import ControlPlane, ended, playground, shutdown, start

STEPS = 200
PACED = f"""
    import time, babysit
    run = babysit.init()
    for step, _ in run.steps(list(range({STEPS})), total={STEPS}):
        time.sleep(0.01)
        run.report(loss=1.0 / step)
"""


async def test_samples_survive_connections_cut_before_the_acknowledgement(tmp_path: Path):
    async with playground(tmp_path, PACED) as (server, _):
        server.deaf = 7
        await server.send(start())
        await server.until(lambda: len(server.of(RankExited)) == 2)
        assert server.cuts == 6
        assert server.duplicates == 0  # what the server has, by its welcome, is not sent again
        for rank in (0, 1):
            assert server.steps(rank) == list(range(1, STEPS + 1))
            assert sum(s.lost for s in server.samples(rank)) == 0
        assert [e.code for e in server.of(RankExited)] == [0, 0]


async def test_ranks_train_on_without_a_server_and_report_to_the_next_one(tmp_path: Path):
    where = tmp_path / "server.json"
    async with playground(tmp_path, PACED) as (first, agent):
        await agent.kill()
        where.write_text(json.dumps({"agent_url": first.url}))
        agent.start(server_url="", server_file=where)
        await first.send(start())
        await first.until(lambda: first.steps(0) and first.steps(1))
        ranks = agent.ranks()
        where.unlink()
        first.drop()
        for rank in ranks:
            await ended(rank.pid)
        assert first.steps(0)[-1] < STEPS
        async with ControlPlane().listening() as second:
            second.reports = first.reports[:]  # the same database
            where.write_text(json.dumps({"agent_url": second.url}))
            await second.until(lambda: len(second.of(RankExited)) == 2)
            assert len(second.of(WorkerJoined)) == len(first.of(WorkerJoined))
            for rank in (0, 1):
                assert second.steps(rank) == list(range(1, STEPS + 1))
            await second.send(shutdown())
            assert await agent.gone() == 0


async def test_refusal_does_not_touch_training_but_a_fence_ends_it(tmp_path: Path):
    script = """
        import signal, babysit
        run = babysit.init()
        run.report(step=1, loss=1.0)
        signal.pause()
    """
    async with playground(tmp_path, script) as (server, agent):
        await server.send(start())
        await server.until(lambda: server.steps(0) and server.steps(1))
        server.refusal = {"reason": "token expired"}
        hellos = len(server.hellos)
        server.drop()
        await server.until(lambda: len(server.hellos) > hellos)
        assert len(agent.ranks()) == 2
        server.refusal = {"reason": "attempt 2 has begun elsewhere", "fenced": True}
        server.drop()
        assert await agent.gone() == 0
        assert agent.marked() == []


async def test_garbage_from_the_server_is_survived(tmp_path: Path):
    async with playground(tmp_path, PACED) as (server, _):
        await server.send(start())
        await server.event(RankReady)
        for garbage in (b"\xff\xfe", b"\x81\xa4type\x01", "text"):
            hellos = len(server.hellos)
            await server.say(garbage)
            await server.until(lambda hellos=hellos: len(server.hellos) > hellos)
        await server.until(lambda: len(server.of(RankExited)) == 2)
        assert server.steps(0) == list(range(1, STEPS + 1))


async def test_heartbeats_say_where_ranks_are(tmp_path: Path):
    script = """
        import signal, babysit
        run = babysit.init()
        run.report(step=41, loss=1.0)
        with run.phase("evaluating"):
            signal.pause()
    """
    async with playground(tmp_path, script) as (server, _):
        await server.send(start())

        def at_work():
            last = server.heartbeats[-1] if server.heartbeats else None
            return last and len(last.beats) == 2 and all(b.step == 41 for b in last.beats) and last

        heartbeat = await server.until(at_work)
        assert heartbeat.attempt == 1
        assert {beat.phase for beat in heartbeat.beats} <= {"evaluating", "training"}
        assert all(beat.alive and beat.beat > 0 for beat in heartbeat.beats)
