"""Links between nodes: real programs and agents over TCP, and links that are slow or dead."""

from __future__ import annotations

import asyncio
import json
import random
import socket
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from jobs.agent import command as agent_command
from jobs.agent.network import free_port
from jobs.checks import link
from jobs.checks.measurement import LATENCY, RATE, Measurement, Task
from jobs.checks.results import LINK, Verdict
from jobs.checks.runner import run_checks
from jobs.clock import Clock
from orchestrator.clusters.local.cluster import LocalCluster
from orchestrator.clusters.local.virtual_nodes import LocalClusterSettings
from orchestrator.clusters.port import AgentAccess, Cluster
from orchestrator.core.messages.events import NodeInfo
from orchestrator.core.model.checking import PREFLIGHT
from orchestrator.core.model.states import NodeState
from tests import agent_behind_relay
from tests.cli import babysit, connect
from tests.control_plane import OK, REFUSED, USAGE, until
from tests.plane import Plane
from tests.relay import Relay

PATIENCE = 300.0
PORTS = random.Random()


def task(root: Path, **fields: object) -> Task:
    return Task(**{"disk": str(root), "memory": str(root), **fields})


# --- programs -----------------------------------------------------------------------------------


async def test_two_programs_measure_the_link_between_them(tmp_path: Path) -> None:
    port = free_port(PORTS)
    listening = asyncio.create_task(run_checks([LINK], task(tmp_path, port=port)))
    measured = await run_checks([LINK], task(tmp_path, peer=f"127.0.0.1:{port}"))
    assert [each.check for each in measured] == [RATE, LATENCY]
    assert all(each.verdict is Verdict.PASSED for each in measured), measured
    assert all((each.figure or 0) > 0 for each in measured)
    (served,) = await listening
    assert (served.verdict, served.figure) == (Verdict.PASSED, None)


def measured_by(peer: int, root: Path) -> dict[str, Measurement]:
    return {each.check: each for each in link.link(task(root, peer=f"127.0.0.1:{peer}"))}


@pytest.fixture
def listener(tmp_path: Path) -> Iterator[int]:
    """The port of a program that listens in a thread of this process, until it has served."""
    port = free_port(PORTS)
    thread = threading.Thread(target=link.link, args=(task(tmp_path, port=port),))
    thread.start()
    yield port
    thread.join(60)
    assert not thread.is_alive()


def test_a_slow_link_has_a_low_figure(listener: int, tmp_path: Path) -> None:
    relay = Relay(("127.0.0.1", listener), bytes_per_second=2_000_000)
    found = measured_by(relay.port, tmp_path)
    relay.close()
    rate = found[RATE].figure
    assert rate is not None
    assert 0 < rate <= 8 * 2_000_000 / 1e9 * 1.1  # the relay allows a short burst
    assert (found[LATENCY].figure or 0) > 0


