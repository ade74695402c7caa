"""Rules for logs: those that come with babysit, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from pydantic import ValidationError

from benchmarks.support.advice import advice_of
from monitors.exit_rules import LogRule, RuleFile, RuleSet
from monitors.exits import classify
from monitors.failures import Advice, Cause, FailureClass
from monitors.rule_files import builtin_files, builtin_rules

DATA = Path(__file__).parents[1] / "data"
BUILTIN = [rule for file in builtin_files().values() for rule in file.rules]
COLLECTED = [json.loads(line) for line in (DATA / "failure_logs.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("rule", BUILTIN, ids=lambda rule: rule.name)
def test_each_rule_has_examples_for_and_against_it(rule: LogRule):
    assert rule.examples  # that they hold is checked where a rule is made
    assert rule.counterexamples


@pytest.mark.parametrize("rule", [r for r in BUILTIN if r.failure_class != "harmless"], ids=str)
def test_an_example_alone_gives_the_class_of_its_rule(rule: LogRule):
    for example in rule.examples:
        failure = classify("\n".join(filter(None, (_needed(rule), example))), 1)
        assert failure is not None
        assert failure.failure_class == rule.failure_class, example
        assert rule.action is None or failure.advice is rule.action


def _needed(rule: LogRule) -> str:
    return {
        "gpu-failed-launch": "NVRM: loaded",
        "shared-memory-of-nccl": "df /dev/shm",
        "rendezvous-store": "init_process_group",
        "checkpoint-hash": "",
        "checkpoint-pickle": 'File "/torch/serialization.py", line 3, in load\n    load(f)',
    }.get(rule.name, "")


def test_names_of_rules_are_unique():
    assert len({rule.name for rule in BUILTIN}) == len(BUILTIN)


@pytest.mark.parametrize("sample", ["held_out", "open", "second", "third", "fourth"])
def test_collected_messages_are_read_as_a_careful_person_would(sample: str):
    """Sets, and what was right of each at first sight: docs/monitors.md."""
    logs = [log for log in COLLECTED if log["set"] == sample]
    found = [classify(log["log"], 1) for log in logs]
    classes = [f.failure_class == log["class"] for f, log in zip(found, logs, strict=True) if f]
    actions = [advice_of(f) == log["action"] for f, log in zip(found, logs, strict=True) if f]
    assert len(logs) > 30
    assert sum(classes) / len(logs) >= 0.9
    assert sum(actions) / len(logs) >= 0.95


def test_an_empty_rule_set_is_refused():
    with pytest.raises(ValidationError, match="holds no rule"):
        RuleFile(rules=())
    harmless = LogRule(name="a", failure_class="harmless", match="b")
    with pytest.raises(ValueError, match="no rule speaks for a class"):
        RuleSet([harmless])


@pytest.mark.parametrize(
    ("field", "said"),
    [
        ({"match": "("}, "not a valid regular expression"),
        ({"match": "a|"}, "matches every line"),
        ({"match": []}, "at least 1 item"),
        ({"examples": ["b"]}, "does not match its example: b"),
        ({"counterexamples": ["xax"]}, "matches its counterexample: xax"),
        ({"class": "gremlins"}, "harmless"),
    ],
)
def test_broken_rules_are_refused(field, said):
    rule = {"name": "r", "class": "storage", "match": "a", **field}
    with pytest.raises(ValidationError, match=said):
        RuleFile.model_validate({"rules": [rule]})


FROBBED = "step 3 loss 2.2\nthe frobnicator lost its flux"


def test_a_rule_of_ones_own_comes_first_and_says_what_to_do():
    assert classify(FROBBED, 1).failure_class is FailureClass.UNKNOWN
    rule = LogRule(name="frob", failure_class="network", match="lost its flux", action="retry")
    failure = classify(FROBBED, 1, rules=builtin_rules().extended([rule]))
    assert (failure.failure_class, failure.advice) == (FailureClass.NETWORK, Advice.RETRY)
    rule = LogRule(name="frob", failure_class="network", match="lost its flux", action="stop")
    failure = classify(FROBBED, 1, rules=builtin_rules().extended([rule]))
    assert failure.cause is Cause.USER


def test_a_rule_of_the_same_name_replaces_ours():
    full = "OSError: [Errno 28] No space left on device"
    rule = LogRule(name="disk-full", failure_class="user_code", match="No space left")
    assert classify(full, 1).failure_class is FailureClass.STORAGE
    mine = builtin_rules().extended([rule])
    assert classify(full, 1, rules=mine).failure_class is FailureClass.USER_CODE


def test_a_class_of_an_xid_can_be_changed():
    line = "NVRM: Xid (PCI:0000:1b:00): 94, pid=41, Contained"
    mine = builtin_rules().extended([], {FailureClass.CUDA_USER_BUG: [94]})
    assert classify(line, 1).failure_class is FailureClass.GPU_HARDWARE
    assert classify(line, 1, rules=mine).failure_class is FailureClass.CUDA_USER_BUG


def test_rules_survive_json():
    for file in builtin_files().values():
        for rule in file.rules:
            assert LogRule.model_validate_json(rule.model_dump_json()) == rule
