"""`babysit doctor` and the API say what keeps notices from arriving."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from jobs.clock import ManualClock
from orchestrator.alerts.factory import check_channel
from orchestrator.alerts.port import NotDeliveredError
from orchestrator.settings import Settings
from tests.slack_server import TOKEN, SlackServer


@pytest.fixture
async def server() -> AsyncIterator[SlackServer]:
    async with SlackServer(*(f"c{number}" for number in range(250)), "training") as opened:
        yield opened


def settings(server: SlackServer, **changes: object) -> Settings:
    slack = Settings(
        alerts="slack", slack_token=TOKEN, slack_channel="#training", slack_url=server.url
    )
    return slack.model_copy(update=changes)


async def test_a_channel_in_order_is_said_with_who_posts_where(server: SlackServer) -> None:
    said = await check_channel(settings(server), ManualClock())
    assert said == "slack: babysit of Test posts in #training"
    assert not server.calls["chat.postMessage"]


@pytest.mark.parametrize(
    ("trouble", "message"),
    [
        ("revoked", r"token_revoked.*set BABYSIT_SLACK_TOKEN"),
        ("scope", r"missing_scope.*channels:history.*add it"),
        ("archived", r"is_archived.*unarchive it"),
        ("absent", r"not_in_channel.*/invite"),
        ("name", r"channel_not_found.*no channel #typo"),
        ("away", r"no answer from http"),
    ],
)
async def test_each_trouble_is_said_with_its_fix(
    server: SlackServer, trouble: str, message: str
) -> None:
    asked = settings(server)
    match trouble:
        case "revoked":
            server.revoked = True
        case "scope":
            server.scopes.discard("channels:history")
        case "archived":
            server.named("training").archived = True
        case "absent":
            server.named("training").member = False
        case "name":
            asked = settings(server, slack_channel="#typo")
        case "away":
            await server.close()
    with pytest.raises(NotDeliveredError, match=message):
        await check_channel(asked, ManualClock())


async def test_the_log_needs_no_check() -> None:
    assert await asyncio.wait_for(check_channel(Settings(), ManualClock()), 5) == (
        "log: nothing to check"
    )
