"""A wrong spec is told in one line for each problem: where, which field, what was expected."""

# ruff: noqa: E501 -- the messages stand as they are printed

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from jobs.schema import run_schema, schema_text
from jobs.spec_file import ALIASES, MAX_BYTES, SpecError, load, loads, read, resolve
from tests.plane import spec

ROOT = Path(__file__).parents[2]
GOOD = "name: a\ncommand: [python, t.py]\n"
TOP = (
    "name, queue, project, owner, priority, command, workdir, upload, launcher, env, env_from, image, kubernetes, ray, "
    "resources, placement, preload, checkpoint, watch, resume, monitors, recovery, notify, grace, max_runtime"
)
DURATION = "a duration such as 90s, 10m, 1h30m or 14d above 0"
WRONG = {
    "resources:\n  nodes: two": '4:10: resources.nodes: expected an integer of at least 1, or {min, max}, got "two"',
    "resources:\n  nodes: -1": "4:10: resources.nodes: expected an integer of at least 1, or {min, max}, got -1",
    "resources: {nodes: {min: 4, max: 2}}": "3:20: resources.nodes: max (2) is below min (4)",
    "resources: {nodes: {min: 1}}": "3:20: resources.nodes.max: is required: an integer of at least 1",
    "resources: {nodes: {min: 0, max: 1}}": "3:26: resources.nodes.min: expected an integer of at least 1, got 0",
    "resorces: {}": "3:1: resorces: no such field; did you mean resources?",
    "nodes: 2": "3:1: nodes: no such field here; did you mean resources.nodes?",
    "placement: {spares: 1}": "3:13: placement.spares: no such field; did you mean standbys?",
    "spares: 1": "3:1: spares: no such field here; did you mean placement.standbys?",
    "retries: 5": "3:1: retries: no such field; did you mean recovery?",
    "resources: {gpus: 8}": "3:13: resources.gpus: no such field; did you mean gpus_per_node?",
    "resources: {mem: 1Gi}": "3:13: resources.mem: no such field; did you mean memory_per_node?",
    "resources: {processes: 1}": "3:13: resources.processes: no such field; did you mean processes_per_node?",
    "dir: x": "3:1: dir: no such field; did you mean workdir?",
    "checkpoint: {dir: x}": "3:14: checkpoint.dir: no such field; did you mean directory?",
    "Timeout: 1h": "3:1: Timeout: no such field; did you mean max_runtime?",
    "zzz: 1": f"3:1: zzz: no such field; the spec has {TOP}",
    "1: x": f"3:1: [1]: no such field; the spec has {TOP}",
    "recovery: {zzz: 1}": "3:12: recovery.zzz: no such field; recovery has infrastructure, user, anomaly, stop_on, retry_on, stop_known",
    "checkpoint: {every: 3}": "3:14: checkpoint.every: no such field; did you mean every_steps?",
    "checkpoint: {everysteps: 3}": "3:14: checkpoint.everysteps: no such field; did you mean every_steps?",
    "checkpoint: {keep: true}": "3:20: checkpoint.keep: expected an integer of at least 1, got true",
    "checkpoint: {memory_every_steps: -2}": "3:34: checkpoint.memory_every_steps: expected an integer of 0 or more, got -2",
    "monitors: {hang: {after: soon}}": f'3:26: monitors.hang.after: expected auto, or {DURATION}, got "soon"',
    "monitors: {hang: {after: -1}}": f"3:26: monitors.hang.after: expected auto, or {DURATION}, got -1",
    "monitors: {loss_spike: {action: maybe}}": '3:33: monitors.loss_spike.action: expected one of observe, ask, act, got "maybe"',
    "max_runtime: 9999999d": '3:14: max_runtime: "9999999d" is too large: at most 3,155,760,000',
    f"max_runtime: {'9' * 400}d": "3:14: max_runtime: "
    f'"{"9" * 57}…" is too large: at most 3,155,760,000',
    "monitors: {hang: {after: 9999999d}}": '3:26: monitors.hang.after: "9999999d" is too large: at most 3,155,760,000',
    "resources: {nodes: 99999999}": "3:20: resources.nodes: 99999999 is too large: at most 1,000,000",
    "resources: {memory_per_node: 9000000Ti}": '3:30: resources.memory_per_node: "9000000Ti" is too large: at most 1,152,921,504,606,846,976',
    'env: {"A=B": x}': "3:14: env.A=B: 'A=B' cannot be the name of an environment variable: it is empty or has a `=`",
    'env: {A: "x\\0y"}': "3:10: env.A: has a NUL character, which no process can be given",
    "grace: 2h": f'3:8: grace: expected {DURATION} and at most 3600, got "2h"',
    "grace: 0s": f'3:8: grace: expected {DURATION} and at most 3600, got "0s"',
    "max_runtime: 5 parsecs": f'3:14: max_runtime: expected {DURATION}, got "5 parsecs"',
    "resources: {memory_per_node: lots}": '3:30: resources.memory_per_node: expected a size such as 512Mi, 2Gi or 16G of 0 or more, got "lots"',
    "resources: {cpus_per_node: .inf}": "3:28: resources.cpus_per_node: expected a number above 0, got inf",
    "resources: {cpus_per_node: .nan}": "3:28: resources.cpus_per_node: expected a number above 0, got nan",
    "resources: 5": "3:12: resources: expected {nodes, processes_per_node, gpus_per_node, cpus_per_node, memory_per_node}, got 5",
    "priority: hi": '3:11: priority: expected one of low, normal, high, critical, got "hi"',
    "queue: Foo Bar": '3:8: queue: expected lower-case letters, digits, dots and dashes (at most 63), got "Foo Bar"',
    "queue: !x y": "3:8: queue: expected lower-case letters, digits, dots and dashes (at most 63), got the tag !x",
    "notify: {slack: ops}": '3:17: notify.slack: expected a channel or a person such as "#training" or "@mia", got "ops"',
    "env: {A: [1]}": "3:10: env.A: expected a string or a number or true or false, got a list",
    "env: hello": '3:6: env: expected a mapping of names to values, got "hello"',
    "preload: torch": '3:10: preload: expected a list such as [a, b], got "torch"',
    "workdir: 2024-01-01": '3:10: workdir: expected a string, got 2024-01-01; put it in quotes: "2024-01-01"',
    "name: b": "3:1: name: is given twice, first as a, then as b",
    "resources:\n\tnodes: 1": "4:1: tab character; indent with spaces",
    "q: b: c": "3:5: a `:` where no mapping can begin; check the indentation, or quote the text",
    "---\na: 1": "3:1: a second document begins here (---); one file holds one run",
    "q: \x01": "3:4: character #x0001 is not allowed in YAML",
    "q: *x": "3:4: YAML: found undefined alias 'x'",
    "resources [x]\nenv: {}": "3:1: a `:` is missing after resources",
    "resources:\n  nodes 2\n  gpus_per_node: 1": "4:3: a `:` is missing after nodes",
    "queue q\nenv: {}": "3:1: a `:` is missing after queue",
    "queue [q": "3:1: a `:` is missing after queue",
    "x: 1": f"3:1: x: no such field; the spec has {TOP}",
    'resources: {nodes: "2"}': '3:20: resources.nodes: expected an integer of at least 1, or {min, max}, got "2"; write it without quotes',
    'resources: {cpus_per_node: "0.5"}': '3:28: resources.cpus_per_node: expected a number above 0, got "0.5"; write it without quotes',
    "q: [1": "3:6: YAML: expected ',' or ']', but got '<stream end>' (while parsing a flow sequence)",
}


