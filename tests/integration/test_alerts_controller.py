"""From the core to Slack through the real controller and its outbox, while Slack and servers fail.

The time is virtual and Slack is its stand-in without HTTP, so that a controller can be killed at
every call. :mod:`tests.integration.test_alerts_slack` has the HTTP.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import pytest

from orchestrator.alerts.port import AlertMemory, DictMemory, NotDeliveredError
from orchestrator.alerts.slack_channel import SlackChannel, SlackSettings
from orchestrator.core.model.states import RunState
from orchestrator.server import daily_summary
from tests.controller_harness import Fate, Harness, Mortal
from tests.slack_server import TOKEN, SlackServer


class DirectWeb:
    """Calls the stand-in without HTTP."""

    def __init__(self, server: SlackServer, harness: Harness) -> None:
        self.server, self.harness = server, harness
        self.away_until = 0.0

    async def call(self, method: str, **arguments: Any) -> Mapping[str, Any]:
        if self.harness.clock.monotonic() < self.away_until:
            raise NotDeliveredError("no answer from Slack")
        self.server.calls[method] += 1
        answer = self.server._answer(method, f"Bearer {TOKEN}", arguments)
        assert answer["ok"], answer
        return answer

    async def close(self) -> None:
        pass


async def open_with_slack(
    harness: Harness, web: DirectWeb, memory: AlertMemory, fate: Fate
) -> None:
    channel = SlackChannel(
        lambda _: Mortal(web, fate, "call"), SlackSettings(conversation="#training")
    )
    await channel.start(Mortal(memory, fate, "read", "write"), harness.clock)
    harness.notifier = channel
    await harness.open(fate)


def check(harness: Harness, server: SlackServer, when: str) -> None:
    assert not harness.store.left(), when
    conversation = server.named("training")
    # The run's one failure: its message ends resolved, and nothing was said twice.
    (parent,) = [m for m in conversation.parents() if "incident" in str(m["blocks"])]
    assert "Resolved" in parent["text"], when
    texts = [m["text"] for m in conversation.messages]
    assert len(texts) == len(set(texts)), f"{when}: {texts}"


async def train(harness: Harness, web: DirectWeb, memory: AlertMemory, fate: Fate) -> bool:
    """Until the run is over and all is told; False: the controller has died."""
    await open_with_slack(harness, web, memory, fate)
    await harness.submit()
    over = {RunState.SUCCEEDED, RunState.FAILED}
    return await harness.until(lambda: harness.state_of() in over and not harness.store.left())


async def test_a_time_without_slack_loses_and_doubles_nothing() -> None:
    harness, server = Harness(), SlackServer("training")
    web = DirectWeb(server, harness)
    web.away_until = 90.0
    assert await train(harness, web, DictMemory(), Fate())
    check(harness, server, "after 90 s")
    assert harness.clock.monotonic() > 90
    await harness.kill()


@pytest.mark.parametrize("after", [False, True])
async def test_a_server_that_dies_at_any_call_of_slack_is_made_up_for(after: bool) -> None:
    # A death after a read or a write is one before the next call.
    names = {"call"} if after else {"call", "read", "write"}
    probe = Fate()
    harness, server = Harness(), SlackServer("training")
    assert await train(harness, DirectWeb(server, harness), DictMemory(), probe)
    await harness.kill()
    places = [place for place, name in enumerate(probe.calls) if name in names]
    assert len(places) >= 3
    for place in places:
        harness, server, memory = Harness(), SlackServer("training"), DictMemory()
        web = DirectWeb(server, harness)
        if not await train(harness, web, memory, Fate(place, after=after)):
            await harness.kill()
            assert await train(harness, web, memory, Fate())
        check(harness, server, f"killed at call {place}")
        await harness.kill()


@pytest.mark.parametrize("after", [False, True])
async def test_a_server_that_dies_as_it_sends_the_daily_summary_loses_and_doubles_none(
    after: bool,
) -> None:
    """The core sends one a day; Slack has it once, wherever the leader dies."""

    async def morning(harness: Harness, web: DirectWeb, memory: AlertMemory, fate: Fate) -> bool:
        await open_with_slack(harness, web, memory, fate)
        asking = asyncio.create_task(daily_summary.keep("00:00", harness.controller, harness.clock))
        told = web.server.named("training").messages
        done = await harness.until(lambda: bool(told) and not harness.store.left())
        asking.cancel()
        return done

    probe = Fate()
    harness, server = Harness(), SlackServer("training")
    assert await morning(harness, DirectWeb(server, harness), DictMemory(), probe)
    await harness.kill()
    assert len(probe.calls) >= 4
    for place in range(len(probe.calls)):
        harness, server, memory = Harness(), SlackServer("training"), DictMemory()
        web = DirectWeb(server, harness)
        if not await morning(harness, web, memory, Fate(place, after=after)):
            await harness.kill()
            assert await morning(harness, web, memory, Fate()), place
        texts = [m["text"] for m in server.named("training").messages]
        assert len(texts) == 1, f"killed at call {place} ({probe.calls[place]}): {texts}"
        told = server.named("training").messages[0]
        assert "Summary of 2026-01-01" in told["text"], f"killed at call {place}"
        await harness.kill()
