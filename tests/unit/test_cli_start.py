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

from orchestrator.cli.commands import COMMANDS
from orchestrator.cli.main import app
from orchestrator.version import package_version

ROOT = Path(__file__).parents[2]
HEAVY = {"matplotlib", "sqlalchemy", "alembic", "numpy", "httpx", "orchestrator.simulation"}
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
    assert found == set()
    assert ("submit" in out) == (words == "babysit s")


@pytest.mark.parametrize("command", [["ls"], ["show", "tiny"], ["events", "tiny"]])
def test_a_reading_command_imports_its_client_alone(tmp_path: Path, command: list[str]) -> None:
    assert imports(tmp_path, *command)[0] == {"httpx"}


@pytest.mark.parametrize("name", list(COMMANDS))
def test_the_table_says_what_the_help_says(name: str) -> None:
    module, _, attribute = COMMANDS[name].target.partition(":")
    target: Any = getattr(import_module(f"orchestrator.cli.{module}"), attribute)
    said = typer.main.get_group(app).commands[name].help or inspect.getdoc(target) or ""
    first = COMMANDS[name].help.removesuffix(".")
    assert " ".join(said.split()).startswith(first) or name in {"run", "simulate", "server"}, said