@pytest.mark.parametrize("addition", WRONG)
def test_each_problem_is_one_line_with_its_place(addition: str) -> None:
    with pytest.raises(SpecError) as caught:
        loads(GOOD + addition)
    assert str(caught.value) == f"run.yaml:{WRONG[addition]}"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "run.yaml: is empty; `babysit init` writes a starter"),
        ("# nothing\n", "run.yaml: is empty; `babysit init` writes a starter"),
        ("- a", "run.yaml:1:1: expected a mapping of fields, got a list"),
        ("hello", 'run.yaml:1:1: expected a mapping of fields, got "hello"'),
        ("[" * 5000, "run.yaml: is nested too deeply"),
        (
            "x" * (MAX_BYTES + 1),
            "run.yaml: is larger than 1,000,000 bytes, too large for a run spec",
        ),
    ],
)
def test_what_is_no_mapping_is_refused(text: str, message: str) -> None:
    with pytest.raises(SpecError) as caught:
        loads(text)
    assert str(caught.value) == message


def test_every_alias_leads_to_a_field_that_exists() -> None:
    for name, fields in ALIASES.items():
        for field in fields:
            *above, _ = field.split(".")
            text = name + ": x" if not above else above[0] + ": {" + name + ": x}"
            with pytest.raises(SpecError, match=rf"did you mean {field.split('.')[-1]}\?"):
                loads(GOOD + text)


