"""The alert rules: as `promtool` sees them, and each with a case in which it fires."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import typer
from ruamel.yaml import YAML

from orchestrator.cli.main import app
from orchestrator.dashboards.alert_rules import RULES, metrics_in
from orchestrator.server.metrics.catalogue import METRICS
from tests.prometheus import find_program

CASES = Path(__file__).parents[1] / "data" / "alert_rules_test.yml"


def load(text: str) -> Any:
    return YAML(typ="safe").load(text)


def alerts() -> list[dict[str, Any]]:
    return [rule for group in load(RULES.read_text())["groups"] for rule in group["rules"]]


def promtool(*arguments: str) -> str:
    done = subprocess.run(
        [find_program("promtool"), *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_promtool_accepts_the_rules() -> None:
    assert f"{len(alerts())} rules found" in promtool("check", "rules", str(RULES))


def test_rules_fire_when_they_should_and_not_otherwise(tmp_path: Path) -> None:
    cases = tmp_path / "cases.yml"
    cases.write_text(CASES.read_text().replace("RULES", str(RULES)))
    assert "SUCCESS" in promtool("test", "rules", str(cases))


def test_every_rule_has_a_case_for_each() -> None:
    cases = [c for test in load(CASES.read_text())["tests"] for c in test["alert_rule_test"]]
    names = {rule["alert"] for rule in alerts()}
    assert {case["alertname"] for case in cases if case.get("exp_alerts")} == names
    assert {case["alertname"] for case in cases if not case.get("exp_alerts")} == names


@pytest.mark.parametrize("rule", alerts(), ids=lambda rule: rule["alert"])
def test_a_rule_says_what_to_do(rule: dict[str, Any]) -> None:
    assert rule["labels"]["severity"] in {"critical", "warning"}
    assert metrics_in(rule["expr"]) <= set(METRICS) | {"up"}
    assert set(rule["annotations"]) == {"summary", "description"}
    commands = re.findall(r"`babysit ([^`]+)`", rule["annotations"]["description"])
    for command in commands:
        group: Any = typer.main.get_command(app)
        for word in command.split()[:2]:
            if not hasattr(group, "commands") or not re.fullmatch("[a-z]+", word):
                break
            assert word in group.commands, command
            group = group.commands[word]
