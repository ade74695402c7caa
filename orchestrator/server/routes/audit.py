"""The audit log over the API."""

from __future__ import annotations

import dataclasses
import datetime as dt
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query
from pydantic import AwareDatetime, BaseModel, Field

from orchestrator.database.audit import AuditFilter
from orchestrator.errors import NotFoundError
from orchestrator.server.context import AnywhereOperator, HasContext

router = APIRouter(tags=["system"])
MOST = 2**63 - 1


class AuditView(BaseModel):
    """A call that changed something, or was refused."""

    position: int = Field(description="Order of writing.")
    id: str
    at: dt.datetime
    actor: str = Field(description="Name of the caller; empty: nobody that the server knows.")
    role: str
    via: str = Field(
        description="How the caller came in: `token`, `session`, `link`, `oidc`, `local`, `slack`, "
        "`shell`."
    )
    subject: str = Field(description="The identity behind the name, at a provider or in Slack.")
    action: str = Field(description="The operation, such as `runs_cancel`.")
    target: str
    run: str | None
    reason: str
    outcome: Literal["done", "refused", "failed"]
    detail: str = Field(description="Why it was refused, or failed.")
    request: str = Field(description="The request's `Idempotency-Key`.")
    event: str = Field(description="Id of the event in the journal.")
    before: dict[str, Any] = Field(description="Fields that changed, as they were, by thing.")
    after: dict[str, Any]


class AuditPage(BaseModel):
    """Which entries."""

    run: str | None = Field(default=None, description="A run, by id or name.")
    actor: str | None = None
    action: str | None = Field(default=None, description="`runs_cancel`, or its beginning: `runs`.")
    since: AwareDatetime | None = None
    until: AwareDatetime | None = None
    before: int | None = Field(default=None, ge=1, le=MOST, description="Positions below this.")
    limit: int = Field(default=100, ge=1, le=1000)


@router.get("/audit")
async def audit(
    here: HasContext, _: AnywhereOperator, page: Annotated[AuditPage, Query()]
) -> list[AuditView]:
    """The newest entries of the audit log, oldest first. Needs the role operator."""
    run = page.run
    if run is not None:
        try:
            run = (await here.store.run(run)).id
        except NotFoundError:
            if len(run) != 26:  # a run that was refused has an id, and no record
                raise
    found = await here.store.audit(AuditFilter(**{**page.model_dump(), "run": run}))
    return [AuditView(**dataclasses.asdict(each)) for each in found]
