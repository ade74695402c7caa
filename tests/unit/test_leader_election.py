"""Seeking the lead goes on, whatever goes wrong."""

from __future__ import annotations

import asyncio
import contextlib

from jobs.clock import ManualClock
from orchestrator.controller.leader_election import ControllerSettings, LeaderElector
from orchestrator.database.memory_store import MemoryStore


async def test_a_leader_that_cannot_begin_tries_again() -> None:
    """What is stored could not be read, say: the server must not lead nothing for ever."""
    begun = asyncio.Event()
    tries = 0

    async def gain() -> None:
        nonlocal tries
        tries += 1
        if tries == 1:
            raise ValueError("what is stored cannot be read")
        lead.held = True
        begun.set()

    async def lose() -> None:
        raise AssertionError("nobody else leads")

    lead = LeaderElector(MemoryStore(), ManualClock(), ControllerSettings(holder="me"))
    seeking = asyncio.create_task(lead.seek(gain, lose))
    try:
        async with asyncio.timeout(10):
            await begun.wait()
    finally:
        seeking.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await seeking
    assert tries == 2
