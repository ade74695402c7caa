"""Scenarios: what they may say, and what is said about those that are wrong."""

from __future__ import annotations

import pytest

from jobs.yaml_file import SpecError
from orchestrator.simulation.scenario.loader import load, loads, parse_changes, shipped

GOOD = """\
name: tiny
days: 1
cluster: {nodes: 4, spares: 1}
runs:
  - spec:
      name: one
      command: [python, train.py]
      resources: {nodes: 4}
      checkpoint: {directory: /c, every_steps: 10}
    step_seconds: 2s
failures:
  - {name: faulty GPU, does: gpu_fault, expected: 3}
events:
  - {at: 2h, kind: run_held, run: one, reason: "look"}
"""


def complaint(text: str) -> str:
    with pytest.raises(SpecError) as caught:
        loads(text, "my.yaml")
    return str(caught.value)


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("nodes: 4, spares", "nodse: 4, spares", "my.yaml:3:11: cluster.nodse: no such field"),
        (
            "days: 1",
            "days: long",
            "my.yaml:2:7: days: expected a number above 0 and at most 3660, got",
        ),
        ("step_seconds: 2s", "step_seconds: soon", "my.yaml:10:19: runs[0].step_seconds: expected"),
        ("nodes: 4}\n      ", "nodes: 0}\n      ", "my.yaml:8:26: runs[0].spec.resources.nodes"),
        ("does: gpu_fault", "does: gpu", "my.yaml:12:30: failures[0].does: expected one of crash,"),
        (", expected: 3", "", "my.yaml:12:5: failures[0]: give exactly one of expected,"),
        ("kind: run_held", "kind: run_hold", "my.yaml:14:20: events[0].kind: expected one of"),
        ("run: one, reason", "rum: one, reason", "my.yaml:14:5: events[0].run: field required"),
        ("name: tiny\n", "name: tiny\n\t", "my.yaml:2:1: tab character"),
        (
            "days: 1\n",
            "days: 1\ndays: 2\n",
            "my.yaml:3:1: days: is given twice, first as 1, then as 2",
        ),
        ("days: 1", "days: 1e9", "my.yaml:2:7: days: expected a number above 0 and at most 3660"),
        (
            "nodes: 4, spares",
            "nodes: 1e12, spares",
            "my.yaml:3:18: cluster.nodes: expected an integer of at least 1 and",
        ),
        ("spares: 1", "lemons: 9", "my.yaml:3:29: cluster.lemons: expected at most 4 (cluster."),
        (
            "nodes: 4}\n      ",
            "nodes: 6}\n      ",
            "my.yaml:8:26: runs[0].spec.resources.nodes: expected at most 5 (cluster.nodes and",
        ),
        (
            "nodes: 4}\n      ",
            "nodes: 4, gpus_per_node: 9}\n      ",
            "my.yaml:8:44: runs[0].spec.resources.gpus_per_node: expected at most 8 (cluster.gpus",
        ),
        ("expected: 3", "expected: 1e7", "my.yaml:12:5: failures[0]: 10,000,000 failures are"),
        ("expected: 3", "at: [1h, 3d]", "my.yaml:12:50: failures[0].at[1]: expected a time before"),
        (
            "at: 2h",
            "at: 2d",
            "my.yaml:14:10: events[0].at: expected a time before the end after 86,400 s",
        ),
        ("expected: 3", "expected: 3, shape: 1e-4", "my.yaml:12:61: failures[0].shape: expected"),
        ("name: tiny", 'name: ""', "my.yaml:1:7: name: expected"),
        (
            "days: 1\n",
            "days: 1\nbegin: 9999-12-31\n",
            "my.yaml:3:8: begin: the year must be from 1970",
        ),
        (
            "spares: 1",
            "repair: {median: 1s, p99: 30d}",
            "my.yaml:3:29: cluster.repair: p99 is more than 1,000,000 times the median",
        ),
    ],
)
def test_problems_are_said_with_their_place(old: str, new: str, expected: str) -> None:
    assert old in GOOD
    assert expected in complaint(GOOD.replace(old, new))


def test_aliases_that_stand_for_each_other_are_refused_at_once() -> None:
    bomb = "a0: &a0 [x]\n" + "".join(
        f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 12)
    )
    assert "my.yaml:1:1: its aliases (*) stand for more than 1,000,000 values" in complaint(bomb)


