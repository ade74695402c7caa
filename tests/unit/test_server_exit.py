"""How a server ends that refuses to start."""

from __future__ import annotations

import sys
from typing import Any

import pytest

from orchestrator.cli.errors import ExitCode
from orchestrator.errors import (
    BabysitError,
    ConflictError,
    DatabaseUnavailableError,
    InvalidError,
)
from orchestrator.server import __main__ as server


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ConflictError("the cluster is another host's"), ExitCode.REFUSED),
        (InvalidError("no support for such databases"), ExitCode.USAGE),
        (DatabaseUnavailableError("the database is away"), ExitCode.UNREACHABLE),
    ],
)
def test_a_server_that_refuses_to_start_ends_as_commands_do(
    error: BabysitError,
    code: ExitCode,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    async def refuses(*_: object, **__: Any) -> None:
        raise error

    monkeypatch.setattr(server, "serve", refuses)
    for name in ("collect_rarely", "configure", "raise_limit", "keep_files_private"):
        monkeypatch.setattr(server, name, lambda *_, **__: None)
    monkeypatch.setattr(sys, "argv", ["orchestrator.server"])
    assert server.main() == code
    assert f"babysit server: {error}" in capsys.readouterr().err
