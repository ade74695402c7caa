"""Node monitors and the server: tokens, what is shown of a node, and absences of the server."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from jobs.clock import SystemClock
from jobs.hardware.report_sender import ReportSender, Server
from jobs.hardware.settings import SourceSettings
from monitors.hardware.types import LogLine, NodeFinding, NodeReport, Reading
from orchestrator.errors import NotLeaderError
from orchestrator.server.hardware import own_machine
from orchestrator.server.hardware.desk import NodeDesk, never_words
from orchestrator.settings import Settings
from tests.plane import NODE_SECRET, SECRET, Plane

XID = "NVRM: Xid (PCI:0000:3b:00): 79, pid='<unknown>', name=<unknown>, GPU has fallen off the bus."
OOM = "Out of memory: Killed process 812 (python) total-vm:91232kB, anon-rss:812kB"
LIMIT = 90.0
HTTP: Any = {"timeout": LIMIT, "verify": False}  # no TLS here; authorities take long to load


@pytest.fixture(scope="module")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Plane]:
    with Plane(tmp_path_factory.mktemp("home")) as plane:
        yield plane


def post(plane: Plane, path: str, token: str, body: bytes = b"") -> httpx.Response:
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    return httpx.post(f"{plane.url}{path}", content=body, headers=headers, **HTTP)


def get(plane: Plane, path: str) -> httpx.Response:
    headers = {"Authorization": f"Bearer {SECRET}"}
    return httpx.get(f"{plane.url}{path}", headers=headers, **HTTP)


def now() -> float:
    return SystemClock().now().timestamp()


def hardware(plane: Plane, node: str) -> Any:
    return get(plane, f"/api/v1/nodes/{node}").json()["hardware"]


def report(node: str, *lines: str, **fields: Any) -> NodeReport:
    said = tuple(LogLine(text=line, time=now()) for line in lines)
    return NodeReport(node=node, time=now(), boot="boot-1", lines=said, **fields)


def body(node: str, *lines: str, **fields: Any) -> bytes:
    return report(node, *lines, **fields).model_dump_json().encode()


def enrolled(plane: Plane, node: str) -> str:
    answer = post(plane, f"/agent/nodes/{node}/token", NODE_SECRET)
    assert answer.status_code == 200, answer.text
    return str(answer.json()["token"])


def test_a_token_reports_for_its_own_node_and_does_nothing_else(plane: Plane) -> None:
    token = enrolled(plane, "node-1")
    mine, other = "/agent/nodes/node-1/reports", "/agent/nodes/node-2/reports"
    assert post(plane, mine, token, body("node-1")).status_code == 200
    refused = [
        post(plane, other, token, body("node-2")),
        post(plane, mine, NODE_SECRET, body("node-1")),
        post(plane, mine, SECRET, body("node-1")),
        post(plane, mine, "", body("node-1")),
        post(plane, "/agent/nodes/node-1/token", "wrong"),
        post(plane, "/agent/nodes/node-2/token", token),
    ]
    assert [answer.status_code for answer in refused] == [403] * len(refused)
    assert post(plane, mine, token, body("node-2")).status_code == 422
    assert post(plane, mine, token, b'{"node": "node-1"}').status_code == 422
    assert post(plane, mine, token, b"x" * (3 * 2**20)).status_code == 413
    gone = enrolled(plane, "node-9")
    answer = post(plane, "/agent/nodes/node-9/reports", gone, body("node-9"))
    assert (answer.status_code, "BABYSIT_NODE" in answer.text) == (404, True)
    for secret in (token, NODE_SECRET):
        headers = {"Authorization": f"Bearer {secret}"}
        api = httpx.get(f"{plane.url}/api/v1/nodes", headers=headers, **HTTP)
        assert api.status_code == 401
    made = post(plane, "/api/v1/nodes/node-1/token", SECRET).json()
    assert made == {"node": "node-1", "token": token}


def test_what_a_node_reported_is_shown_and_its_blindness_counted(plane: Plane) -> None:
    token, path = enrolled(plane, "node-1"), "/agent/nodes/node-1/reports"
    reading = {"source": "nvml", "device": "GPU-1", "name": "temperature_celsius"}
    for value in (61.0, 64.0):
        newest = Reading(**reading, value=value, time=now())
        blind = {"kernel_log": "no permission"}
        sent = body("node-1", XID, readings=(newest,), blind=blind)
        assert post(plane, path, token, sent).status_code == 200
    shown = hardware(plane, "node-1")
    assert shown["blind"] == blind
    assert [each["value"] for each in shown["readings"] if each["device"] == "GPU-1"] == [64.0]
    assert len([each for each in shown["findings"] if "fallen off the bus" in each]) == 1
    silent = hardware(plane, "node-2")
    assert silent["reported_at"] is None
    assert "start babysit-node-monitor" in silent["blind"]["monitor"]
    metrics = get(plane, "/metrics").text
    assert 'babysit_source_blind{source="kernel_log"} 1' in metrics
    assert 'babysit_source_blind{source="monitor"} 1' in metrics
    assert 'babysit_source_blind{source="nvml"} 0' in metrics


async def test_reports_wait_for_the_server_over_restarts_and_come_in_order(
    plane: Plane, tmp_path: Path
) -> None:
    clock, chance = SystemClock(), random.Random(1)
    away = Server("ws://127.0.0.1:1/agent", "node-2", NODE_SECRET)
    first = ReportSender(away, tmp_path, 2**20, clock, chance)
    assert not await first.send_once()
    for text in ("EDAC MC0: 1 UE one", "nfs: server storage not responding", XID):
        first.add(report("node-2", text))
    assert not await first.send_once()
    first.close()
    here = Server(f"{plane.url.replace('http', 'ws')}/agent", "node-2", NODE_SECRET)
    second = ReportSender(here, tmp_path, 2**20, clock, chance)
    while await second.send_once():
        pass
    assert second.waiting == 0
    assert XID in " ".join(hardware(plane, "node-2")["findings"])
    second.add(report("node-2"))
    assert await second.send_once()
    skew = [r for r in hardware(plane, "node-2")["readings"] if r["device"] == "server"]
    assert [abs(each["value"]) < LIMIT for each in skew] == [True]
    second.close()


def test_a_spool_that_is_full_keeps_lines_longer_than_readings(tmp_path: Path) -> None:
    away = Server("ws://127.0.0.1:1/agent", "node-2", NODE_SECRET)
    sender = ReportSender(away, tmp_path, 2**16, SystemClock(), random.Random(1))
    many = tuple(
        Reading(source="nvml", device=str(n), name="x", value=n, time=1) for n in range(100)
    )
    for _ in range(40):
        sender.add(report("node-2", readings=many))
    assert sender.waiting < 40
    before = sender.waiting
    sender.add(report("node-2", XID, readings=many))
    assert (sender.waiting, sender.dropped) == (before + 1, 0)
    for _ in range(500):
        sender.add(report("node-2", XID * 10, readings=many))
    assert sender.dropped > 0
    assert (tmp_path / "reports").stat().st_size < 4 * 2**16
    sender.close()


def test_the_program_reads_this_machine_and_reports_it(plane: Plane, tmp_path: Path) -> None:
    environment = {
        **os.environ,
        "BABYSIT_NODE": "node-2",
        "BABYSIT_AGENT_URL": f"{plane.url}/agent",
        "BABYSIT_NODE_TOKEN": NODE_SECRET,
        "BABYSIT_NODE_DIRECTORY": str(tmp_path / "state"),
        "BABYSIT_SOURCES": json.dumps({"report_seconds": 0.5, "smart_seconds": 0}),
    }
    program = [sys.executable, "-P", "-m", "babysit.node_monitor"]
    with subprocess.Popen(program, env=environment, stderr=subprocess.PIPE, text=True) as process:
        try:
            until = time.monotonic() + LIMIT
            while time.monotonic() < until:
                shown = hardware(plane, "node-2")
                if {r["name"] for r in shown["readings"]} >= {"available_bytes", "synchronised"}:
                    break
                time.sleep(0.1)
            assert "monitor" not in shown["blind"]
            assert len(shown["boot"]) == 36
        finally:
            process.send_signal(signal.SIGTERM)
        assert process.wait(LIMIT) == 0


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({}, "BABYSIT_AGENT_URL and BABYSIT_NODE_TOKEN must be set"),
        ({"BABYSIT_AGENT_URL": "ftp://x"}, "BABYSIT_AGENT_URL: expected a URL such as wss://"),
        ({"BABYSIT_SOURCES": '{"nvml": 1}'}, "BABYSIT_SOURCES: nvml: Extra inputs"),
        ({"BABYSIT_SOURCES": "quick"}, "BABYSIT_SOURCES"),
    ],
)
def test_wrong_settings_are_refused_in_words(
    given: dict[str, str], words: str, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    from jobs import node_monitor

    for name in ("BABYSIT_AGENT_URL", "BABYSIT_NODE_TOKEN", "BABYSIT_SOURCES"):
        monkeypatch.delenv(name, raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    assert node_monitor.main([]) == 2
    assert words in capsys.readouterr().err


async def test_the_server_reads_its_own_machine_for_all_nodes_and_in_shadow(tmp_path: Path) -> None:
    found: list[NodeFinding] = []

    async def keep(finding: NodeFinding) -> None:
        found.append(finding)

    desk = NodeDesk(SystemClock(), keep)
    nodes, cursor = ("node-1", "node-2"), tmp_path / "kernel-log.json"
    sources = SourceSettings(report_seconds=0.1, smart_seconds=0)
    watching = asyncio.create_task(
        own_machine.watch(desk, SystemClock(), sources, cursor, lambda: nodes)
    )
    try:
        async with asyncio.timeout(LIMIT):
            while not all(desk.of(node) for node in nodes):
                await SystemClock().sleep(0.05)
    finally:
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)
    for node in nodes:
        known = desk.of(node)
        assert known is not None
        assert ("memory", "", "available_bytes") in known.readings
    await desk.take(report("localhost", XID), nodes)
    fatal = [(each.node, each.shadow) for each in found if "fallen off the bus" in each.reason]
    assert fatal == [("node-1", True), ("node-2", True)]


@pytest.mark.parametrize(
    ("runs_here", "read", "words"),
    [
        (False, True, "start babysit-node-monitor there"),
        (True, True, "look again"),
        (True, False, "BABYSIT_LOCAL_HARDWARE"),
    ],
)
def test_nobody_is_told_to_start_a_monitor_where_the_server_reads_the_machine(
    runs_here: bool, read: bool, words: str
) -> None:
    settings = Settings(local_hardware=read)
    never = never_words(settings, runs_here=runs_here)

    async def store(finding: NodeFinding) -> None:
        raise AssertionError(finding)

    (reason,) = NodeDesk(SystemClock(), store, never=never).blind("node-1").values()
    assert words in reason
    assert ("babysit-node-monitor" in reason) is not runs_here


async def test_a_report_that_comes_again_while_it_is_stored_is_stored_once() -> None:
    stored: list[str] = []
    again: list[asyncio.Task[None]] = []

    async def store(finding: NodeFinding) -> None:
        if not again:
            again.append(asyncio.create_task(desk.take(said)))
            await asyncio.wait(again, timeout=0.2)  # it waits for this one
        stored.append(finding.rule)

    desk, said = NodeDesk(SystemClock(), store), report("node-1", XID, OOM)
    await desk.take(said)
    await again[0]
    assert stored == ["xid-79", "oom-kill"]


async def test_the_first_reports_of_a_node_may_come_together() -> None:
    stored: list[str] = []

    async def store(finding: NodeFinding) -> None:
        stored.append(finding.rule)

    desk, said = NodeDesk(SystemClock(), store), report("node-1", XID)
    await asyncio.gather(desk.take(said), desk.take(said))
    assert stored == ["xid-79"]


async def test_a_finding_that_could_not_be_stored_is_stored_later() -> None:
    stored: list[str] = []
    away = True

    async def store(finding: NodeFinding) -> None:
        if away:
            raise NotLeaderError("no lead")
        stored.append(finding.reason)

    desk = NodeDesk(SystemClock(), store)
    said = report("node-1", XID)
    with pytest.raises(NotLeaderError):
        await desk.take(said)
    away = False
    await desk.take(said)
    assert [XID in reason for reason in stored] == [True]
