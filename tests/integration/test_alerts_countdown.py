"""Questions in Slack that count down to their default, with the real slack-sdk and virtual time."""

from __future__ import annotations

import asyncio
import datetime as dt
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from jobs.clock import ManualClock, SystemClock
from orchestrator.alerts import countdowns, slack
from orchestrator.alerts.port import DictMemory, NotDeliveredError
from orchestrator.alerts.slack import SlackRefusedError
from orchestrator.alerts.slack_channel import SlackChannel
from orchestrator.alerts.threads import Thread
from orchestrator.core.messages.instructions import IncidentUpdate
from orchestrator.core.model.states import IncidentState
from orchestrator.core.model.vocabulary import Remedy, Response
from orchestrator.settings import Settings
from tests.alert_data import BEGIN, RESOLVED, update
from tests.slack_server import TOKEN, SlackServer

START = BEGIN.replace(hour=1, minute=59, second=30)
DUE = BEGIN.replace(hour=2, minute=14)
ASKED = {
    "state": IncidentState.OPEN,
    "response": Response.ASKED,
    "remedy": Remedy.ROLL_BACK,
    "remedy_seconds": 900.0,
    "remedy_step": 900,
    "remedy_at": DUE,
}


@pytest.fixture
async def server() -> AsyncIterator[SlackServer]:
    async with SlackServer("training") as opened:
        yield opened


class Desk:
    """Servers that lead one after the other, with one memory."""

    def __init__(self, server: SlackServer) -> None:
        self.server, self.memory, self.clock = server, DictMemory(), ManualClock(START)
        self.opened: list[SlackChannel] = []

    async def channel(self) -> SlackChannel:
        settings = Settings(
            alerts="slack",
            slack_token=TOKEN,
            slack_channel="#training",
            slack_url=self.server.url,
        )
        channel = slack.from_settings(settings)
        await channel.start(self.memory, self.clock)
        self.opened.append(channel)
        return channel

    async def lead(
        self,
        channel: SlackChannel,
        until: dt.datetime,
        edit: Callable[[str], Awaitable[None]] | None = None,
    ) -> None:
        """Have a server lead until a time, which its own waiting makes pass."""

        class OverError(Exception):
            """Ends a loop that never ends."""

        class Clock(ManualClock):
            async def sleep(_, seconds: float) -> None:  # noqa: N805 (of the desk's clock)
                if self.clock.now() + dt.timedelta(seconds=seconds) > until:
                    raise OverError
                await self.clock.sleep(seconds)

            def now(_) -> dt.datetime:  # noqa: N805
                return self.clock.now()

        with pytest.raises(OverError):
            await channel._countdowns.run(Clock(), lambda: True, edit or channel._show_time_left)


@pytest.fixture
async def desk(server: SlackServer) -> AsyncIterator[Desk]:
    desk = Desk(server)
    yield desk
    for channel in desk.opened:
        await channel.close()


def asked(number: int = 1, **changes: Any) -> IncidentUpdate:
    return update(number, **{**ASKED, **changes})


async def test_a_question_counts_down_to_its_default_also_under_the_next_server(
    server: SlackServer, desk: Desk
) -> None:
    await (channel := await desk.channel()).update(asked())
    text = server.only.messages[0]["text"]
    assert "asked; will roll back to step 900 at 02:14 UTC unless held" in text
    assert "15 min left at 01:59 UTC" in text
    await desk.lead(channel, START + dt.timedelta(minutes=3))
    (message,) = server.only.messages
    assert "12 min left at 02:02 UTC" in message["text"]
    assert "12 min left at 02:02 UTC" in str(message["blocks"])
    assert server.calls["chat.update"] == 3  # one each minute
    await desk.lead(await desk.channel(), START + dt.timedelta(minutes=5))
    assert "10 min left at 02:04 UTC" in server.only.messages[0]["text"]
    assert server.calls["chat.update"] == 5
    assert server.calls["chat.postMessage"] == 1


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (RESOLVED, "Resolved"),
        ({**ASKED, "acknowledged_by": "operator:anna"}, "Acknowledged by anna"),
        ({"state": IncidentState.MITIGATING}, "Mitigating"),
    ],
)
async def test_nothing_counts_down_once_it_is_answered_or_over(
    server: SlackServer, desk: Desk, answer: dict[str, Any], said: str
) -> None:
    channel = await desk.channel()
    await channel.update(asked())
    await channel.update(update(2, **answer))
    edits = server.calls["chat.update"]
    await desk.lead(channel, DUE + dt.timedelta(hours=1))
    assert server.calls["chat.update"] == edits
    parent = server.only.parents()[0]
    assert said in parent["text"]
    assert "min left" not in parent["text"]


