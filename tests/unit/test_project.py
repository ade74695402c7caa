"""The rules of the project that no tool holds by itself."""

from __future__ import annotations

import ast
import importlib.metadata
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from babysit.installation import AGENT_MODULES, SERVER_MODULES

ROOT = Path(__file__).parents[2]
PACKAGES = ("babysit", "monitors", "jobs", "orchestrator", "migrations")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
SOURCES = sorted(
    file for folder in (*PACKAGES, "benchmarks") for file in (ROOT / folder).rglob("*.py")
)

PARTS = {"starlette": "fastapi", "pydantic-core": "pydantic"}
"""Distributions that belong to another one, whose versions they follow."""

MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 80
MAX_CLASS_LINES = 300


def name_of(file: Path) -> str:
    return str(file.relative_to(ROOT))


def definitions() -> Iterator[tuple[Path, ast.stmt, int]]:
    """Every function and class, with its length in lines."""
    for file in SOURCES:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                yield file, node, (node.end_lineno or node.lineno) - node.lineno + 1


def test_files_are_short() -> None:
    lengths = {name_of(file): len(file.read_text().splitlines()) for file in SOURCES}
    assert {name: n for name, n in lengths.items() if n > MAX_FILE_LINES} == {}


def test_functions_and_classes_are_short() -> None:
    too_long = {
        f"{name_of(file)}:{node.lineno}": length
        for file, node, length in definitions()
        if length > (MAX_CLASS_LINES if isinstance(node, ast.ClassDef) else MAX_FUNCTION_LINES)
    }
    assert too_long == {}


def imports(file: Path) -> set[str]:
    """Top-level names of the modules that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            found.add(node.module.partition(".")[0])
    return found


def declared() -> set[str]:
    """Every distribution that pyproject.toml names, extras included, normalised."""
    project = PROJECT["project"]
    groups = [project["dependencies"], *project["optional-dependencies"].values()]
    names = {re.split(r"[^A-Za-z0-9._-]", line)[0] for group in groups for line in group}
    return {normalised(name) for name in names}


def normalised(name: str) -> str:
    """A distribution's name as package indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def test_what_is_imported_is_declared() -> None:
    """A package that is here only because another one brought it will one day be gone."""
    distributions = importlib.metadata.packages_distributions()
    known = declared()
    undeclared = {}
    for file in SOURCES:
        for module in imports(file) - set(sys.stdlib_module_names) - set(PACKAGES):
            bringers = {normalised(name) for name in distributions.get(module, ())}
            if bringers and not {PARTS.get(name, name) for name in bringers} & known:
                undeclared[f"{name_of(file)}: {module}"] = bringers
    assert undeclared == {}


def distributions_of(*files: Path) -> set[str]:
    """Distributions of others that files import, normalised."""
    known = importlib.metadata.packages_distributions()
    modules = set().union(*map(imports, files)) - set(sys.stdlib_module_names) - set(PACKAGES)
    return {normalised(name) for module in modules for name in known.get(module, ())}


def names(requirements: list[str]) -> set[str]:
    return {normalised(re.split(r"[^A-Za-z0-9._-]", line)[0]) for line in requirements}


def test_an_agent_needs_only_the_packages_of_a_lean_installation() -> None:
    """A training image has its own versions of the rest, or nothing."""
    files = [
        file
        for folder in ("jobs", "monitors")
        for file in (ROOT / folder).rglob("*.py")
        if "templates" not in file.parts
    ]
    lean = names(PROJECT["project"]["dependencies"])
    # A node monitor reads GPUs with the extra; without it, it says that it is blind.
    extra = names(PROJECT["project"]["optional-dependencies"]["nvidia"])
    assert distributions_of(*files) - lean - extra == set()
    known = importlib.metadata.packages_distributions()
    assert {normalised(known[module][0]) for module in AGENT_MODULES} == lean - {"py-spy"}


def test_the_program_knows_what_the_extra_server_brings() -> None:
    known = importlib.metadata.packages_distributions()
    listed = {normalised(known[module][0]) for module in SERVER_MODULES}
    project = PROJECT["project"]
    extra = names(project["optional-dependencies"]["server"]) - names(project["dependencies"])
    assert listed == extra


def test_importing_babysit_loads_the_standard_library_only() -> None:
    """It is imported inside the user's process: it must not drag anything in."""
    code = (
        "import sys; before = set(sys.modules); import babysit; babysit.init; "
        "print(*{name.partition('.')[0] for name in set(sys.modules) - before})"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert set(result.stdout.split()) - set(sys.stdlib_module_names) == {"babysit"}


def test_torch_is_pinned_for_us_and_open_for_users() -> None:
    """An unpinned torch pulls gigabytes of CUDA where these tests run."""
    constraints = (ROOT / "constraints.txt").read_text()
    assert re.search(r"^torch==\d+\.\d+\.\d+$", constraints, re.MULTILINE)
    assert all("==" not in line for line in PROJECT["project"]["optional-dependencies"]["torch"])


def test_wheels_hold_every_package() -> None:
    wheel = PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert set(wheel["only-include"]) == set(PACKAGES)
    private = set(PACKAGES) - {"babysit"}
    assert wheel["sources"] == {name: f"babysit/_packages/{name}" for name in private}


def test_make_says_what_it_can_do() -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = re.findall(r"^([a-z]+):.* ## ", makefile, re.MULTILINE)
    printed = subprocess.run(
        ["make", "--no-print-directory"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    assert re.findall(r"^  make ([a-z]+) +\S", printed, re.MULTILINE) == targets
    assert set(targets) == {
        "help",
        "setup",
        "demo",
        "test",
        "coverage",
        "lint",
        "docs",
        "bench",
        "fuzz",
        "soak",
        "clean",
    }


def test_the_site_is_built_strictly_and_says_what_is_wrong() -> None:
    """With --quiet mkdocs hears no warning, and a broken link passes."""
    (line,) = re.findall(r"mkdocs build.*", (ROOT / "Makefile").read_text())
    assert line == "mkdocs build --strict"


def test_every_page_is_in_the_navigation() -> None:
    """A page that is left out cannot be found on the site."""
    shown = re.findall(r"^ +- .+: (\S+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE)
    docs = ROOT / "docs"
    assert sorted(shown) == sorted(str(file.relative_to(docs)) for file in docs.rglob("*.md"))


@pytest.mark.parametrize(
    "script", [".ci/run", *(name_of(file) for file in sorted((ROOT / "scripts").iterdir()))]
)
def test_scripts_can_be_run_and_stop_at_the_first_error(script: str) -> None:
    file = ROOT / script
    assert os.access(file, os.X_OK)
    assert "\nset -euo pipefail\n" in file.read_text()
    assert subprocess.run(["bash", "-n", str(file)], check=False).returncode == 0


def test_one_version() -> None:
    """The newest entry of the changelog is the version of the package."""
    changelog = (ROOT / "CHANGELOG.md").read_text()
    newest = re.search(r"^## \[?(\d+\.\d+\.\d+)", changelog, re.MULTILINE)
    assert newest is not None
    assert newest[1] == PROJECT["project"]["version"]
