"""Silence of agents on a server that is starved, paused or behind: its own lag is no silence."""

from __future__ import annotations

import asyncio

from jobs.clock import ManualClock
from orchestrator.controller.attention import (
    LATE_SECONDS,
    LOOK_SECONDS,
    MOST_SECONDS,
    AgentContact,
    Attention,
)


class Paused(ManualClock):
    """A clock whose sleepers wake late by `by` seconds each, as on a starved host."""

    by = 0.0

    async def sleep(self, seconds: float) -> None:
        await super().sleep(seconds + self.by)


async def look(clock: Paused, attention: Attention, looks: int, by: float = 0.0) -> None:
    """Let the attention look so many times, each `by` seconds late."""
    clock.by = by
    keeping = asyncio.create_task(attention.keep())
    for _ in range(looks + 1):
        await asyncio.sleep(0)  # noqa: TID251 (one turn of the loop; no time passes)
    keeping.cancel()
    await asyncio.gather(keeping, return_exceptions=True)


async def test_time_in_which_the_server_cannot_listen_is_no_silence() -> None:
    clock = Paused()
    attention = Attention(clock)
    contact = AgentContact(attention, clock)
    contact.heard_of("w-1")
    await look(clock, attention, 4)
    heard = contact.silence("w-1")
    assert heard >= 4 * LOOK_SECONDS, "time in which it listened counts whole"
    clock.advance(3600.0)  # a pause of the host
    assert contact.silence("w-1") <= heard + MOST_SECONDS
    before = clock.monotonic()
    silence = contact.silence("w-1")
    await look(clock, attention, 10, by=60.0)  # a starved one
    assert clock.monotonic() - before > 600.0
    assert contact.silence("w-1") <= silence + 11 * MOST_SECONDS
    assert attention.lag >= 60.0


async def test_an_agent_that_the_server_does_not_read_is_not_silent() -> None:
    clock = Paused()
    attention = Attention(clock)
    contact = AgentContact(attention, clock)
    contact.hold("w-1")
    await look(clock, attention, 100)
    contact.restart(["w-1"])  # the state is loaded again
    await look(clock, attention, 100)
    assert contact.silence("w-1") == 0.0
    contact.unhold("w-1")
    await look(clock, attention, 3)
    assert contact.silence("w-1") >= 3 * LOOK_SECONDS, "and then it counts"


def test_old_heartbeats_are_known_whatever_the_clocks_of_agents_say() -> None:
    clock = ManualClock()
    contact = AgentContact(Attention(clock), clock)
    skew = -86_400.0

    def beat(delay: float) -> bool:
        contact.heartbeat("w-1", clock.now().timestamp() - delay + skew)
        clock.advance(1.0)
        return contact.late("w-1")

    assert not any(beat(0.05) for _ in range(10))
    assert not beat(LATE_SECONDS - 1)
    assert beat(LATE_SECONDS + 1), "it waited for this server"
    assert not beat(0.05), "the server has caught up"
    skew += 3600.0  # the agent's clock is put right
    assert not beat(0.05)
    skew -= 7200.0
    assert beat(0.05), "cannot be told from lateness"
    for _ in range(60):
        beat(0.05)
    assert not beat(0.05), "nor does that last"
