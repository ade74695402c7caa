"""Fifty clients that ask without pause, and the exit of a rank."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import httpx
import pytest
from pydantic import SecretStr

from orchestrator.core.model.state import State
from orchestrator.server.admission import REQUESTS, Admission
from orchestrator.server.app import create_app
from orchestrator.server.guard import Message, Receive, Send
from orchestrator.server.routes import history, runs
from orchestrator.settings import Settings
from tests.controller_harness import Harness
from tests.integration.test_controller_samples import exited, training

CLIENTS = 50


async def test_an_exit_is_decided_while_fifty_clients_ask_without_pause(tmp_path: Path) -> None:
    """No more answers come before the decision than were under way, and a few for each turn."""
    harness = Harness(nodes=2, silent=True)
    workers = await training(harness, 2)
    settings = Settings(home=tmp_path, token=SecretStr("token"))
    app = create_app(harness.controller, harness.clock, settings)
    answers: list[int] = []
    all_ask = asyncio.Event()

    async def ask(client: httpx.AsyncClient) -> None:
        while True:
            answers.append((await client.get("/api/v1/runs")).status_code)
            if len(answers) == CLIENTS:
                all_ask.set()

    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(app),
        base_url="http://server",
        headers={"Authorization": "Bearer token"},
    ) as client:
        asking = [asyncio.create_task(ask(client)) for _ in range(CLIENTS)]
        await all_ask.wait()
        before = len(answers)
        await harness.controller.report(workers[1], exited(harness, workers[1], 1, 100))
        assert len(answers) - before <= 3 * REQUESTS
        assert harness.controller.state.runs["run-1"].decision is not None
        for task in asking:
            task.cancel()
        await asyncio.gather(*asking, return_exceptions=True)
    assert set(answers) == {200}
    await harness.kill()


@pytest.mark.parametrize("path", ["dry-run", "explain"])
async def test_the_event_loop_goes_on_while_a_request_plans(
    path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The plan ends only when the exit of a rank has been decided meanwhile."""
    harness = Harness(nodes=2, silent=True)
    workers = await training(harness, 2)
    decided, planning = threading.Event(), threading.Event()
    module, name = (runs, "try_out") if path == "dry-run" else (history, "explain")
    real, seen = getattr(module, name), []

    def plan(state: State, *others: object) -> object:
        seen.append(state.runs["run-1"])
        planning.set()
        assert decided.wait(60)
        assert state.runs["run-1"] is seen[0], "it plans on what was when it began"
        return real(state, *others)

    monkeypatch.setattr(module, name, plan)
    settings = Settings(home=tmp_path, token=SecretStr("token"))
    app = create_app(harness.controller, harness.clock, settings)
    headers = {"Authorization": "Bearer token"}
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(app), base_url="http://server/api/v1/runs", headers=headers
    ) as client:
        if path == "dry-run":
            body = {"spec": {"name": "other", "command": ["true"]}, "base_directory": str(tmp_path)}
            asking = asyncio.create_task(client.post("/dry-run", json=body))
        else:
            asking = asyncio.create_task(client.get("/run-1/explain"))
        assert await asyncio.to_thread(planning.wait, 60)
        await harness.controller.report(workers[1], exited(harness, workers[1], 1, 100))
        assert harness.controller.state.runs["run-1"].decision is not None
        decided.set()
        answer = await asking
    assert answer.status_code == 200, answer.text
    await harness.kill()


async def test_few_requests_are_under_way_at_a_time_but_agents_and_probes_are_free() -> None:
    under_way: list[str] = []
    leave = asyncio.Event()

    async def app(scope: Message, _receive: Receive, _send: Send) -> None:
        under_way.append(scope["type"] + scope["path"])
        await leave.wait()

    admission = Admission(app)

    async def nothing(*_: object) -> Message:
        return {}

    scopes = [{"type": "http", "path": "/api/v1/runs"}] * CLIENTS
    scopes += [{"type": "websocket", "path": "/agent"}] * CLIENTS
    scopes += [{"type": "http", "path": "/healthz"}]
    serving = [asyncio.create_task(admission(scope, nothing, nothing)) for scope in scopes]
    await asyncio.sleep(0)  # noqa: TID251 (one turn of the loop; no time passes)
    assert under_way.count("http/api/v1/runs") == REQUESTS
    assert under_way.count("websocket/agent") == CLIENTS
    assert under_way.count("http/healthz") == 1
    leave.set()
    await asyncio.gather(*serving)
    assert under_way.count("http/api/v1/runs") == CLIENTS