def test_a_link_that_stalls_has_failed(
    listener: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(link, "STALL_SECONDS", 0.5)
    relay = Relay(("127.0.0.1", listener), stalls_after=100_000)
    (found,) = measured_by(relay.port, tmp_path).values()
    relay.close()
    assert "stalled: nothing moved for 0.5 s" in found.problem
    assert not found.skipped


def test_a_partner_that_leaves_is_no_fault_of_the_link(listener: int, tmp_path: Path) -> None:
    relay = Relay(("127.0.0.1", listener), breaks_after=100_000)
    (found,) = measured_by(relay.port, tmp_path).values()
    relay.close()
    assert found.skipped == f"127.0.0.1:{relay.port} closed the connection"
    assert not found.problem


def test_a_partner_that_never_comes_is_no_fault_of_the_node_that_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(link, "WAIT_SECONDS", 0.2)
    (found,) = link.link(task(tmp_path, port=free_port(PORTS)))
    assert (found.skipped, found.problem) == ("no partner came within 0.2 s", "")


def test_a_partner_that_does_not_listen_any_more_is_no_fault_of_the_node_that_connects(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(link, "CONNECT_SECONDS", 0.3)
    (found,) = measured_by(free_port(PORTS), tmp_path).values()
    assert found.skipped.endswith("within 0.3 s: Connection refused")
    assert not found.problem


def test_a_machine_that_does_not_answer_is_a_fault_of_the_link(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A queue that is full drops what comes, as a dead cable does."""
    monkeypatch.setattr(link, "CONNECT_SECONDS", 1.5)
    with socket.create_server(("127.0.0.1", 0), backlog=0) as full:
        port = full.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)):
            (found,) = measured_by(port, tmp_path).values()
    assert found.problem.startswith(f"no connection to 127.0.0.1:{port} within 1.5 s: ")
    assert not found.skipped


def connected(port: int) -> socket.socket | None:
    try:
        return socket.create_connection(("127.0.0.1", port))
    except ConnectionRefusedError:
        return None


def test_strangers_on_the_port_are_not_taken_for_the_partner(listener: int, tmp_path: Path) -> None:
    for words in (b"", b"GET / HTTP/1.1\r\nHost: node-1\r\n\r\n"):
        with until(lambda: connected(listener), "it listens", 30) as stranger:
            stranger.sendall(words)
    assert set(measured_by(listener, tmp_path)) == {RATE, LATENCY}


# --- agents -------------------------------------------------------------------------------------

SCRIPT = """
case "$(cat "$1")" in *'"node":"node-2"'*) exec {python} {stalling} "$1";; esac
exec {agent} "$1"
"""


class Machines(LocalCluster):
    """The local cluster, each of whose nodes plays a machine of its own."""

    async def nodes(self) -> list[NodeInfo]:
        return [info.model_copy(update={"host": ""}) for info in await super().nodes()]


class LinkedPlane(Plane):
    """A control plane with four nodes, of which the link of the second stalls."""

    def make_cluster(self, clock: Clock) -> Cluster:
        script = self.settings.home / "agent.sh"
        words = {
            "python": f"env PYTHONPATH={Path(__file__).parents[2]} {sys.executable}",
            "stalling": agent_behind_relay.__file__,
            "agent": " ".join(agent_command.HERE),
        }
        script.write_text(SCRIPT.format(**words))
        settings = LocalClusterSettings(
            home=self.settings.home, nodes=4, agent=("/bin/sh", str(script)), gpus_per_node=0
        )
        return Machines(settings, clock)

    def access(self, run: str, worker: str) -> AgentAccess:
        url = self.url.replace("http", "ws")
        return AgentAccess(f"{url}/agent", self.worker_tokens.make(run, worker))

    def state_of(self, node: str) -> NodeState:
        return self.controller.state.nodes[node].state


@pytest.fixture
def plane(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[LinkedPlane]:
    with LinkedPlane(tmp_path_factory.mktemp("home")) as running:
        connect(running, monkeypatch, tmp_path)
        yield running


def rows(output: str) -> dict[str, dict[str, object]]:
    return {row["name"]: row for row in json.loads(output)}


@pytest.mark.slow
def test_agents_measure_a_link_and_the_node_that_is_bad_with_two_others_is_cordoned(
    plane: LinkedPlane,
) -> None:
    good = babysit("nodes", "check", "node-3", "--check", "link", "-o", "json")
    assert good.exit_code == OK, good.output
    found = rows(good.stdout)
    assert set(found) == {RATE, LATENCY}
    assert found[RATE]["peer"] == "node-1"
    assert found[RATE]["detail"] == "with node-1"
    before = rows(babysit("nodes", "check", "node-4", "--last", "-o", "json").stdout)
    assert before["link"]["detail"] == (
        "not measured yet: it takes another idle node (`--check link`)"
    )

    bad = babysit("nodes", "check", "node-2", "--check", "link", "-o", "json")
    detail = str(rows(bad.stdout)[RATE]["detail"])
    assert "stalled: nothing moved for 10 s" in detail
    assert detail.endswith("or the way between; a third idle node decides")
    assert plane.state_of("node-2") is NodeState.READY, "one partner proves nothing"

    until(lambda: plane.state_of("node-2") is NodeState.CORDONED, "the second round", PATIENCE)
    node = plane.controller.state.nodes["node-2"]
    assert node.by == PREFLIGHT
    assert node.reason.startswith("failed a check: link: with node-")
    assert node.reason.endswith("these nodes are good with others")
    assert {plane.state_of(f"node-{number}") for number in (1, 3, 4)} == {NodeState.READY}


def test_what_cannot_be_measured_is_refused_in_words(plane: LinkedPlane) -> None:
    mixed = babysit("nodes", "check", "node-1", "--check", "link", "--check", "disk")
    assert mixed.exit_code == USAGE
    assert "link needs another node, so it is measured alone" in mixed.stderr
    for number in (2, 3, 4):
        assert babysit("nodes", "cordon", f"node-{number}", "--reason", "alone").exit_code == OK
    alone = babysit("nodes", "check", "node-1", "--check", "link")
    assert alone.exit_code == REFUSED
    assert "there is no node on another machine that takes work" in alone.stderr
    shown = rows(babysit("nodes", "check", "node-1", "--last", "-o", "json").stdout)
    assert shown["link"]["detail"] == "there is no node on another machine that takes work"