async def test_a_hold_is_said_and_ends_the_countdown_until_its_release(
    server: SlackServer, desk: Desk
) -> None:
    channel = await desk.channel()
    await channel.update(asked())
    held = asked(2).model_copy(update={"held": "held by operator:anna"})
    await channel.update(held)
    await desk.lead(channel, START + dt.timedelta(minutes=3))
    text = server.only.parents()[0]["text"]
    assert "Nothing starts: held by operator:anna" in text
    assert "min left" not in text
    await channel.update(asked(3))
    assert "12 min left at 02:02 UTC" in server.only.parents()[0]["text"]


async def test_a_rate_limit_delays_a_round_and_piles_up_nothing(
    server: SlackServer, desk: Desk
) -> None:
    channel = await desk.channel()
    await channel.update(asked())
    server.limit = [150.0]
    await desk.lead(channel, START + dt.timedelta(minutes=6))
    # Of six minutes, the first edit was refused and waited for 150 s; the minutes between are over.
    assert server.calls["chat.update"] == 5
    assert "9 min left at 02:05 UTC" in server.only.messages[0]["text"]


async def test_many_questions_make_no_storm_of_edits(server: SlackServer, desk: Desk) -> None:
    channel = await desk.channel()
    for number in range(30):
        due = {"remedy_at": DUE + dt.timedelta(minutes=number)}
        run = {"run": f"run-{number}", "run_name": f"gpt-{number}"}
        await channel.update(asked(incident=f"inc-{number}", **due, **run))
    await desk.lead(channel, START + dt.timedelta(minutes=1))
    assert server.calls["chat.update"] == countdowns.EDITS
    assert "14 min left at 02:00 UTC" in server.only.messages[0]["text"]  # the soonest
    assert "44 min left at 01:59 UTC" in server.only.messages[29]["text"]


async def test_a_message_that_cannot_be_edited_keeps_no_other_from_counting_down(
    desk: Desk,
) -> None:
    channel = await desk.channel()
    for number in range(3):
        await channel.update(asked(incident=f"inc-{number}", attempt=number))
    tried: list[str] = []

    async def edit(key: str) -> None:
        tried.append(key[-1])
        if key.endswith("0"):
            raise SlackRefusedError("is_archived")
        if len(tried) > 4:
            raise NotDeliveredError("Slack is away")

    await desk.lead(channel, START + dt.timedelta(minutes=2), edit)
    assert tried == ["0", "1", "2", "0", "1"]  # Slack is away for all of them


async def test_an_edit_of_the_time_left_never_covers_the_answer(
    server: SlackServer, desk: Desk
) -> None:
    channel = await desk.channel()
    question = asked()
    first = asyncio.create_task(channel.update(question))

    async def answer() -> None:
        await first
        await desk.clock.sleep(60)
        await channel.update(update(2, **RESOLVED))

    answered = asyncio.create_task(answer())
    for _ in range(1000):
        if not server.calls["chat.postMessage"]:
            await SystemClock().sleep(0)
    counting = asyncio.create_task(channel._show_time_left(question.dedup_key))
    send = channel._edit

    async def late(thread: Thread) -> None:
        if asyncio.current_task() is counting:
            for _ in range(2000):  # as long as the answer takes, if it does not wait for the edit
                if not answered.done():
                    await SystemClock().sleep(0)
        await send(thread)

    channel._edit = late  # type: ignore[method-assign]
    await asyncio.gather(counting, answered)
    parent = server.only.parents()[0]["text"]
    assert "Resolved" in parent
    assert "min left" not in parent
