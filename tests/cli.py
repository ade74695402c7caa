"""Commands of babysit, run in the test's process against the control plane of a test."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from orchestrator.cli import follow
from orchestrator.cli.main import app
from tests.plane import SECRET, Plane


def connect(plane: Plane, monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    """Point commands at the control plane, with wide tables and without pauses between polls."""
    monkeypatch.setenv("BABYSIT_SERVER", plane.url)
    monkeypatch.setenv("BABYSIT_TOKEN", SECRET)
    monkeypatch.setenv("BABYSIT_HOME", str(home))
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(follow, "POLL_SECONDS", 0.01)


def babysit(*arguments: str) -> Any:
    """Run a command; unexpected errors come out as they are."""
    return CliRunner().invoke(app, arguments, catch_exceptions=False)


def data(*arguments: str) -> Any:
    """The JSON that a command prints: all of stdout, and it must succeed."""
    result = babysit(*arguments, "-o", "json")
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)
