"""The Slack channel, with the real slack-sdk, against a stand-in that follows Slack's contract."""

from __future__ import annotations

import asyncio
import datetime as dt
from collections.abc import AsyncIterator
from typing import Any

import pytest

from jobs.clock import ManualClock
from monitors.types import Severity
from orchestrator.alerts import slack
from orchestrator.alerts.port import CountedNotifier, DictMemory, NotDeliveredError
from orchestrator.alerts.slack_channel import SlackChannel, SlackSettings
from orchestrator.core.model.states import IncidentState
from orchestrator.errors import InvalidError
from orchestrator.settings import Settings
from tests.alert_data import RESOLVED, notice, update
from tests.slack_server import TOKEN, SlackServer

LINK = "https://babysit.example.org/runs/{run}#incident-{incident}"


@pytest.fixture
async def server() -> AsyncIterator[SlackServer]:
    async with SlackServer("training", "llm") as opened:
        yield opened


class Desk:
    """Channels one after the other, with one memory, as servers that take over have it."""

    def __init__(self, server: SlackServer) -> None:
        self.server, self.memory, self.clock = server, DictMemory(), ManualClock()
        self.opened: list[SlackChannel] = []

    async def channel(self, **changes: Any) -> SlackChannel:
        settings = Settings(
            alerts="slack",
            slack_token=TOKEN,
            slack_channel="#training",
            slack_mention="<!here>",
            slack_url=self.server.url,
            alerts_link=LINK,
        ).model_copy(update=changes)
        channel = slack.from_settings(settings)
        await channel.start(self.memory, self.clock)
        self.opened.append(channel)
        return channel


@pytest.fixture
async def desk(server: SlackServer) -> AsyncIterator[Desk]:
    desk = Desk(server)
    yield desk
    for channel in desk.opened:
        await channel.close()


async def test_an_incident_is_one_message_that_is_edited_with_its_story_below(
    server: SlackServer, desk: Desk
) -> None:
    channel = await desk.channel()
    await channel.update(update(1))
    (message,) = server.named("training").messages
    for fact in (
        "<!here>",
        "tiny-gpt",
        "gpu_hardware (critical)",
        "fallen off the bus &lt;Xid 79&gt;",
        "Where: rank 9 on node-2",
        "Step: onset 120, best 140",
        "Remedy: replace node",
        "https://babysit.example.org/runs/run-1#incident-inc-1",
    ):
        assert fact in message["text"]
    shown = str(message["blocks"])
    assert "rank 9 on node-2" in shown
    assert "babysit incidents show inc-1" in shown

    await channel.update(update(2, acknowledged_by="operator:anna"))
    await channel.update(update(3, **RESOLVED, lost_seconds=95.0, lost_steps=20))
    (parent,) = server.named("training").parents()
    assert parent["edited"]
    assert "Resolved: training passed step 120 again" in parent["text"]
    assert "Lost time: 1 min 35 s, 20 steps computed again" in parent["text"]
    assert "fallen off the bus" in parent["text"]  # what fired stays
    assert "rank 9 on node-2" in parent["text"]
    assert [m["text"] for m in server.named("training").replies(parent["ts"])] == [
        "Mitigating: replace node. Acknowledged by anna",
        "Resolved: training passed step 120 again. Lost time: 1 min 35 s, 20 steps computed again",
    ]


async def test_updates_in_any_order_end_in_the_true_state(server: SlackServer, desk: Desk) -> None:
    channel = await desk.channel()
    for number in (3, 1, 2, 3):
        changes = RESOLVED if number == 3 else {}
        await channel.update(update(number, **changes))
    (parent,) = server.named("training").messages
    assert "Resolved" in parent["text"]


async def test_two_hundred_nodes_behind_one_switch_are_one_message(
    server: SlackServer, desk: Desk
) -> None:
    channel = await desk.channel()
    updates = [update(1, incident=f"inc-{n}", subject=f"rank {n} on node-{n}") for n in range(200)]
    await asyncio.gather(*(channel.update(each) for each in updates))
    (parent,) = server.named("training").messages
    assert "200 of them" in parent["text"]
    assert "192 more" in parent["text"]
    assert server.calls["chat.postMessage"] == 1
    assert server.calls["chat.update"] <= 2


async def test_a_notice_stands_below_the_message_of_its_incident_and_pings(
    server: SlackServer, desk: Desk
) -> None:
    channel = await desk.channel()
    await channel.update(update(1, severity=Severity.WARNING))
    await channel.notify(notice("n-1"))
    await channel.notify(notice("n-1"))  # the outbox gives it twice
    await channel.notify(notice("n-2", text="held by anna", actor="operator:anna"))
    (parent,) = server.named("training").parents()
    assert "<!here>" not in parent["text"]  # a warning pings nobody
    texts = [m["text"] for m in server.named("training").replies(parent["ts"])]
    assert texts == ["<!here> tiny-gpt stops: no node is left", "held by anna"]


