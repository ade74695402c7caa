"""The agent gateway before a real controller: agents that break the protocol, or break off."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest
from fastapi import FastAPI

from jobs.clock import ManualClock
from jobs.events import Heartbeat, Hello, RanksStarted, Report
from jobs.frames import decode, encode
from orchestrator.clusters.port import AgentAccess
from orchestrator.controller.controller import Controller
from orchestrator.controller.event_factory import EventFactory
from orchestrator.controller.leader_election import ControllerSettings
from orchestrator.core.messages.instructions import Notify
from orchestrator.core.model.entities import Run, Worker
from orchestrator.core.model.states import WorkerState
from orchestrator.core.views.build import node_view
from orchestrator.errors import DatabaseUnavailableError, NotLeaderError
from orchestrator.server.agent_reports import ReportReader
from orchestrator.server.gateway import (
    BAD_FRAME,
    MOST_SKIPPED,
    REFUSED,
    TRY_AGAIN_LATER,
    WorkerTokens,
    create_gateway,
    serve_agent,
)
from tests.controller_harness import Agent, Harness

TOKENS = WorkerTokens("a key")
HELLO = Hello(run="run-1", worker="w-1", node="node-1", attempt=0, next_sequence=1)
BEAT = Heartbeat(attempt=0, time=0.0)


async def frames_over_a_websocket(first: str | bytes, token: str) -> list[dict[str, Any]]:
    """What a server whose controller does not lead answers, as ASGI messages."""
    harness = Harness()
    settings = ControllerSettings(holder="c1")
    controller = Controller(
        harness.store,
        harness.cluster,
        harness.clock,
        settings=settings,
        agent_access=lambda run, worker: AgentAccess("", TOKENS.make(run, worker)),
    )
    app = FastAPI()
    app.include_router(create_gateway(controller, TOKENS))
    frame = {"text": first} if isinstance(first, str) else {"bytes": first}
    said = [
        {"type": "websocket.connect"},
        {"type": "websocket.receive", **frame},
        {"type": "websocket.disconnect", "code": 1006},
    ]
    heard: list[dict[str, Any]] = []

    async def receive() -> Any:
        return said.pop(0)

    async def send(message: Any) -> None:
        heard.append(message)

    headers = [(b"authorization", f"Bearer {token}".encode())]
    scope = {"type": "websocket", "path": "/agent", "query_string": b"", "headers": headers}
    await app(scope, receive, send)
    assert heard.pop(0)["type"] == "websocket.accept"
    return heard


OURS = TOKENS.make("run-1", "w-1")


@pytest.mark.parametrize(
    ("first", "code"),
    [
        ("hello in text", BAD_FRAME),
        (b"\xc1", BAD_FRAME),
        (encode("heartbeat", BEAT), BAD_FRAME),
        (encode("hello", {"run": "run-1"}), BAD_FRAME),
        (encode("hello", HELLO), TRY_AGAIN_LATER),
    ],
    ids=["text", "not msgpack", "not hello", "hello without a worker", "no leader"],
)
async def test_the_close_code_says_why(first: str | bytes, code: int) -> None:
    (closed,) = await frames_over_a_websocket(first, OURS)
    assert (closed["type"], closed["code"]) == ("websocket.close", code)


@pytest.mark.parametrize("token", ["", TOKENS.make("run-1", "w-2"), "forged"])
async def test_a_wrong_token_is_refused_and_fences_nothing(token: str) -> None:
    refused, closed = await frames_over_a_websocket(encode("hello", HELLO), token)
    kind, body = decode(refused["bytes"])
    assert (kind, body["fenced"]) == ("refused", False)
    assert closed["code"] == REFUSED


class Script:
    """An agent that says what it is given, hears the rest, and goes.

    Args:
        gone_after: Frames that it takes before its connection is closed.
    """

    authorization = ""

    def __init__(self, frames: Sequence[bytes], gone_after: int = 100) -> None:
        self._frames, self._left = list(frames), gone_after
        self.heard: list[tuple[str, dict[str, Any]]] = []
        self.closed: int | None = None

    async def receive(self) -> bytes:
        if not self._frames:
            raise ConnectionError("the agent has gone")
        return self._frames.pop(0)

    async def send(self, frame: bytes) -> None:
        if not self._left:
            raise ConnectionError("the agent has gone")
        self._left -= 1
        self.heard.append(decode(frame))

    async def close(self, code: int, reason: str) -> None:
        self.closed = code


class Silent(Agent):
    """An agent that never connects by itself, so that a script can in its place."""

    async def session(self) -> None:
        await asyncio.Event().wait()


@pytest.fixture
async def harness(monkeypatch: pytest.MonkeyPatch) -> Harness:
    monkeypatch.setattr("tests.controller_harness.Agent", Silent)
    harness = Harness(nodes=1)
    await harness.open()
    await harness.submit(resources={"nodes": 1})
    assert await harness.until(lambda: bool(harness.agents))
    return harness


def script_of(harness: Harness, *frames: bytes, gone_after: int = 100) -> tuple[Script, Hello]:
    (agent,) = harness.agents.values()
    hello = HELLO.model_copy(update={"worker": agent.worker, "run": agent.run})
    script = Script([encode("hello", hello), *frames], gone_after)
    script.authorization = f"Bearer {TOKENS.make(agent.run, agent.worker)}"
    return script, hello


@pytest.mark.parametrize(
    "frame",
    [
        encode("ack_command", {}),
        encode("ack_command", {"id": 7}),
        encode("report", {"sequence": "x"}),
        encode("joke", {}),
    ],
    ids=["no id", "an id that is no text", "a report without events", "unknown"],
)
async def test_a_frame_that_is_wrong_is_skipped_and_what_follows_is_heard(
    harness: Harness, frame: bytes
) -> None:
    script, hello = script_of(harness, frame, encode("heartbeat", BEAT))
    await serve_agent(script, harness.controller, TOKENS)
    assert script.closed is None
    assert script.heard[0] == ("welcome", {"last_sequence": 0})
    assert hello.worker in harness.controller.state.workers
    await harness.kill()


async def test_an_agent_that_says_nothing_readable_is_closed(harness: Harness) -> None:
    script, _ = script_of(harness, *[b"\xc1"] * (MOST_SKIPPED + 1))
    await serve_agent(script, harness.controller, TOKENS)
    assert script.closed == BAD_FRAME
    await harness.kill()


@pytest.mark.parametrize("protocol", [0, 99])
async def test_an_agent_of_another_protocol_is_refused_and_people_see_why(
    harness: Harness, protocol: int
) -> None:
    script, hello = script_of(harness)
    script = Script([encode("hello", hello.model_copy(update={"protocol": protocol}))])
    script.authorization = f"Bearer {TOKENS.make(hello.run, hello.worker)}"
    for _ in range(3):
        serving = asyncio.create_task(serve_agent(script, harness.controller, TOKENS))
        await harness.until(serving.done)
        script._frames = [encode("hello", hello.model_copy(update={"protocol": protocol}))]
    assert script.closed == REFUSED
    assert script.heard[0][1]["fenced"] is False
    state = harness.controller.state
    assert f"it speaks protocol {protocol}" in state.runs[hello.run].reason
    (node,) = state.nodes.values()
    view = node_view(node, state.workers.values(), {}, None)
    assert f"protocol {protocol}" in view.refused[0]
    journal = await harness.store.journal(limit=10_000)
    assert sum(entry.name == "notify" for entry in journal) == 1, "once, however often it asks"
    await harness.kill()


@pytest.mark.parametrize(("run", "fenced"), [("01JAFTERTHEBACKUP000000000", False), (None, True)])
async def test_only_a_run_that_the_database_has_lost_goes_on_without_it(
    harness: Harness, monkeypatch: pytest.MonkeyPatch, run: str | None, *, fenced: bool
) -> None:
    """A token of ours for a run that is not stored: the database is from before the run."""
    told: list[Notify] = []
    outcomes = [OSError("away"), None, None]

    async def notify(notice: Notify) -> None:
        told.append(notice)
        if error := outcomes.pop(0):
            raise error

    monkeypatch.setattr(harness.controller._notifier, "notify", notify)
    (agent,) = harness.agents.values()
    hello = HELLO.model_copy(update={"worker": "01JWORKER", "run": run or agent.run})
    for _ in range(3):
        script = Script([encode("hello", hello)])
        script.authorization = f"Bearer {TOKENS.make(hello.run, hello.worker)}"
        await serve_agent(script, harness.controller, TOKENS)
        assert script.closed == REFUSED
        assert script.heard[0][1]["fenced"] is fenced
    assert len(told) == (0 if fenced else 2), "until it is delivered, and never again"
    await harness.kill()


async def test_an_agent_is_not_judged_while_the_database_is_away(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def away(_: str) -> Run:
        raise DatabaseUnavailableError("away")

    monkeypatch.setattr(harness.controller.store, "run", away)
    script = Script([encode("hello", HELLO)])
    script.authorization = f"Bearer {TOKENS.make(HELLO.run, HELLO.worker)}"
    await serve_agent(script, harness.controller, TOKENS)
    assert (script.closed, script.heard) == (TRY_AGAIN_LATER, [])
    await harness.kill()


async def exits(harness: Harness, **exit_: object) -> Any:
    """The agent joins, its rank starts, and its exit is sent as given; the run afterwards."""
    (agent,) = harness.agents.values()
    joined = agent.spool[0]
    script, hello = script_of(harness, encode("report", joined))
    serving = asyncio.create_task(serve_agent(script, harness.controller, TOKENS))
    await harness.until(serving.done)
    assert await harness.until(lambda: hello.run in harness.controller.state.attempts)
    event = {
        "kind": "rank_exited",
        "id": "an exit",
        "at": "2026-01-01T00:00:00+00:00",
        "run": hello.run,
        "worker": hello.worker,
        "attempt": 1,
        **exit_,
    }
    started = agent.event(RanksStarted, 1, ranks=(0,))
    await harness.controller.report(
        hello.worker, Report(sequence=joined.sequence + 1, attempt=1, events=(started,))
    )
    report = {"sequence": joined.sequence + 2, "attempt": 1, "events": [event], "new": 1}
    script, _ = script_of(harness, encode("report", report))

    async def goes_when_acknowledged() -> bytes:
        if not script._frames:
            while not any(kind == "ack" for kind, _ in script.heard):
                await harness.clock.sleep(0.1)
        return await Script.receive(script)

    script.receive = goes_when_acknowledged  # type: ignore[method-assign]
    serving = asyncio.create_task(serve_agent(script, harness.controller, TOKENS))
    await harness.until(serving.done)
    assert ("ack", {"sequence": joined.sequence + 2}) in script.heard
    return (await harness.store.attempts(hello.run))[0]


FAILED = {"failure_class": "signal", "reason": "SIGKILL", "signature": "9"}


@pytest.mark.parametrize(
    ("sent", "unreadable"),
    [
        ({"rank": 0, "code": -9, "failure": FAILED, "a_new_field": [1]}, False),
        ({"rank": 0, "code": -9, "failure": {**FAILED, "a_new_field": 1}}, False),
        ({"rank": 0, "code": -9, "failure": {**FAILED, "failure_class": "a new class"}}, True),
        ({"rank": "zero", "code": -9, "failure": FAILED}, True),
        ({"code": None}, True),
        ({"rank": 0, "code": 0, "failure": {**FAILED, "failure_class": "a new class"}}, True),
        ({"rank": 0, "code": 1}, False),
        ({"rank": 0, "code": 1e30, "failure": FAILED, "at": "yesterday"}, True),
    ],
)
async def test_the_exit_of_a_rank_is_never_lost_however_it_is_written(
    harness: Harness, sent: dict[str, Any], unreadable: bool
) -> None:
    attempt = await exits(harness, **sent)
    assert attempt.failures, "the attempt is judged"
    names = [entry.name for entry in await harness.store.journal(limit=10_000)]
    assert ("report_unreadable" in names) is unreadable
    essential = sent.get("rank") == 0 and isinstance(sent["code"], int)
    assert names.count("rank_exited") == int(essential)
    await harness.kill()


@pytest.mark.parametrize(
    "sent",
    [
        {"kind": "a_new_event", "weight": 3},
        {"worker": "another", "rank": 0, "code": 1},
        {"worker": "another", "rank": 0, "code": "x"},
    ],
)
async def test_an_event_of_no_known_kind_or_of_another_worker_is_kept_and_does_no_harm(
    harness: Harness, sent: dict[str, Any]
) -> None:
    attempt = await exits(harness, **sent)
    assert not attempt.failures
    kept = [e for e in await harness.store.journal(limit=100) if e.name == "report_unreadable"]
    assert sent.get("kind", "another") in kept[0].payload["body"]
    await harness.kill()


def test_the_id_of_an_event_is_the_readers_own() -> None:
    """An id that exists already would hide the event in the journal, or an order in the outbox."""
    reader = ReportReader(HELLO, EventFactory(ManualClock()), ManualClock())
    found: dict[str, Any] = {"kind": "worker_joined", "node": "n", "address": "a", "id": "stolen"}
    first, again = (reader.report({"sequence": 7, "events": [found, found]}) for _ in range(2))
    ids = [event.id for event in first.events]
    assert len(set(ids)) == 2
    assert all(each.startswith(f"{HELLO.worker}.7.") for each in ids)
    assert [event.id for event in again.events] == ids, "a report that is sent again is the same"


@pytest.mark.parametrize(
    ("sent", "read"),
    [
        # What could not be deleted is there still: it would never be deleted.
        (
            {"kind": "checkpoint_deleted", "checkpoint": "c", "error": ["a list"]},
            {"error": "what went wrong cannot be read"},
        ),
        # A disk that could not be looked at is not an empty one: the run would begin anew.
        (
            {"kind": "checkpoints_found", "error": 5},
            {"error": "what went wrong cannot be read"},
        ),
        (
            {"kind": "checkpoints_found", "shards": [{"rank": "zero"}]},
            {"error": "the checkpoints that it found cannot be read", "shards": ()},
        ),
        # What cannot be read now may be sound.
        (
            {"kind": "checkpoint_checked", "checkpoint": "c", "ok": False, "unreadable": "maybe"},
            {"ok": False, "unreadable": True},
        ),
    ],
)
def test_what_cannot_be_read_never_says_that_all_is_well(
    sent: dict[str, Any], read: dict[str, Any]
) -> None:
    reader = ReportReader(HELLO, EventFactory(ManualClock()), ManualClock())
    kept, event = reader.report({"sequence": 7, "attempt": 1, "events": [sent]}).events
    assert (kept.kind, event.kind) == ("report_unreadable", sent["kind"])
    assert event.model_dump().items() >= read.items()


def test_samples_of_another_version_are_read_with_the_columns_they_have() -> None:
    reader = ReportReader(HELLO, EventFactory(ManualClock()), ManualClock())
    one = {"rank": 0, "step": [1, 2], "loss": [2.0, 1.0], "time": [1.0, 2.0], "new": ["a", "b"]}
    short = {"rank": 1, "step": [1, 2], "loss": [2.0]}
    report = reader.report({"sequence": 7, "attempt": 1, "samples": [one, short, "none"]})
    (samples,) = report.samples
    assert (samples.step, samples.loss, len(samples.learning_rate)) == ([1, 2], [2.0, 1.0], 2)
    assert [event.kind for event in report.events] == ["report_unreadable"] * 2
    beat = reader.heartbeat({"attempt": "x", "beats": [{"rank": "y"}, 3]})
    assert beat.beats == ()


@pytest.mark.parametrize("gone_after", [0, 1])
async def test_an_agent_that_breaks_off_is_no_longer_connected(
    harness: Harness, gone_after: int
) -> None:
    """Even in the middle of its welcome: a link that leads nowhere must not be kept."""
    script, hello = script_of(harness, gone_after=gone_after)
    await serve_agent(script, harness.controller, TOKENS)
    assert len(script.heard) == gone_after
    with pytest.raises(NotLeaderError, match="connect again"):
        await harness.controller.heartbeat(hello.worker, BEAT)
    await harness.kill()


async def test_reports_are_acknowledged_once_they_are_stored(harness: Harness) -> None:
    (agent,) = harness.agents.values()
    report = agent.spool[0]
    stored: list[WorkerState] = []

    class Patient(Script):
        """Waits for the acknowledgement before it goes."""

        async def receive(self) -> bytes:
            if not self._frames:
                while not any(kind == "ack" for kind, _ in self.heard):
                    await harness.clock.sleep(0.1)
            return await super().receive()

        async def send(self, frame: bytes) -> None:
            if decode(frame)[0] == "ack":
                stored.append(harness.store._entities[Worker][agent.worker].state)
            await super().send(frame)

    script, _ = script_of(harness)
    patient = Patient([*script._frames, encode("report", report)])
    patient.authorization = script.authorization
    serving = asyncio.create_task(serve_agent(patient, harness.controller, TOKENS))
    assert await harness.until(serving.done)
    await serving
    assert ("ack", {"sequence": report.sequence}) in patient.heard
    assert stored == [WorkerState.READY], "the report, which says that the agent has joined"
    await harness.kill()
