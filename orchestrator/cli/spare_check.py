"""The row of `babysit doctor` about spares: how many there are, how many are advised, and why."""

from __future__ import annotations

from typing import Any

from orchestrator.cli import embedded
from orchestrator.cli.errors import CliError
from orchestrator.cli.paths import path
from orchestrator.cli.session import Session


def rows(here: Session) -> list[dict[str, Any]]:
    """One row if a server runs; too few spares are `short`, which fails no check."""
    try:
        found = _standing(here)
    except CliError as error:
        return [{"name": "spares", "result": "absent", "detail": f"not known: {error}"}]
    if found is None or "standing" not in found:
        return []
    result = "short" if found["remedy"] else "ok"
    return [{"name": "spares", "result": result, "detail": found["standing"]}]


def _standing(here: Session) -> dict[str, Any] | None:
    """The answer of the server, an older one says less; None: none runs, and none is started.

    Raises:
        CliError: The server does not answer, or does not show its nodes to this caller.
    """
    if here.settings.server is not None:
        return dict(here.api.get(path("spares")))
    api = embedded.find(here.settings, here.clock)
    if api is None:
        return None
    try:
        return dict(api.get(path("spares")))
    finally:
        api.close()
