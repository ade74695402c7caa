"""Wrong specs and requests: each is refused with what, where and what to do; nothing is made."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.control_plane import OK, USAGE, ControlPlane, Servers, control_plane

GOOD = "name: job\ncommand: [python, train.py]\n"


@pytest.fixture(scope="module")
def plane(servers: Servers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    """Two nodes with two cores and a gibibyte each."""
    limits = {"local_cpus_per_node": 2, "local_memory_per_node": 2**30}
    home = tmp_path_factory.mktemp("plane") / "home"
    with control_plane(servers, home, **limits) as running:
        yield running


@pytest.fixture
def spec(tmp_path: Path) -> Path:
    (tmp_path / "train.py").write_text("pass\n")
    (tmp_path / "a-file").touch()
    return tmp_path / "run.yaml"


@pytest.mark.parametrize(
    ("text", "line", "said"),
    [
        (GOOD + "resource: {nodes: 2}\n", "3:1: resource:", "did you mean resources?"),
        (GOOD + "resources:\n  node: 2\n", "4:3: resources.node:", "did you mean nodes?"),
        (GOOD + "resources: {nodes: two}\n", "3:20: resources.nodes:", 'got "two"'),
        (GOOD + "resources: {nodes: -1}\n", "3:20: resources.nodes:", "got -1"),
        (GOOD + "resources: {nodes: 0}\n", "3:20: resources.nodes:", "got 0"),
        (GOOD + "resources: {cpus_per_node: -2}\n", "resources.cpus_per_node:", "got -2"),
        (GOOD + "checkpoint: {every_steps: -5}\n", "checkpoint.every_steps:", "got -5"),
        (GOOD + "recovery: {user: -1}\n", "recovery.user:", "got -1"),
        (GOOD + "max_runtime: soon\n", "3:14: max_runtime:", 'got "soon"'),
        (GOOD + "env: [A, B]\n", "3:6: env:", "expected"),
        ("name: job\n", "command:", "is required"),
        ("name: Job One\ncommand: ['true']\n", "1:7: name:", "Job One"),
        ("name: job\ncommand: [python, gone.py]\n", "2:10: command:", "gone.py: no such file in"),
        ("name: job\ncommand: [./gone.sh]\n", "2:10: command:", "gone.sh: no such file in"),
        (GOOD + "workdir: nowhere\n", "3:10: workdir:", "no such directory"),
        (GOOD + "workdir: a-file\n", "3:10: workdir:", "is not a directory"),
        (
            GOOD + "checkpoint: {directory: a-file/checkpoints}\n",
            "3:25: checkpoint.directory:",
            "is not a directory",
        ),
        (
            GOOD + "checkpoint: {directory: /proc/checkpoints}\n",
            "3:25: checkpoint.directory:",
            "cannot be written",
        ),
        ("name: job\n  command: [x\n", ":2:", ""),
        ("", "", "is empty"),
    ],
)
def test_a_wrong_spec(plane: ControlPlane, spec: Path, text: str, line: str, said: str) -> None:
    """File, line, column, field, what was expected; exit code 2; no run, no directory."""
    spec.write_text(text)
    before = sorted(spec.parent.rglob("*"))
    for command in ("submit", "run"):
        result = plane.babysit(command, spec)
        assert result.exit_code == USAGE, result.output
        assert str(spec) in result.stderr
        assert line in result.stderr
        assert said in result.stderr
        assert result.stdout == ""
    assert sorted(spec.parent.rglob("*")) == before
    nothing_is_made(plane)


def nothing_is_made(plane: ControlPlane) -> None:
    assert plane.ask("ls") == []
    assert not list(plane.home.glob("runs/*"))
    assert plane.processes() == []
    assert not plane.memory().exists()


@pytest.mark.parametrize(
    ("resources", "said"),
    [
        ("{nodes: 3}", "asks for 3 x (0 GPUs, 1 CPUs) but the cluster has 2 nodes"),
        ("{nodes: {min: 3, max: 4}}", "asks for 3 x"),
        ("{cpus_per_node: 64}", "of at most (0 GPUs, 2 CPUs, 1.0 GiB), of which 0 fit"),
        ("{gpus_per_node: 8}", "asks for 1 x (8 GPUs, 1 CPUs) but the cluster has 2 nodes"),
        ("{memory_per_node: 4Gi}", "asks for 1 x (0 GPUs, 1 CPUs, 4.0 GiB)"),
    ],
)
def test_more_than_the_cluster_has(
    plane: ControlPlane, spec: Path, resources: str, said: str
) -> None:
    """Refused at once, with what the cluster has: such a run would wait for ever."""
    spec.write_text(GOOD + f"resources: {resources}\n")
    result = plane.babysit("submit", spec)
    assert result.exit_code == USAGE, result.output
    assert said in result.stderr
    nothing_is_made(plane)


def test_every_problem_is_told_at_once(plane: ControlPlane, spec: Path) -> None:
    """Nobody wants to be told one after the other."""
    spec.write_text(
        "nam: job\ncommand: [python, train.py]\nresources: {nodes: x}\npriority: urgent\n"
    )
    result = plane.babysit("submit", spec)
    assert result.exit_code == USAGE
    for field in ("nam:", "name:", "resources.nodes:", "priority:"):
        assert field in result.stderr
    nothing_is_made(plane)


@pytest.mark.parametrize(
    "arguments",
    [
        ["submit", "no-such-file.yaml"],
        ["submit"],
        ["frobnicate"],
        ["ls", "--state", "sleeping"],
        ["wait", "x", "--for", "sunrise"],
        ["wait", "x", "--timeout", "soon"],
        ["rollback", "x", "--to", "-1"],
        ["rollback", "x", "--skip", "5"],
        ["logs", "x", "--rank", "-1"],
        ["nodes", "cordon", "node-1"],
        ["show", "x", "-o", "xml"],
    ],
)
def test_a_wrong_command(plane: ControlPlane, arguments: list[str]) -> None:
    """Usage errors end with 2, on stderr."""
    result = plane.babysit(*arguments)
    assert (result.exit_code, result.stdout) == (USAGE, "")
    assert result.stderr


def test_a_spec_may_come_from_elsewhere(
    plane: ControlPlane,
    spec: Path,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """Paths in a spec are relative to the spec, wherever the command is given."""
    spec.write_text(GOOD)
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    assert plane.babysit("run", spec).exit_code == OK