def test_all_problems_are_told_at_once_in_order() -> None:
    with pytest.raises(SpecError) as caught:
        loads("command: python train.py\nresourcs: {}\nqueue: A\n")
    assert str(caught.value).splitlines() == [
        "run.yaml:1:1: name: is required: lower-case letters, digits, dots and dashes (at most 63)",
        'run.yaml:1:10: command: expected a non-empty list such as [a, b], got "python train.py"',
        "run.yaml:2:1: resourcs: no such field; did you mean resources?",
        'run.yaml:3:8: queue: expected lower-case letters, digits, dots and dashes (at most 63), got "A"',
    ]


def test_a_number_in_a_command_asks_for_quotes() -> None:
    with pytest.raises(SpecError, match=r'2:34: command\[3\]: .*put it in quotes: "200"'):
        loads("name: a\ncommand: [python, t.py, --steps, 200]")


def test_units_and_plain_values_are_understood() -> None:
    spec = loads(
        GOOD + "max_runtime: 1h30m\nresources: {nodes: {min: 1, max: 2}, memory_per_node: 2Gi}\n"
        "env: {A: true, B: 1}\nmonitors: {hang: {after: 90s}}\n"
    )
    assert spec.max_runtime == 5400
    assert (
        loads(GOOD + 'max_runtime: "60"').max_runtime
        == loads(GOOD + "max_runtime: 60s").max_runtime
    )
    assert spec.resources.memory_per_node == 2 * 2**30
    assert spec.env == {"A": "true", "B": "1"}
    assert spec.monitors.hang.after == 90


def test_numbers_in_the_environment_are_as_they_were_written() -> None:
    """Python's 12.1, 16 and 0.001 are other texts than CUDA's version 12.10, 0x10 and 1e-3."""
    texts = "1.50 12.10 0x10 012 1e-3 1E5 1_000 .5 -1.50 5. 0o17 10000000000000000000000 7 -3"
    more = "True false TRUE 2.0e-3 +5 007"
    for text in [*texts.split(), *more.split()]:
        assert loads(f"{GOOD}env: {{A: {text}}}").env["A"].lstrip("+") == text.lstrip("+")
        assert loads(f"{GOOD}env:\n  B: x\n  A: {text} # why\n").env["A"] in (text, text[1:])
    shared = (
        "x-c: &c {A: 1.10, B: 1}\n" + GOOD + "env:\n  <<: *c\n  B: 2.0\n  C: &t True\n  D: *t\n"
    )
    assert loads(shared).env == {"A": "1.10", "B": "2.0", "C": "true", "D": "true"}


