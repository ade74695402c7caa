"""A stream of server-sent events goes on, or ends, with its caller and its server."""

from __future__ import annotations

from typing import Any

from jobs.clock import ManualClock
from orchestrator.errors import BabysitError, DatabaseUnavailableError
from orchestrator.server import streams
from orchestrator.server.context import UnauthenticatedError
from orchestrator.server.guard import RECHECK
from orchestrator.server.streams import Streams


async def events(*checks: BabysitError | None, most: int = 40) -> list[str]:
    """The kinds of events of a stream whose caller is asked for again with these results."""
    left, open_ = list(checks), Streams()

    async def recheck() -> None:
        if left and (error := left.pop(0)) is not None:
            raise error

    async def look() -> str:
        return streams.event("changes", {})

    scope: dict[str, Any] = {RECHECK: recheck}
    kinds: list[str] = []
    async for text in streams._body(open_, ManualClock(), scope, look):
        kinds += [line[7:] for line in text.splitlines() if line.startswith("event: ")]
        if len(kinds) == most:
            open_.end()
    return kinds


async def test_a_database_that_is_away_signs_nobody_out_and_shows_nothing_new() -> None:
    away = DatabaseUnavailableError("the database does not answer")
    kinds = await events(away, away, None)
    assert kinds[:9] == ["alive", *5 * ["changes"], "trouble", "trouble", "changes"]
    assert kinds[-1] == "leaving"
    assert "over" not in kinds


async def test_a_token_that_is_revoked_ends_its_stream() -> None:
    kinds = await events(None, UnauthenticatedError("the token guest was revoked"))
    assert kinds[-1] == "over"
    assert kinds.count("changes") == 10
