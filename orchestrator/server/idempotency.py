"""Submissions that a client sends again since it heard no answer: one key, one run."""

from __future__ import annotations

import asyncio
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
        if before.id == run and _names(before.spec) != _names(spec):
            raise ConflictError(
                f"the key {run} belongs to the run {before.name}: send another Idempotency-Key"
            )
        return before.id == run
    return False


def _names(spec: RunSpec) -> tuple[str, str, str]:
    """The name of a run, and the two names that tokens are limited to."""
    return spec.name, spec.project, spec.queue


def one_at_a_time(here: Context, run: str) -> asyncio.Lock:
    """A lock for the submission of one run, which its client may send again meanwhile."""
    return here.submissions.setdefault(run, asyncio.Lock())
