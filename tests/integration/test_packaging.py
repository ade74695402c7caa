"""What `pip install babysit` brings, and what it does to the user's modules. Real wheels, venvs.

Of other projects' packages, the lean environments have real wheels, each of the lowest version that
pyproject.toml allows. The environment of `babysit[server]` borrows the packages of this process: it
proves that the wheel has all of ours, and tests/unit/test_project.py that the extra names all of
the others.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import tomllib
import zipfile
from pathlib import Path

import pytest

from babysit.installation import AGENT_MODULES
from jobs.events import RankExited, WorkerJoined
from tests.agent_helpers import AgentProcess, ControlPlane, start
from tests.environments import (
    ROOT,
    THIRD_PARTY,
    Installation,
    build,
    downloaded,
    unpacked,
    users_wheel,
)

PACKAGES = ("babysit", "jobs", "migrations", "monitors", "orchestrator")
NEEDS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
LOWEST = tuple(line.replace(">=", "==") for line in NEEDS)
"""The lowest version of every package of a lean installation, so an old pydantic too."""
TAKEN = {
    "jobs/__init__.py": "whose = 'installed'",
    "monitors/__init__.py": "whose = 'installed'",
    "migrations/__init__.py": "whose = 'installed'",
    "migrations/env.py": "raise SystemExit('the environment of a migration that is not ours')",
    "orchestrator.py": "whose = 'installed'",
}
"""What a user's own distribution has at its top."""
TRAIN = """
import json, os, sys
import babysit
run = babysit.init()
for step, batch in run.steps(range(3)):
    run.report(loss=1.0)
import jobs, migrations, monitors, orchestrator
import pydantic
print(json.dumps({
    "whose": [module.whose for module in (jobs, migrations, monitors, orchestrator)],
    "paths": [path for path in sys.path if "_packages" in path],
    "ours": sorted(name for name, module in sys.modules.items()
                   if "_packages" in str(getattr(module, "__file__", ""))),
    "rank": run.rank, "world": run.world_size, "step": run.step,
    "pydantic": pydantic.VERSION, "prefix": sys.prefix,
    "forked": "fork_server" in open(f"/proc/{os.getppid()}/cmdline").read(),
}))
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    return build(tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def taken(tmp_path_factory) -> Path:
    return users_wheel(tmp_path_factory.mktemp("taken"), "taken", TAKEN)


@pytest.fixture(scope="module")
def lean(tmp_path_factory, wheel, taken) -> Installation:
    """`pip install babysit` in an image with old packages and a distribution of the user's."""
    image = Installation(tmp_path_factory.mktemp("lean") / "venv")
    links = downloaded(*LOWEST)
    image.install(taken, *LOWEST, links=links)
    image.install(wheel, links=links)
    return image


@pytest.fixture(scope="module")
def whole(tmp_path_factory, wheel, taken) -> Installation:
    """`pip install 'babysit[server]'`; the user's distribution comes afterwards."""
    place = Installation(tmp_path_factory.mktemp("whole") / "venv")
    place.install(wheel)
    place.install(taken)
    place.lend(THIRD_PARTY)
    return place


def write_modules(folder: Path, whose: str) -> None:
    """A user's modules beside the script, some as folders and some as files."""
    for name in ("jobs", "migrations"):
        (folder / name).mkdir(parents=True)
        (folder / name / "__init__.py").write_text(f"whose = {whose!r}")
    for name in ("monitors", "orchestrator"):
        (folder / f"{name}.py").write_text(f"whose = {whose!r}")