async def test_a_silence_stops_pings_until_it_is_over(server: SlackServer, desk: Desk) -> None:
    channel = await desk.channel()
    hour = desk.clock.now() + dt.timedelta(hours=1)
    silence = {"silenced_until": hour}
    await channel.update(update(1))
    await channel.update(update(2, **silence))
    await channel.notify(notice("n-1", text="first"))
    await desk.clock.sleep(3600)
    await channel.notify(notice("n-2", text="second"))
    (parent,) = server.named("training").parents()
    assert "Silenced until 01:00 UTC" in parent["text"]
    texts = [m["text"] for m in server.named("training").replies(parent["ts"])]
    assert [t for t in texts if t.endswith(("first", "second"))] == ["first", "<!here> second"]


async def test_a_notice_that_comes_first_becomes_part_of_the_message_of_its_incident(
    server: SlackServer, desk: Desk
) -> None:
    channel = await desk.channel()
    await channel.notify(notice("n-1"))
    await channel.update(update(1))
    (parent,) = server.named("training").messages
    assert "tiny-gpt stops: no node is left" in parent["text"]
    assert "rank 9 on node-2" in parent["text"]


async def test_each_run_has_the_channel_of_its_spec_and_each_problem_its_message(
    server: SlackServer, desk: Desk
) -> None:
    channel = await desk.channel()
    await channel.update(update(1, channel="#llm"))
    await channel.update(update(2, incident="inc-2", attempt=3, channel="#llm"))
    await channel.notify(notice("n-9", run=None, incident=None, incident_kind="circuit_breaker"))
    await channel.update(update(1, incident="inc-3", severity=Severity.INFO))
    assert len(server.named("llm").parents()) == 2
    assert len(server.named("training").parents()) == 1


class Death(Exception):  # noqa: N818
    """The server dies here."""


class Mortal:
    """A memory or a web whose calls the server may not live through."""

    def __init__(self, inner: Any, fate: list[int]) -> None:
        self._inner, self._fate = inner, fate

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._inner, name)

        async def call(*arguments: Any, **named: Any) -> Any:
            self._meet()
            result = await method(*arguments, **named)
            self._meet()
            return result

        return call if name in {"read", "write", "call"} else method

    def _meet(self) -> None:
        self._fate[0] -= 1
        if self._fate[0] < 0:  # nothing that is dead acts again
            raise Death


STORY = [
    notice("n-1"),
    update(1),
    update(2, acknowledged_by="operator:anna"),
    notice("n-2", text="the spare has joined"),
    update(3, **RESOLVED),
]


async def test_whenever_the_server_dies_nothing_is_lost_or_doubled(server: SlackServer) -> None:
    deaths = 0
    for calls in range(200):
        server.named("training").messages.clear()
        desk = Desk(server)
        first, fate = await desk.channel(), [calls]
        first._memory = Mortal(desk.memory, fate)
        first._slack.web = Mortal(first._slack.web, fate)
        done = 0
        try:
            for item in STORY:
                await (first.notify if item.kind == "notify" else first.update)(item)
                done += 1
        except Death:
            deaths += 1
        second = await desk.channel()
        for item in STORY[max(0, done - 1) :]:  # the receipt of the last one is lost too
            await (second.notify if item.kind == "notify" else second.update)(item)
        (parent,) = server.named("training").parents()
        assert "Resolved" in parent["text"]
        assert "no node is left" in parent["text"]
        texts = [m["text"] for m in server.named("training").replies(parent["ts"])]
        assert texts.count("<!here> the spare has joined") == 1
        assert len(texts) == len(set(texts)), f"twice, after a death at call {calls}: {texts}"
        await first.close()
        await second.close()
        if done == len(STORY):
            break
    assert deaths > 30


async def test_an_answer_that_is_lost_does_not_double_a_message(
    server: SlackServer, desk: Desk
) -> None:
    channel = await desk.channel()
    server.lose_answers = 2
    for item in (update(1), update(1), notice("n-1"), notice("n-1")):
        try:
            await (channel.notify if item.kind == "notify" else channel.update)(item)
        except NotDeliveredError:
            continue
    (parent,) = server.named("training").parents()
    assert len(server.named("training").replies(parent["ts"])) == 1
    assert not server.lose_answers


async def test_without_the_scope_to_look_a_lost_answer_costs_a_second_message_not_the_first(
    server: SlackServer, desk: Desk
) -> None:
    channel = await desk.channel()
    server.scopes = {"chat:write"}
    server.lose_answers = 1
    with pytest.raises(NotDeliveredError):
        await channel.update(update(1))
    await channel.update(update(1))
    assert len(server.named("training").parents()) == 2


