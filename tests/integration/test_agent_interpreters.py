"""`python` is the one that the user's shell would run. Real interpreters, real ranks."""

from __future__ import annotations

import json
import os
import sys
import venv
from pathlib import Path

from jobs.agent.interpreter import Interpreter, choose
from jobs.events import RankExited
from jobs.programs import find_program
from tests.agent_helpers import playground, start

TRAIN = """
import importlib.util, json, os, subprocess, sys
import babysit
run = babysit.init()
for step, batch in run.steps(range(3)):
    run.report(loss=1.0)
ours = [m for m in ("jobs", "monitors", "orchestrator", "tests") if importlib.util.find_spec(m)]
code = "import babysit; print(babysit.__version__)"
child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
with open(f"/proc/{os.getppid()}/cmdline") as file:
    parent = file.read()
print(json.dumps({"prefix": sys.prefix, "executable": sys.executable, "ours": ours,
    "child": child.stdout.strip(), "forked": "fork_server" in parent,
    "wrapped": os.environ.get("WRAPPED"), "step": run.step}))
"""


def make_venv(directory: Path) -> Path:
    """A venv without babysit; returns its `bin`."""
    venv.create(directory, symlinks=True, with_pip=False)
    return directory / "bin"


def make_wrapper(directory: Path, text: str) -> Path:
    """A directory whose `python` is a shell script."""
    directory.mkdir()
    (directory / "python").write_text(f"#!/bin/sh\n{text}\n")
    (directory / "python").chmod(0o755)
    return directory


async def said(root: Path, script: str, **spec) -> str:
    """The log of one rank that runs to its end."""
    root.mkdir()
    async with playground(root, script, **spec) as (server, agent):
        await server.send(start(ranks=(0,), world_size=1))
        exited = await server.event(RankExited)
        assert exited.code == 0, agent.log(1, 0)
        return agent.log(1, 0)


def path_with(first: Path) -> dict[str, str]:
    return {"PATH": f"{first}{os.pathsep}{os.environ['PATH']}"}


async def test_a_venv_without_babysit_gets_the_trainer_and_nothing_else_of_ours(tmp_path: Path):
    bin_ = make_venv(tmp_path / "env")
    found = json.loads(await said(tmp_path / "run", TRAIN, env=path_with(bin_)))
    assert found == {
        "prefix": str(tmp_path / "env"),
        "executable": str(bin_ / "python"),
        "ours": [],
        "child": "0.1.0",
        "forked": True,  # by a warm fork server of that very interpreter
        "wrapped": None,
        "step": 3,
    }


async def test_a_shell_around_python_finds_the_same_one(tmp_path: Path):
    bin_ = make_venv(tmp_path / "env")
    command = ("sh", "-c", "python train.py")
    found = json.loads(await said(tmp_path / "run", TRAIN, env=path_with(bin_), command=command))
    assert (found["prefix"], found["ours"]) == (str(tmp_path / "env"), [])
    assert (found["child"], found["step"]) == ("0.1.0", 3)


async def test_what_a_wrapper_sets_is_set(tmp_path: Path):
    text = f'export WRAPPED=yes\nexec {make_venv(tmp_path / "env")}/python "$@"'
    wrapper = make_wrapper(tmp_path / "bin", text)
    found = json.loads(await said(tmp_path / "run", TRAIN, env=path_with(wrapper)))
    assert (found["wrapped"], found["forked"]) == ("yes", True)


async def test_a_program_that_is_only_called_python_is_executed(tmp_path: Path):
    wrapper = make_wrapper(tmp_path / "bin", 'echo "not a python: $*"')
    log = await said(tmp_path / "run", "", env=path_with(wrapper))
    assert log == "not a python: train.py\n"


async def test_a_fork_server_that_never_starts_is_not_waited_for(tmp_path: Path):
    """The wrapper answers the question what it is, and then runs nothing but the script."""
    real = make_venv(tmp_path / "env") / "python"
    text = f'case "$*" in *fork_server*) exit 1;; esac; exec {real} "$@"'
    wrapper = make_wrapper(tmp_path / "bin", text)
    assert await said(tmp_path / "run", "print('ran')", env=path_with(wrapper)) == "ran\n"


def test_programs_are_found_as_a_shell_in_the_workdir_finds_them(tmp_path: Path):
    make_wrapper(tmp_path / "bin", "true")
    wrapper = str(tmp_path / "bin/python")
    assert find_program("python", "bin:/usr/bin", tmp_path) == wrapper
    assert find_program("bin/python", "/usr/bin", tmp_path) == wrapper
    assert find_program("python", "/nowhere", tmp_path) is None
    assert find_program("sh", None, tmp_path) is not None


def test_the_agents_own_interpreter_is_known_by_any_of_its_names(tmp_path: Path):
    own = path_with(Path(sys.executable).parent)
    for name in ("python", "python3", sys.executable):
        assert choose([name, "t.py"], tmp_path, own) == Interpreter((name, "t.py"), forks=True)
    (tmp_path / "python").symlink_to(sys.executable)  # by another way, so it has to be asked
    linked = choose(["python"], tmp_path, {"PATH": str(tmp_path)})
    assert linked.program in {sys.executable, str(tmp_path / "python")}


def test_where_path_has_no_python_it_is_babysits_own(tmp_path: Path):
    chosen = choose(["python", "t.py"], tmp_path, {"PATH": str(tmp_path)})
    assert chosen == Interpreter((sys.executable, "t.py"), forks=True)
    assert chosen.own
    other = choose(["python3.1", "t.py"], tmp_path, {"PATH": str(tmp_path)})
    assert other == Interpreter(("python3.1", "t.py"))