def test_the_nearest_name_is_offered() -> None:
    assert "did you mean nodes?" in complaint(
        GOOD.replace("{nodes: 4, spares", "{nodse: 4, spares")
    )
    wrong = GOOD.replace("step_seconds:", "step_second:")
    assert "runs[0].step_second: no such field; did you mean step_seconds?" in complaint(wrong)
    renamed = GOOD.replace("      resources: {nodes: 4}", "      placement: {spares: 1}")
    assert "runs[0].spec.placement.spares: no such field; did you mean standbys?" in complaint(
        renamed
    )


def test_a_scenario_without_runs_is_none() -> None:
    head = GOOD.split("runs:", maxsplit=1)[0]
    assert complaint(head) == "my.yaml:1:1: give at least one of runs and populations"


def test_an_unknown_scenario_is_told_what_there_is() -> None:
    with pytest.raises(SpecError, match="no such file; shipped scenarios are crash_loop, fleet_1k"):
        load("llama4")


def test_shipped_scenarios_are_valid_and_bear_their_names() -> None:
    assert shipped() == [
        "crash_loop",
        "fleet_1k_jobs",
        "lemon_nodes",
        "llama3_16k",
        "switch_failure",
    ]
    for name in shipped():
        scenario = load(name).scenario()
        assert scenario.name == name
        assert scenario.description


def test_llama3_expects_what_llama3_met() -> None:
    scenario = load("llama3_16k").scenario()
    unplanned = [f.expected or 0 for f in scenario.failures if f.name != "planned maintenance"]
    assert sum(unplanned) == 419
    assert (scenario.cluster.nodes, scenario.cluster.gpus_per_node, scenario.days) == (2048, 8, 54)


def test_what_if_changes_single_fields() -> None:
    written = loads(GOOD)
    changes = parse_changes("spares=7, checkpoint=10min, seed=9,failure_rate=0.5")
    scenario = written.scenario(changes)
    assert (scenario.cluster.spares, scenario.seed, scenario.failure_rate) == (7, 9, 0.5)
    assert scenario.runs[0].spec.checkpoint.every_steps == 300  # steps take 2 s
    assert written.scenario().cluster.spares == 1


def test_an_interval_is_in_the_steps_of_the_variant() -> None:
    for text in ("checkpoint=10min,runs.0.step_seconds=6", "runs.0.step_seconds=6,checkpoint=600"):
        scenario = loads(GOOD).scenario(parse_changes(text))
        assert scenario.runs[0].spec.checkpoint.every_steps == 100


def test_what_if_reaches_any_field_by_its_path() -> None:
    written = loads(GOOD)
    changes = parse_changes("runs.0.spec.placement.standbys=2,failures.faulty GPU.expected=12")
    scenario = written.scenario(changes)
    assert scenario.runs[0].spec.placement.standbys == 2
    assert scenario.failures[0].expected == 12


def test_a_run_over_all_nodes_spans_more_nodes_too() -> None:
    scenario = loads(GOOD).scenario({"nodes": "8"})
    assert scenario.cluster.nodes == 8
    assert scenario.runs[0].spec.resources.nodes == 8


@pytest.mark.parametrize("text", ["spares", "=4", "spares=", "a=1,,b=2"])
def test_a_what_if_that_cannot_be_read(text: str) -> None:
    with pytest.raises(ValueError, match="expected KEY=VALUE"):
        parse_changes(text)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sparse": "1"}, "sparse: no such field"),
        ({"checkpoint": "often"}, "expected a duration"),
        ({"failures.meteor.expected": "1"}, "expected one of faulty GPU"),
        ({"nodes": "-1"}, "--what-if nodes=-1: cluster.nodes: expected an integer"),
        ({"nodes": "3", "cluster": "3"}, "cluster: expected"),
        ({"runs.0.step_seconds": "soon", "checkpoint": "10m"}, r"runs\[0\].step_seconds: expected"),
        ({"runs.0.spec.command.x": "1"}, "x: expected one of 0 to 1"),
    ],
)
def test_a_what_if_that_makes_no_sense(changes: dict[str, str], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        loads(GOOD).scenario(changes)