def test_the_schema_and_the_reader_agree_on_numbers_as_text() -> None:
    """What an editor with the schema marks as wrong is refused, and nothing else is."""
    properties = {**run_schema()["properties"], **run_schema()["$defs"]["Checkpoint"]["properties"]}
    for field, node in properties.items():
        types = node.get("type", "")
        where = "checkpoint: {" + field if field not in run_schema()["properties"] else field
        text = f"{GOOD}{where}: '5'" + ("}" if "{" in where else "")
        if types in ("integer", "number"):
            with pytest.raises(SpecError, match="write it without quotes"):
                loads(text)
        elif types == ["number", "string"]:
            loads(text)
    assert loads(GOOD + "max_runtime: '5'").max_runtime == 5
    assert loads(GOOD + "env: {A: '5'}").env == {"A": "5"}


def test_keys_for_anchors_are_left_alone() -> None:
    text = "x-defaults: &d {nodes: 2}\nx-more: [1]\n" + GOOD + "resources: {<<: *d}\n"
    assert loads(text).resources.nodes == 2
    assert run_schema()["patternProperties"] == {"^x-": {}}
    with pytest.raises(SpecError, match=r"resources\.x-a: no such field"):
        loads(GOOD + "resources: {x-a: 1}")


def test_a_missing_colon_on_the_last_line_is_found_there() -> None:
    with pytest.raises(SpecError, match="2:1: a `:` is missing after command"):
        loads("name: a\ncommand [python, t.py]\n")


def test_a_program_that_is_not_on_path_is_named(tmp_path: Path) -> None:
    (tmp_path / "train.py").touch()
    path = "2:10: command: {}: no such program on PATH"
    for program, hint in (("train.py", "; write [python, train.py]"), ("pyhton", "")):
        said = resolved(tmp_path, f"name: a\ncommand: [{program}, train.py]\n")
        assert said == path.format(program) + hint
    tool = tmp_path / "bin" / "tool"
    tool.parent.mkdir()
    tool.write_text("#!/bin/sh\n")
    tool.chmod(0o755)
    own = f"name: a\ncommand: [tool]\nenv: {{PATH: {tool.parent}}}\n"
    assert resolve(loads(own), tmp_path).command == ("tool",)


def test_anchors_and_merges_work() -> None:
    text = "name: a\ncommand: ['true']\nresources: &r {nodes: 2}\nplacement: {<<: {standbys: 1}}\n"
    assert loads(text).placement.standbys == 1


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    for path, message in {
        tmp_path / "nope.yaml": "no such file; `babysit init` writes a starter",
        tmp_path: "is a directory; name a YAML file in it",
        tmp_path / "binary": "is not UTF-8 text (byte 0)",
    }.items():
        with pytest.raises(SpecError) as caught:
            load(path)
        assert str(caught.value) == f"{path}: {message}"


def resolved(directory: Path, text: str) -> str:
    """What resolving a spec of this text complains of."""
    file = directory / "run.yaml"
    file.write_text(text)
    parsed, source = read(file)
    before = sorted(directory.rglob("*"))
    with pytest.raises(SpecError) as caught:
        resolve(parsed, directory, source)
    assert sorted(directory.rglob("*")) == before, "resolving must leave nothing behind"
    return str(caught.value).removeprefix(f"{file}:")


def test_resolving_makes_directories_absolute_and_makes_none(tmp_path: Path) -> None:
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "t.py").touch()
    text = "name: a\ncommand: [python, -u, t.py]\nworkdir: code\ncheckpoint: {directory: ck/x}"
    ready = resolve(loads(text), tmp_path)
    assert ready.workdir == str(tmp_path / "code")
    assert ready.checkpoint.directory == str(tmp_path / "code" / "ck" / "x")
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["code", "t.py"]


