"""Runs without a spec: `babysit submit -- torchrun …`."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from jobs.spec import RunSpec
from jobs.spec_file import loads
from tests.cli import babysit, connect, data
from tests.plane import Plane

USAGE = 2


@pytest.fixture(scope="module")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Plane]:
    """A control plane over simulated nodes."""
    with Plane(tmp_path_factory.mktemp("home")) as running:
        yield running


@pytest.fixture(autouse=True)
def connected(plane: Plane, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The command line speaks to it, from a directory with a script."""
    connect(plane, monkeypatch, tmp_path)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "Train_GPT.py").write_text("")


def printed(*words: str) -> RunSpec:
    """The spec of a command line."""
    return loads(babysit("submit", "--print-spec", *words).stdout)


def test_a_command_becomes_a_run(plane: Plane) -> None:
    """The launcher is gone, its numbers are the gang's, and superfluous options are told."""
    given = ("--", "torchrun", "--max-restarts=2", "--nproc_per_node", "2", "Train_GPT.py", "-x")
    result = babysit("submit", "-o", "name", *given)
    run = result.stdout.strip()
    assert "--max-restarts=2 has no effect: babysit restarts" in result.stderr
    assert data("show", run)["name"] == "train-gpt"
    stored = plane.controller.state.runs[data("show", run)["id"]].spec
    assert stored.command == ("python", "Train_GPT.py", "-x")
    assert stored.resources.processes_per_node == 2
    assert stored.launcher == "torchrun"
    babysit("cancel", run)


def test_the_spec_is_printed_and_can_be_kept(tmp_path: Path) -> None:
    """Options and fields are in the spec that is shown; nothing is submitted."""
    spec = printed(
        "--nodes", "1:2", "--gpus", "0", "--checkpoints", "ck", "--set", "grace=2m",
        "--set", "resources.memory_per_node=1Gi", "--processes", "3", "--", "./go.sh",
    )  # fmt: skip
    assert (spec.name, spec.command) == ("go.sh", ("./go.sh",))
    assert spec.resources.max_nodes == 2
    assert spec.resources.processes_per_node == 3
    assert spec.resources.memory_per_node == 2**30
    assert spec.checkpoint.directory == "ck"
    assert (spec.grace, spec.workdir) == (120.0, str(tmp_path))


def test_who_gets_the_variables_of_torchrun() -> None:
    """One process gets none, unless its launcher would have set them."""
    assert printed("--", "python", "Train_GPT.py").launcher is None
    assert printed("--", "torchrun", "Train_GPT.py").launcher == "torchrun"
    assert printed("--", "accelerate", "launch", "--cpu", "Train_GPT.py").launcher is None


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--", "torchrun", "--numa-binding", "node", "t.py"], "numactl"),
        (["--"], "expected a command after --"),
        ([], "expected a spec, or a command after --"),
        (["run.yaml", "--", "true"], "got both"),
        (["torchrun", "--nproc_per_node", "2", "t.py"], "write -- before it"),
        (["Train_GPT.py"], "write -- before it"),
        (["--name", "x", "run.yaml"], "--name is for a command after --"),
        (["--processes", "2", "--", "torchrun", "t.py"], "leave --processes out"),
        (["--set", "nonsense=1", "--", "true"], "nonsense: no such field"),
        (["--set", "nonsense", "--", "true"], "expected FIELD=VALUE"),
        (["--nodes", "two", "--", "true"], "expected a number, or MIN:MAX"),
        (["--", "python", "nowhere.py"], "nowhere.py: no such file in"),
        (["--", "true", os.fsdecode(b"caf\xe9")], r"'caf\udce9': expected UTF-8"),
    ],
)
def test_mistakes_are_usage(words: list[str], said: str) -> None:
    """Each mistake is one line without a place in a spec that nobody has seen."""
    result = babysit("submit", *words)
    assert result.exit_code == USAGE
    assert said in " ".join(result.stderr.split())
    assert "the command line:" not in result.stderr


def test_a_launcher_in_a_spec_is_warned_of(tmp_path: Path) -> None:
    """It is left as it is, and the warning says how to replace it."""
    (tmp_path / "run.yaml").write_text("name: nested\ncommand: [torchrun, Train_GPT.py]\n")
    result = babysit("submit", "run.yaml", "-o", "name")
    babysit("cancel", result.stdout.strip())
    assert "run.yaml:2:10: command: torchrun starts ranks of its own" in result.stderr


def test_the_interpreter_of_a_launcher_is_kept(tmp_path: Path) -> None:
    """A launcher of another venv runs its scripts with that venv's Python."""
    python = tmp_path / "venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.symlink_to("/bin/true")
    (python.parent / "torchrun").write_text(f"#!{python}\n")
    (python.parent / "torchrun").chmod(0o755)
    spec = printed("--", str(python.parent / "torchrun"), "Train_GPT.py")
    assert spec.command == (str(python), "Train_GPT.py")