def test_a_wheel_has_every_file_and_one_package_at_its_top(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        programs = archive.read("babysit-0.1.0.dist-info/entry_points.txt").decode()
    tracked = subprocess.run(
        ["git", "ls-files", *PACKAGES], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    expected = {re.sub(r"^(?!babysit/)", "babysit/_packages/", path) for path in tracked}
    assert expected - names == set()
    assert {name.partition("/")[0] for name in names} == {"babysit", "babysit-0.1.0.dist-info"}
    assert "babysit/py.typed" in names
    assert not [name for name in names if "__pycache__" in name or "/tests/" in name]
    assert re.findall(r"^babysit\S*", programs, re.MULTILINE) == [
        "babysit",
        "babysit-agent",
        "babysit-node-monitor",
    ]


def test_a_lean_installation_is_small_and_says_what_it_has_not(lean: Installation) -> None:
    brought = {"annotated-types", "pydantic-core", "typing-extensions"}
    named = {re.split("[>=]", line)[0] for line in NEEDS}
    assert lean.installed() == named | brought | {"babysit", "taken"}
    assert lean.damaged() == []

    for arguments in (("--version",), ("run", "run.yaml")):
        done = lean.run("babysit", *arguments)
        assert (done.returncode, done.stdout) == (2, "")
        assert re.fullmatch(r"babysit: .*`pip install 'babysit\[server\]'`.*\n", done.stderr)
    done = lean.run("python", "-P", "-m", "babysit.server")
    assert (done.returncode, "babysit[server]" in done.stderr) == (2, True)


def test_an_agent_without_its_packages_says_so(tmp_path: Path, wheel: Path) -> None:
    bare = Installation(tmp_path / "venv")
    bare.install(wheel)
    done = bare.run("babysit-agent", "config.json")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert all(module in done.stderr for module in AGENT_MODULES)
    alone = bare.run("python", "-c", "import babysit; print(babysit.init().world_size)")
    assert (alone.stdout, alone.stderr) == ("1\n", "")  # the trainer's side needs none


def test_an_agent_refuses_a_bad_configuration(lean: Installation, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"run": 1}')
    done = lean.run("babysit-agent", str(tmp_path / "config.json"))
    assert done.returncode == 2
    assert re.match(r".*/config.json: run: .*", done.stderr)
    assert done.stderr.count("\n") == 1
    done = lean.run("python", "-P", "-m", "babysit.agent")
    assert (done.returncode, done.stderr) == (2, "usage: babysit-agent CONFIG.json\n")


def test_two_ranks_without_an_agent(lean: Installation, tmp_path: Path) -> None:
    write_modules(tmp_path, "mine")
    (tmp_path / "train.py").write_text(TRAIN)
    for rank in ("0", "1"):
        done = lean.run("python", str(tmp_path / "train.py"), RANK=rank, WORLD_SIZE="2")
        found = json.loads(done.stdout)
        assert (found["rank"], found["world"], found["step"]) == (int(rank), 2, 3)
        assert (found["whose"], found["paths"], found["ours"]) == (["mine"] * 4, [], [])


async def ranks_said(root: Path, memory: Path, image: Installation, **environment: str):
    """What two ranks print that an agent of this installation starts."""
    async with ControlPlane().listening() as server:
        agent = AgentProcess(root, memory, server, env={"PATH": environment["PATH"]})
        agent.program = (image.program("babysit-agent"),)
        agent.environment = environment
        agent.start()
        try:
            await server.event(WorkerJoined)
            await server.send(start())
            for rank in (0, 1):
                ended = await server.event(RankExited, lambda event, rank=rank: event.rank == rank)
                assert ended.code == 0, agent.log(1, rank)
            await server.until(lambda: server.steps(0)[-1:] == server.steps(1)[-1:] == [3])
            return [json.loads(agent.log(1, rank).splitlines()[-1]) for rank in (0, 1)]
        finally:
            await agent.kill()


@pytest.mark.parametrize("whose", ["mine", "installed"])
async def test_ranks_of_an_installed_agent_have_modules_of_their_own(
    lean: Installation, tmp_path: Path, tmp_path_factory, whose: str
) -> None:
    """Names that we use too: beside the script, or in site-packages; and on the agent's path."""
    (tmp_path / "train.py").write_text(TRAIN)
    if whose == "mine":
        write_modules(tmp_path, whose)
    path = f"{lean.directory / 'bin'}:{os.defpath}"
    # An image often has its own code on PYTHONPATH: there it meets the agent, too.
    for found in await ranks_said(
        tmp_path, tmp_path_factory.mktemp("memory"), lean, PATH=path, PYTHONPATH=str(tmp_path)
    ):
        assert (found["whose"], found["paths"], found["ours"]) == ([whose] * 4, [], [])
        assert (found["world"], found["step"], found["forked"]) == (2, 3, True)
        assert found["pydantic"] == re.search(r"pydantic==(\S+)", " ".join(LOWEST))[1] + ".0"


async def test_beside_pydantic_1_the_agent_has_an_environment_of_its_own(
    lean: Installation, tmp_path: Path, tmp_path_factory
) -> None:
    """The way out that the documentation names: the ranks' Python gets the trainer's side alone."""
    old = Installation(tmp_path / "image")
    old.install("pydantic", links=downloaded("pydantic<2"))
    root = tmp_path / "run"
    write_modules(root, "mine")
    (root / "train.py").write_text(TRAIN)
    path = f"{old.directory / 'bin'}:{os.defpath}"
    for found in await ranks_said(root, tmp_path_factory.mktemp("memory"), lean, PATH=path):
        assert (found["pydantic"][:2], found["prefix"]) == ("1.", str(old.directory))
        assert (found["whose"], found["paths"], found["ours"]) == (["mine"] * 4, [], [])
        assert (found["step"], found["forked"]) == (3, True)


async def test_beside_transformers(wheel: Path, tmp_path: Path, tmp_path_factory) -> None:
    """It brings numpy, rich and typer: some of the extra `server`, which is not to be used so."""
    image = Installation(tmp_path / "image")
    image.install(wheel)
    image.lend(unpacked("transformers", *NEEDS))
    assert image.pip("check") == "No broken requirements found.\n"
    done = image.run("babysit", "ls")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert "babysit[server]" in done.stderr
    root = tmp_path / "run"
    write_modules(root, "mine")
    (root / "train.py").write_text(f"import transformers\n{TRAIN}")
    path = f"{image.directory / 'bin'}:{os.defpath}"
    for found in await ranks_said(root, tmp_path_factory.mktemp("memory"), image, PATH=path):
        assert (found["whose"], found["step"], found["forked"]) == (["mine"] * 4, 3, True)


def test_the_whole_product_from_a_wheel(whole: Installation, tmp_path: Path) -> None:
    """Outside of the checkout, among the user's modules: from no database to a run that ended."""
    write_modules(tmp_path / "work", "mine")
    (tmp_path / "work" / "train.py").write_text(TRAIN)
    (tmp_path / "work" / "run.yaml").write_text("name: tiny\ncommand: [python, train.py]\n")
    home = {"BABYSIT_HOME": str(tmp_path / "home"), "PYTHONPATH": str(tmp_path / "work")}
    assert whole.damaged() == []
    assert whole.run("babysit", "--version").stdout == "0.1.0\n"
    try:
        done = whole.run("babysit", "run", str(tmp_path / "work" / "run.yaml"), **home)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "tiny succeeded: " in done.stderr
        log = whole.run("babysit", "logs", "tiny", **home).stdout
        found = json.loads(re.search(r"\{.*\}", log)[0])
        assert (found["whose"], found["paths"], found["ours"]) == (["mine"] * 4, [], [])
    finally:
        whole.run("babysit", "server", "stop", **home)


def test_neither_distribution_takes_files_of_the_other(lean: Installation) -> None:
    """The user's came first here, and last in `whole`; each is whole there. Now theirs goes."""
    lean.pip("uninstall", "--yes", "taken")
    assert lean.damaged() == []
    assert lean.run("babysit-agent").stderr == "usage: babysit-agent CONFIG.json\n"
