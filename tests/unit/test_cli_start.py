"""What a command costs before it does anything: it imports what it needs, and nothing else."""

from __future__ import annotations

import inspect
import json
import os
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import typer

from orchestrator.cli.commands import COMMANDS, LazyCommands
from orchestrator.cli.completion import RUN_COMES_NEXT
from orchestrator.cli.main import app
from orchestrator.version import package_version

ROOT = Path(__file__).parents[2]
HEAVY = {
    "matplotlib",
    "sqlalchemy",
    "alembic",
    "numpy",
    "httpx",
    "pydantic",
    "orchestrator.simulation",
}
_LOOK = """
import json, sys
from orchestrator.cli.main import main
try:
    main()
finally:
    sys.stderr.write("\\n" + json.dumps(sorted(sys.modules)))
"""


def imports(home: Path, *arguments: str, **environment: str) -> tuple[set[str], str]:
    """The heavy modules that a command imported, and what it printed."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("BABYSIT_")}
    done = subprocess.run(
        [sys.executable, "-P", "-c", _LOOK, *arguments],
        env={
            **inherited,
            "PYTHONPATH": str(ROOT),
            "BABYSIT_HOME": str(home),
            "BABYSIT_SERVER": "http://127.0.0.1:1",
            **environment,
        },
        capture_output=True,
        text=True,
        check=False,
    )
    modules = set(json.loads(done.stderr.splitlines()[-1]))
    return {name for name in HEAVY if name in modules}, done.stdout


def test_the_version_imports_nothing_heavy(tmp_path: Path) -> None:
    assert imports(tmp_path, "--version") == (set(), f"{package_version()}\n")


@pytest.mark.parametrize("words", ["babysit s", "babysit show t"])
def test_a_completion_imports_nothing_heavy(tmp_path: Path, words: str) -> None:
    found, out = imports(
        tmp_path,
        _BABYSIT_COMPLETE="complete_bash",
        COMP_WORDS=words,
        COMP_CWORD=str(words.count(" ")),
    )
    assert found <= {"pydantic"}
    assert ("submit" in out) == (words == "babysit s")


@pytest.mark.parametrize(
    "words", ["babysit ", "babysit s", "babysit show t", "babysit incidents ls t"]
)
def test_a_completion_builds_no_options(words: str, tmp_path: Path) -> None:
    """They take 0.1 s of CPU: types are checked by pydantic, whose import that is."""
    line = {"COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))}
    found, _ = imports(tmp_path, _BABYSIT_COMPLETE="complete_bash", **line)
    assert "pydantic" not in found


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        ("babysit --ver", ["--version"]),
        ("babysit show --out", ["--output"]),
        ("babysit logs --attempt 2 --fol", ["--follow"]),
        ("babysit queues s", ["set"]),
        ("babysit show tiny ", []),
    ],
)
def test_completions_of_other_words(words: str, offered: list[str], tmp_path: Path) -> None:
    line = {"COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))}
    _, out = imports(tmp_path, _BABYSIT_COMPLETE="complete_bash", **line)
    assert out.split() == offered


def test_the_table_of_completions_names_the_commands_whose_first_word_is_a_run() -> None:
    commands, found = LazyCommands(), set()
    for name in COMMANDS:
        below = getattr(commands[name], "commands", None) or {"": commands[name]}
        for verb, command in below.items():
            first = next((p for p in command.params if p.param_type_name == "argument"), None)
            if first is not None and first.name == "run":
                found.add((name, verb) if verb else (name,))
    assert found == RUN_COMES_NEXT


@pytest.mark.parametrize("command", [["ls"], ["show", "tiny"], ["events", "tiny"]])
def test_a_reading_command_imports_its_client_alone(tmp_path: Path, command: list[str]) -> None:
    assert imports(tmp_path, *command)[0] == {"httpx", "pydantic"}


@pytest.mark.parametrize("name", list(COMMANDS))
def test_the_table_says_what_the_help_says(name: str) -> None:
    module, _, attribute = COMMANDS[name].target.partition(":")
    target: Any = getattr(import_module(f"orchestrator.cli.{module}"), attribute)
    said = typer.main.get_group(app).commands[name].help or inspect.getdoc(target) or ""
    first = COMMANDS[name].help.removesuffix(".")
    assert " ".join(said.split()).startswith(first) or name in {"run", "simulate", "server"}, said
