"""One cause in several runs is one message in Slack, with the real slack-sdk."""

from __future__ import annotations

import asyncio
import datetime as dt
from collections.abc import AsyncIterator
from typing import Any

import pytest

from jobs.clock import ManualClock
from monitors.failures import FailureClass
from orchestrator.alerts import slack
from orchestrator.alerts.port import DictMemory
from orchestrator.alerts.rules import Person
from orchestrator.alerts.slack_buttons import events_of, read_click
from orchestrator.core.messages.instructions import IncidentUpdate
from orchestrator.settings import Settings
from tests.alert_data import BEGIN, RESOLVED, notice, update
from tests.slack_server import APP_TOKEN, TOKEN, SlackServer

CASCADE = "run-0/network/2"


@pytest.fixture
async def server() -> AsyncIterator[SlackServer]:
    async with SlackServer("training", "llm") as opened:
        yield opened


@pytest.fixture
async def channel(server: SlackServer) -> AsyncIterator[Any]:
    settings = Settings(
        alerts="slack",
        slack_token=TOKEN,
        slack_app_token=APP_TOKEN,
        slack_channel="#training",
        slack_mention="<!here>",
        slack_url=server.url,
    )
    channel = slack.from_settings(settings)
    await channel.start(DictMemory(), ManualClock(BEGIN))
    yield channel
    await channel.close()


def of_run(run: int, node: int, *, number: int = 1, **changes: Any) -> IncidentUpdate:
    """The incident of one node of a run; the first run's has begun the cascade."""
    fields = {
        "incident": f"inc-{run}-{node}",
        "run": f"run-{run}",
        "run_name": f"gpt-{run}",
        "kind": FailureClass.NETWORK,
        "subject": f"rank {node} on node-{run}-{node}",
        "cascade": CASCADE if run else "",
    }
    return update(number, **fields, **changes)


async def test_two_hundred_nodes_of_four_runs_behind_one_switch_are_one_message(
    server: SlackServer, channel: Any
) -> None:
    updates = [of_run(n % 4, n) for n in range(200)]
    await asyncio.gather(*(channel.update(each) for each in updates))
    (parent,) = server.named("training").parents()
    assert "<!here>" in parent["text"]
    assert "*4 runs*: network, 200 of them (critical)" in parent["text"]
    assert "Runs: gpt-0, gpt-1, gpt-2, gpt-3" in parent["text"]
    (named,) = server.named("training").replies(parent["ts"])
    for run in range(4):
        assert f"\ngpt-{run}: rank" in named["text"]
    assert server.calls["chat.postMessage"] == 2
    assert server.calls["chat.update"] <= 2


async def test_a_run_that_has_the_cause_later_and_one_that_is_over_are_said_below(
    server: SlackServer, channel: Any
) -> None:
    for run in range(3):
        await channel.update(of_run(run, 0))
    await channel.update(of_run(2, 0))  # the outbox gives it twice
    await channel.update(of_run(1, 0, number=2, **RESOLVED, lost_seconds=95.0))
    page = {"run": "run-2", "run_name": "gpt-2", "incident": "inc-2-0", "incident_kind": "network"}
    await channel.notify(notice(text="gpt-2 waits for a node", cascade=CASCADE, **page))
    (parent,) = server.named("training").parents()
    assert "3 runs" in parent["text"]
    replies = [m["text"] for m in server.named("training").replies(parent["ts"])]
    assert replies == [
        "Runs with this problem:\ngpt-0: rank 0 on node-0-0\ngpt-1: rank 0 on node-1-0",
        "Runs with this problem:\ngpt-2: rank 0 on node-2-0",
        "gpt-1: Resolved: training passed step 120 again. Lost time: 1 min 35 s",
        "<!here> gpt-2 waits for a node",
    ]


async def test_a_run_with_a_channel_of_its_own_is_told_there(
    server: SlackServer, channel: Any
) -> None:
    await channel.update(of_run(0, 0))
    await channel.update(of_run(1, 0, channel="#llm"))
    (here,), (there,) = server.named("training").messages, server.named("llm").messages
    assert "gpt-0" in here["text"]
    assert "gpt-1" in there["text"]


async def test_a_click_is_about_all_incidents_and_a_hold_about_the_run_that_was_chosen(
    server: SlackServer, channel: Any
) -> None:
    for run in range(3):
        await channel.update(of_run(run, 0))
    (parent,) = server.named("training").parents()
    (block,) = [b for b in parent["blocks"] if b["type"] == "actions"]
    acknowledge, hold, silence = block["elements"]
    assert "Silence" in silence["text"]["text"]
    assert [o["text"]["text"] for o in hold["options"]] == ["gpt-0", "gpt-1", "gpt-2"]
    assert all(len(o["value"]) <= 150 for o in hold["options"])  # Slack's limit

    def events(action: dict[str, Any]) -> list[Any]:
        clicked = {**action, "action_ts": "1"}
        click = read_click({"type": "block_actions", "user": {"id": "UANNA"}, "actions": [clicked]})
        assert click is not None
        people = {"UANNA": Person(name="anna")}
        return events_of(click, people, new_id=lambda: "e", now=BEGIN)

    assert {e.incident for e in events(acknowledge)} == {"inc-0-0", "inc-1-0", "inc-2-0"}
    (held,) = events({**hold, "selected_option": hold["options"][1]})
    assert (held.run, held.actor) == ("run-1", "operator:anna")


async def test_many_incidents_fit_the_limits_of_a_button(server: SlackServer, channel: Any) -> None:
    long = "01JNB000000000000000000000-200"
    updates = [update(1, incident=f"{long}{n:03}", subject=f"rank {n}") for n in range(200)]
    await asyncio.gather(*(channel.update(each) for each in updates))
    (parent,) = server.named("training").parents()
    (block,) = [b for b in parent["blocks"] if b["type"] == "actions"]
    assert all(len(e.get("value", "")) <= 2000 for e in block["elements"])


async def test_an_escalation_pings_its_persons_and_not_the_rest(
    server: SlackServer, channel: Any
) -> None:
    await channel.update(of_run(0, 0))
    about = {"run": "run-0", "incident": "inc-0-0", "incident_kind": "network"}
    await channel.notify(notice("n/1", text="nobody has acknowledged it", mention="<@U1>", **about))
    (parent,) = server.named("training").parents()
    (reply,) = server.named("training").replies(parent["ts"])
    assert reply["text"] == "<@U1> nobody has acknowledged it"


async def test_a_silence_is_about_the_runs_of_its_time_and_a_later_one_pings(
    server: SlackServer, channel: Any
) -> None:
    until = BEGIN + dt.timedelta(hours=1)
    await channel.update(of_run(0, 0))
    await channel.update(of_run(0, 0, number=2, silenced_until=until))
    for run in range(2):
        await channel.update(of_run(run, 0, number=3, silenced_until=None if run else until))
        about = {"run": f"run-{run}", "run_name": f"gpt-{run}", "incident": f"inc-{run}-0"}
        page = {**about, "incident_kind": "network", "cascade": CASCADE if run else ""}
        await channel.notify(notice(f"page {run}", text=f"gpt-{run} stops", **page))
    (parent,) = server.named("training").parents()
    replies = [m["text"] for m in server.named("training").replies(parent["ts"])]
    assert "gpt-0 stops" in replies
    assert "<!here> gpt-1 stops" in replies
