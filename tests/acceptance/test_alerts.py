"""Failures of real runs in Slack: a real server process, slack-sdk, and a stand-in for Slack."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from jobs.clock import SystemClock
from tests.acceptance.conftest import Jobs
from tests.control_plane import ControlPlane, Servers, control_plane, until
from tests.slack_server import TOKEN, SlackServer


@pytest.fixture
def slack() -> Iterator[SlackServer]:
    """The stand-in, in a thread of its own."""
    server = SlackServer("training", begins=int(SystemClock().now().timestamp()))
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    asyncio.run_coroutine_threadsafe(server.open(), loop).result()
    yield server
    asyncio.run_coroutine_threadsafe(server.close(), loop).result()
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


@pytest.fixture
def plane(servers: Servers, tmp_path: Path, slack: SlackServer) -> Iterator[ControlPlane]:
    with control_plane(
        servers,
        tmp_path / "home",
        alerts="slack",
        slack_token=TOKEN,
        slack_channel="#training",
        slack_url=slack.url,
    ) as opened:
        yield opened


def shell(plane: ControlPlane, *words: str) -> tuple[int, str]:
    process = plane.shell(*words)
    out, _ = process.communicate(timeout=60)
    return process.returncode, out


def test_a_run_that_fails_is_told_once_though_the_token_was_revoked_and_the_server_died(
    plane: ControlPlane, jobs: Jobs, slack: SlackServer
) -> None:
    """While Slack refuses, `show`, `server status` and `doctor` say why; then all of it arrives."""
    slack.revoked = True
    job = jobs(faults=("raise@5",))
    run = plane.submit(job.spec)
    plane.state(run, "failed")
    until(lambda: plane.show(run)["alerts"], "show says why nothing arrives")
    assert "token_revoked" in plane.show(run)["alerts"]
    assert "set BABYSIT_SLACK_TOKEN" in shell(plane, "show", run)[1]
    incident = plane.show(run)["incidents"][0]["id"]
    assert "set BABYSIT_SLACK_TOKEN" in shell(plane, "incidents", "show", incident)[1]
    assert "token_revoked" in shell(plane, "server", "status")[1]
    code, said = shell(plane, "doctor")
    assert code == 1
    assert "token_revoked" in said
    plane.kill()
    slack.revoked = False
    plane.start()
    parents = slack.only.parents
    until(lambda: any("Resolved" in m["text"] for m in parents()), "the incidents are told")
    until(lambda: "failed: RuntimeError" in str(slack.only.messages), "the end is told")
    texts = [m["text"] for m in slack.only.messages]
    assert len(texts) == len(set(texts))
    assert "the batch of step 5 has the wrong shape" in texts[0]
    assert "posts in #training" in shell(plane, "doctor")[1]
    assert plane.show(run)["alerts"] == ""