def test_what_does_not_exist_is_found_before_anything_is_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert resolved(tmp_path, GOOD) == f"2:10: command: t.py: no such file in {tmp_path}"
    assert (
        resolved(tmp_path, "name: a\ncommand: [./go.sh]\n")
        == f"2:10: command: ./go.sh: no such file in {tmp_path}"
    )
    assert (
        resolved(tmp_path, "name: a\ncommand: [./file]") == "2:10: command: ./file: not executable"
    )
    assert resolved(tmp_path, "name: a\ncommand: [python]").startswith(
        "2:10: command: expected a script"
    )
    assert (
        resolved(tmp_path, GOOD + "workdir: away")
        == f"3:10: workdir: no such directory: {tmp_path / 'away'}"
    )
    assert (
        resolved(tmp_path, GOOD + "workdir: file")
        == f"3:10: workdir: is not a directory: {tmp_path / 'file'}"
    )
    assert (
        resolved(tmp_path, "name: a\ncommand: [sh]\ncheckpoint: {directory: file/x}")
        == f"3:25: checkpoint.directory: cannot be created: {tmp_path / 'file'} is not a directory"
    )
    assert resolved(
        tmp_path, "name: a\ncommand: [sh]\ncheckpoint: {directory: s3://b/x}"
    ).startswith("3:25: checkpoint.directory: expected a directory every node can reach")


def test_one_place_has_one_name(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    text = "name: a\ncommand: [sh]\ncheckpoint: {directory: link/../real/./checkpoints}"
    found = resolve(loads(text), tmp_path).checkpoint.directory
    assert found == str(tmp_path.resolve() / "real" / "checkpoints")


@pytest.mark.skipif(not Path("/proc/sys").is_dir(), reason="needs /proc")
def test_a_directory_that_cannot_be_written(tmp_path: Path) -> None:
    # Even root cannot make files in /proc.
    text = "name: a\ncommand: [sh]\ncheckpoint: {directory: /proc/self/checkpoints}"
    assert "checkpoint.directory: /proc/self/checkpoints cannot be written" in resolved(
        tmp_path, text
    )


@pytest.mark.parametrize(
    "command",
    [["python", "-m", "pkg"], ["python3.11", "-c", "pass"], ["bash", "x"], ["python", "-"]],
)
def test_commands_without_a_script_are_left_alone(command: list[str], tmp_path: Path) -> None:
    assert resolve(spec(command=command), tmp_path).command == tuple(command)


def test_an_image_brings_its_own_script(tmp_path: Path) -> None:
    assert resolve(spec(image="registry/train:1"), tmp_path).image == "registry/train:1"


def test_the_committed_schema_is_the_schema() -> None:
    committed = (ROOT / "docs" / "run.schema.json").read_text()
    assert committed == schema_text(), "run: babysit schema > docs/run.schema.json"
    assert json.loads(committed)["required"] == ["name", "command"]


def test_the_starter_and_the_template_are_valid() -> None:
    for name in ("starter", "tiny_gpt"):
        file = ROOT / "jobs" / "templates" / name / "run.yaml"
        assert resolve(load(file), file.parent).workdir == os.fspath(file.parent)


def numbers_without_limit(node: object, name: str = "") -> list[str]:
    """Places in a schema where a number may be as large as anybody likes."""
    if isinstance(node, list):
        return [place for each in node for place in numbers_without_limit(each, name)]
    if not isinstance(node, dict):
        return []
    found = [place for key, each in node.items() for place in numbers_without_limit(each, key)]
    kinds = node.get("type")
    is_number = kinds in {"integer", "number"} if isinstance(kinds, str) else bool(kinds)
    is_text = isinstance(kinds, list) and "boolean" in kinds  # the value of a variable
    limited = "maximum" in node or not is_number or is_text
    return found if limited else [*found, name]


def test_every_number_of_a_spec_has_a_limit() -> None:
    """One that overflows a timer or a column would fail for everybody, long after submission."""
    schema = run_schema()
    theirs = {"HyperPodRule", "RuleFile"}  # figures in files of rules, which name no deadline
    schema["$defs"] = {name: d for name, d in schema["$defs"].items() if name not in theirs}
    assert numbers_without_limit(schema) == []
