"""Files of rules for logs: what is wrong with them, and whose rules come first."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobs import log_rules
from jobs.clock import SystemClock
from jobs.config import AgentConfig
from jobs.spec import RunSpec
from jobs.spec_file import SpecError, loads, parse, resolve
from jobs.yaml_file import MAX_BYTES
from monitors.exits import classify
from monitors.failures import Advice, Cause, FailureClass
from orchestrator.clusters.errors import ClusterError
from orchestrator.clusters.local.cluster import from_settings
from orchestrator.settings import Settings

FLUX = """
rules:
- name: flux
  class: network
  match: lost its flux
  action: stop
  examples: ["the frobnicator lost its flux"]
  counterexamples: ["flux: 0.3"]
"""
LOG = "step 3 loss 2.2\nthe frobnicator lost its flux"
HYPERPOD = """
logMonitoringConfiguration:
- name: "JobStart"
  logPattern: ".*Experiment configuration.*"
  expectedStartCutOffInSeconds: 120
- name: "Flux"
  logPattern: ".*lost its flux.*"
  faultOnMatch: true
"""


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "rules.yaml: is empty; give `rules:`"),
        ("rules: []", "rules.yaml:1:1: holds no rule for the end of a log"),
        ("rules: [", "rules.yaml:1:9: YAML: "),
        ("- a", "rules.yaml:1:1: expected a mapping of fields, got a list"),
        ("rules:\n- {name: a, class: storage}", "rules.yaml:2:3: rules[0].match: is required"),
        ("rules:\n- {name: a, clas: b, match: c}", "rules.yaml:2:13: rules[0].clas: no such field"),
        (
            'rules:\n- {name: a, class: storage, match: "("}',
            "rules.yaml:2:36: rules[0].match: ( is not a valid regular expression",
        ),
        (
            'rules:\n- {name: a, class: storage, match: "(a+)+b"}',
            "rules.yaml:2:36: rules[0].match: (a+)+b repeats a repetition",
        ),
        (
            "rules:\n- {name: a, class: storage, match: b, examples: [c]}",
            "rules.yaml:2:3: rules[0]: the rule a does not match its example: c",
        ),
        (HYPERPOD.partition('- name: "Flux"')[0], "rules.yaml:2:1: holds no rule"),
        ("#" * (MAX_BYTES + 1), "rules.yaml: is larger than"),
    ],
)
def test_a_broken_file_is_refused_with_its_place(text: str, said: str) -> None:
    with pytest.raises(SpecError) as caught:
        log_rules.parse(text)
    assert any(line.startswith(said) for line in str(caught.value).splitlines())


def test_rules_of_a_run_come_before_those_of_its_cluster() -> None:
    run = log_rules.parse(FLUX)
    cluster = log_rules.parse(FLUX.replace("network", "storage"))
    for files, expected in (
        (([run], [cluster]), FailureClass.NETWORK),
        (([], [cluster]), FailureClass.STORAGE),
        (([], []), FailureClass.UNKNOWN),
        (([log_rules.parse(FLUX.replace("name: flux", "name: other")), run], []), "network"),
    ):
        failure = classify(LOG, 1, rules=log_rules.rule_set(*files))
        assert failure is not None
        assert failure.failure_class == expected


def test_the_action_of_a_rule_decides_who_pays() -> None:
    failure = classify(LOG, 1, rules=log_rules.rule_set([log_rules.parse(FLUX)], []))
    assert failure is not None
    assert (failure.advice, failure.cause) == (Advice.STOP, Cause.USER)


def test_rules_of_hyperpod_are_taken_as_they_are() -> None:
    rules = log_rules.rule_set([log_rules.parse(HYPERPOD)], [])
    failure = classify(LOG, 1, rules=rules)
    assert failure is not None
    assert (failure.advice, failure.cause) == (Advice.RETRY, Cause.INFRASTRUCTURE)
    assert classify("Experiment configuration: a", 1, rules=rules) == classify(
        "Experiment configuration: a", 1
    )


def spec_in(directory: Path, logs: str) -> RunSpec:
    (directory / "train.py").touch()
    text = f"name: a\ncommand: [python, train.py]\nmonitors:\n  logs: {logs}\n"
    spec, source = parse(text)
    return resolve(spec, directory, source)


def test_the_files_of_a_spec_are_read_when_it_is_submitted(tmp_path: Path) -> None:
    (tmp_path / "rules.yaml").write_text(FLUX)
    spec = spec_in(tmp_path, "[rules.yaml]")
    (tmp_path / "rules.yaml").unlink()
    again = RunSpec.model_validate_json(spec.model_dump_json())
    assert again == spec
    assert spec.monitors.logs == (log_rules.parse(FLUX),)


def test_rules_may_stand_in_the_spec() -> None:
    spec = loads(
        "name: a\ncommand: [python, train.py]\nmonitors:\n  logs:\n"
        "  - rules:\n    - {name: flux, class: network, match: lost its flux}\n"
    )
    (file,) = spec.monitors.logs
    assert not isinstance(file, str)
    failure = classify(LOG, 1, rules=log_rules.rule_set([file], []))
    assert failure is not None
    assert failure.failure_class is FailureClass.NETWORK


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "run.yaml:4:10: monitors.logs[0]: {file}: no such file"),
        ("rules: []", "run.yaml:4:10: monitors.logs[0]: {file}:1:1: holds no rule"),
    ],
)
def test_a_spec_with_broken_rules_is_refused(tmp_path: Path, text: str | None, said: str) -> None:
    file = tmp_path / "rules.yaml"
    if text is not None:
        file.write_text(text)
    with pytest.raises(SpecError) as caught:
        spec_in(tmp_path, "[rules.yaml]")
    assert str(caught.value).startswith(said.format(file=file))


def test_a_cluster_with_broken_rules_does_not_start(tmp_path: Path) -> None:
    file = tmp_path / "rules.yaml"
    file.write_text("rules: []")
    settings = Settings(home=tmp_path, log_rules=file)
    with pytest.raises(ClusterError, match=r"BABYSIT_LOG_RULES: .*rules\.yaml:1:1: holds no rule"):
        from_settings(settings, SystemClock())
    file.write_text(FLUX)
    assert from_settings(settings, SystemClock())


def test_rules_reach_the_agent_as_json(tmp_path: Path) -> None:
    config = AgentConfig(
        run="r", worker="w", node="n", token="t", directory=tmp_path, log_directory=tmp_path,
        memory_directory=tmp_path, spec=RunSpec.model_validate({"name": "a", "command": ["b"]}),
        log_rules=(log_rules.parse(FLUX), log_rules.parse(HYPERPOD)),
    )  # fmt: skip
    assert AgentConfig.model_validate_json(config.model_dump_json()) == config
