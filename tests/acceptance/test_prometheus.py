"""A real Prometheus and Alertmanager beside a live control plane: every query, and alerts."""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestrator.dashboards.alert_rules import RULES
from orchestrator.dashboards.boards import BOARDS
from tests.acceptance.conftest import Jobs
from tests.control_plane import ControlPlane, Servers, control_plane
from tests.prometheus import Alertmanager, Prometheus, eventually, free_port

SINCE = "[15m:1s]"
"""Of a subquery: an expression has data if it had any in the test so far."""


@pytest.fixture
def scraped(
    servers: Servers, tmp_path: Path
) -> Iterator[tuple[ControlPlane, Prometheus, Alertmanager]]:
    """A control plane with three nodes and a port, and what looks at it.

    The alert rules are those of the package, except that they wait for seconds, not minutes.
    """
    port = free_port()
    settings = {"local_nodes": 3, "port": port}
    rules = tmp_path / "rules.yml"
    rules.write_text(re.sub(r"for: \d+m", "for: 2s", RULES.read_text()))
    with control_plane(servers, tmp_path / "home", **settings) as plane:
        token = plane.ask("token", "create", "prometheus", "--role", "viewer")["secret"]
        with (
            Alertmanager(tmp_path) as manager,
            Prometheus(
                tmp_path,
                target=f"127.0.0.1:{port}",
                token=token,
                rules=rules,
                alertmanager=manager.url.removeprefix("http://"),
            ) as prometheus,
        ):
            eventually(lambda: prometheus.query('up{job="babysit"} == 1'), "a scrape")
            yield plane, prometheus, manager


def filled_in(expression: str, run_id: str) -> str:
    """An expression as Grafana sends it."""
    found = expression.replace("$__rate_interval", "15s").replace("$run_id", run_id)
    assert "$" not in found
    return found


def firing(manager: Alertmanager, name: str, **labels: str) -> dict[str, Any]:
    """An alert, once Alertmanager holds it."""

    def look() -> dict[str, Any] | None:
        for alert in manager.alerts():
            if {"alertname": name, **labels}.items() <= alert["labels"].items():
                return alert
        return None

    found: dict[str, Any] = eventually(look, f"the alert {name} {labels}")
    return found


@pytest.mark.slow
def test_every_query_and_rule_on_a_live_control_plane(
    scraped: tuple[ControlPlane, Prometheus, Alertmanager], jobs: Jobs
) -> None:
    """A run is rolled back over a NaN, loses a rank, and is held; another run fails."""
    plane, prometheus, manager = scraped
    plane.ask("queues", "set", "default", "--gpus", "8")
    steady = jobs("steady", faults=("nan@120",), pace=0.05)
    body = json.loads(steady.spec.read_text())
    body["command"] += ["--metric", "accuracy", "--late", "3"]
    steady.spec.write_text(json.dumps(body))
    run = plane.submit(steady.spec)
    plane.at_step(run, 20)
    used = {node["id"] for node in plane.ask("nodes", "ls") if node["runs"]}
    (spare,) = {node["id"] for node in plane.ask("nodes", "ls")} - used
    plane.ask("nodes", "cordon", spare, "--reason", "a loud fan")
    eventually(
        lambda: prometheus.query(f'babysit_run_rollbacks{{run_id="{run}"}} == 1'), "the rollback"
    )
    plane.at_step(run, 200)
    plane.signal_rank(run, 1, signal.SIGKILL)
    eventually(
        lambda: prometheus.query(f'babysit_run_restarts{{run_id="{run}"}} == 2'), "the restart"
    )
    plane.at_step(run, 300)

    failing = plane.submit(jobs("failing", faults=("import",), resources={"nodes": 1}).spec)
    alert = firing(manager, "BabysitRunFailed", run_id=failing)
    assert alert["annotations"]["summary"] == "The run failing has failed."
    plane.babysit("hold", run, "--reason", "a look at the loss")
    firing(manager, "BabysitRunHeld", run="steady", severity="warning")
    plane.babysit("release", run)
    # What is over by now: the incidents of the rollback and of the killed rank.
    fired = prometheus.query(f'last_over_time(ALERTS{{alertstate="firing"}}{SINCE})')
    assert ("BabysitIncident", "non_finite") in {
        (each["metric"]["alertname"], each["metric"].get("kind")) for each in fired
    }
    plane.ask("queues", "set", "small", "--gpus", "1")
    plane.submit(jobs("large", queue="small").spec)
    firing(manager, "BabysitRunTooLarge", reason="too_large")

    empty = [
        (board.uid, expression)
        for board in BOARDS
        for expression in (filled_in(each, run) for each in board.expressions)
        if not prometheus.query(f"last_over_time(({expression}){SINCE})")
        and not expression.endswith("> 0")  # shows only what is wrong
    ]
    assert empty == []
    rules = prometheus.rules()
    assert len(rules) == RULES.read_text().count("- alert:")
    assert {name: rule["lastError"] for name, rule in rules.items() if rule.get("lastError")} == {}
    assert {rule["health"] for rule in rules.values()} == {"ok"}

    plane.kill()
    firing(manager, "BabysitDown", severity="critical")
    firing(manager, "BabysitNoLeader", severity="critical")
    plane.start()
