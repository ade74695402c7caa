"""Submissions that a client sends again since it heard no answer: one key, one run."""

from __future__ import annotations

import contextlib
from typing import Annotated

from fastapi import Header

from jobs.spec import RunSpec
from orchestrator.errors import ConflictError, NotFoundError
from orchestrator.server.context import Context

Key = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        pattern="^[0-7][0-9A-HJKMNP-TV-Z]{25}$",
        description="A ULID of the client's making, the same whenever the request is sent again: "
        "the id of the new run. Many requests with one key make one run.",
    ),
]


async def is_submitted(here: Context, run: str, spec: RunSpec) -> bool:
    """True if an earlier request with this key was stored, whatever its client heard of it.

    Raises ConflictError: the key is that of another submission.
    """
    with contextlib.suppress(NotFoundError):
        before = await here.store.run(run)
        if before.id == run and before.name != spec.name:
            raise ConflictError(
                f"the key {run} belongs to the run {before.name}: send another Idempotency-Key"
            )
        return before.id == run
    return False