async def test_slack_is_away_for_an_hour_and_everything_arrives_once(
    server: SlackServer, desk: Desk
) -> None:
    channel = await desk.channel()
    await channel.update(update(1))
    await server.close()
    for item in STORY[2:] * 3:
        with pytest.raises(NotDeliveredError, match="no answer"):
            await (channel.notify if item.kind == "notify" else channel.update)(item)
    await server.open(server.port)
    server.refuse_with_500 = 1
    with pytest.raises(NotDeliveredError):
        await channel.update(STORY[-1])
    for item in STORY[2:]:
        await (channel.notify if item.kind == "notify" else channel.update)(item)
    (parent,) = server.named("training").parents()
    assert "Resolved" in parent["text"]
    replies = [m["text"] for m in server.named("training").replies(parent["ts"])]
    assert replies == [
        "<!here> the spare has joined",
        "Resolved: training passed step 120 again",
    ]


async def test_a_rate_limit_is_waited_for_as_long_as_slack_says(
    server: SlackServer, desk: Desk
) -> None:
    channel = await desk.channel()
    server.limit = [30, 7]
    began = desk.clock.monotonic()
    await channel.update(update(1))
    assert desk.clock.monotonic() - began == 37
    assert server.calls["chat.postMessage"] == 3
    assert len(server.named("training").messages) == 1
    assert not channel.trouble


def _revoke(server: SlackServer) -> None:
    server.revoked = True


def _wrong_scope(server: SlackServer) -> None:
    server.scopes = set()


def _archive(server: SlackServer) -> None:
    server.named("training").archived = True


def _leave(server: SlackServer) -> None:
    server.named("training").member = False


def _rename(server: SlackServer) -> None:
    server.named("training").name = "other"


@pytest.mark.parametrize(
    ("spoil", "code", "place", "fix"),
    [
        (_revoke, "token_revoked", "token", "set BABYSIT_SLACK_TOKEN"),
        (_wrong_scope, "missing_scope", "token", "the scope chat:write: add it"),
        (_archive, "is_archived", "#training", "unarchive it"),
        (_leave, "not_in_channel", "#training", "/invite"),
        (_rename, "channel_not_found", "#training", "correct the name"),
    ],
)
async def test_what_people_must_mend_is_said_with_the_fix_until_it_is(
    server: SlackServer, desk: Desk, spoil: Any, code: str, place: str, fix: str
) -> None:
    channel = await desk.channel()
    counted = CountedNotifier(channel)
    spoil(server)
    with pytest.raises(NotDeliveredError, match=fix):
        await counted.notify(notice())
    assert fix in counted.trouble[place]
    assert code in counted.trouble[place]
    assert counted.counts["slack", code] == 1
    server.revoked, server.scopes = False, {"chat:write"}
    conversation = next(iter(server.conversations.values()))
    conversation.archived, conversation.member, conversation.name = False, True, "training"
    await counted.notify(notice())
    assert not counted.trouble
    assert len(conversation.messages) == 1


async def test_a_run_whose_channel_is_gone_is_told_in_the_default_one_with_the_reason(
    server: SlackServer, desk: Desk
) -> None:
    channel = await desk.channel()
    await channel.update(update(1, channel="#typo"))
    await channel.update(update(2, channel="#typo", **RESOLVED))
    (parent,) = server.named("training").parents()
    assert "Resolved" in parent["text"]
    assert "This was for #typo" in str(parent["blocks"])
    assert "correct the name" in channel.trouble["#typo"]


async def test_a_message_that_somebody_deleted_is_sent_again(
    server: SlackServer, desk: Desk
) -> None:
    channel = await desk.channel()
    await channel.update(update(1))
    server.named("training").messages.clear()
    await channel.update(update(2, state=IncidentState.OPEN))
    assert len(server.named("training").parents()) == 1


async def test_text_of_any_length_and_with_markup_is_accepted(
    server: SlackServer, desk: Desk
) -> None:
    channel = await desk.channel()
    hostile = "<!channel> & *bold* `" * 2000
    await channel.update(update(1, reason=hostile, subject=hostile))
    await channel.notify(notice("n-1", text=hostile))
    for message in server.named("training").messages:
        assert "<!channel>" not in message["text"]


def test_missing_settings_are_named() -> None:
    with pytest.raises(InvalidError, match="BABYSIT_SLACK_TOKEN"):
        slack.from_settings(Settings(alerts="slack"))
    with pytest.raises(InvalidError, match="BABYSIT_SLACK_CHANNEL"):
        slack.from_settings(Settings(alerts="slack", slack_token=TOKEN))
    assert SlackSettings(conversation="#x").severity is Severity.WARNING


async def test_trouble_later_in_a_thread_is_said_of_the_channel_by_its_name(
    server: SlackServer, desk: Desk
) -> None:
    await (await desk.channel()).update(update(1))
    channel = await desk.channel()  # of the next server, which has sent nothing yet
    server.named("training").archived = True
    with pytest.raises(NotDeliveredError, match="the channel #training is archived"):
        await channel.notify(notice())
    assert set(channel.trouble) == {"#training"}
    server.named("training").archived = False
    await channel.notify(notice())
    assert not channel.trouble
