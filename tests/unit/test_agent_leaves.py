"""An agent that is to end does so, also while its connection breaks."""

from __future__ import annotations

import asyncio
import datetime as dt
import random
from typing import Any, cast

import pytest

from jobs.agent.connection import Connection

_TURNS = 20
"""Turns of the event loop in which everything that can happen has happened."""


class Frozen:
    """A clock at which nobody ever wakes: a new connection would be waited for without an end."""

    def now(self) -> dt.datetime:
        return dt.datetime(2026, 1, 1, tzinfo=dt.UTC)

    def monotonic(self) -> float:
        return 0.0

    async def sleep(self, _seconds: float) -> None:
        await asyncio.Event().wait()


async def turns() -> None:
    for _ in range(_TURNS):
        await asyncio.sleep(0)  # noqa: TID251 (no time passes)


@pytest.mark.parametrize("closes", [True, False], ids=["the server closes", "the server stays"])
async def test_a_cancellation_is_not_lost_while_the_server_closes(
    monkeypatch: pytest.MonkeyPatch, closes: bool
) -> None:
    """Before Python 3.13 a task group passes on the error of a task in place of a cancellation."""
    begun, closed = asyncio.Event(), asyncio.Event()

    async def reads() -> None:
        await closed.wait()
        raise OSError("the server has closed the connection")

    async def session(_self: Connection, _url: str) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(reads())
            begun.set()
            await asyncio.Event().wait()

    monkeypatch.setattr(Connection, "_session", session)
    monkeypatch.setattr(Connection, "_url", lambda _self: "ws://server")
    nothing = cast("Any", None)
    connection = Connection(nothing, nothing, nothing, Frozen(), random.Random(1))
    task = asyncio.create_task(connection.run())
    await begun.wait()
    if closes:
        closed.set()
    task.cancel()
    await turns()
    over = task.cancelled()
    task.cancel()
    await asyncio.wait({task})
    assert over
