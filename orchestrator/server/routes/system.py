"""The control plane itself: what it is, its queues, its tokens, and the hold over everything."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

from fastapi import APIRouter, Response
from pydantic import AwareDatetime, BaseModel, Field

from jobs.environment import this_machine
from jobs.spec_types import Name
from orchestrator.core.messages.events import RunHeld, RunReleased
from orchestrator.core.model.states import NodeState
from orchestrator.core.views.models import TokenView
from orchestrator.database.credentials import Limits, Scope, Token
from orchestrator.database.tokens import of_a_request
from orchestrator.errors import ConflictError, InvalidError
from orchestrator.server.audit import notes
from orchestrator.server.context import (
    REQUEST_KEY,
    Admin,
    AnywhereOperator,
    Context,
    HasContext,
    Viewer,
)
from orchestrator.server.routes.runs import Asked, refuse_unknown_queue
from orchestrator.server.run_queries import LIVE
from orchestrator.version import package_version

_LAG = "How far the server is behind with its work; empty: less than 2 s."
router = APIRouter()
_ALL = 100_000
"""Live runs that are counted; more than one control plane has."""
health = APIRouter(tags=["health"])


class Info(BaseModel):
    """The server that answers, and the cluster that it looks after."""

    version: str
    leader: bool = Field(description="True if this server leads: it makes the decisions.")
    leader_name: str | None = Field(description="Who leads.")
    hold: str | None = Field(description="Why all automation is held, if it is.")
    nodes: int
    nodes_ready: int
    database: str = Field(
        description="Why nothing can be stored at the moment; empty: transactions succeed."
    )
    alerts: str = Field(
        description="Why notices do not arrive, and what to do; empty: they do, as far as is known."
    )
    lag: str = Field(description=_LAG)
    live_runs: int
    caller: str
    role: str
    environment_of: str | None = Field(
        description="The machine and user whose shells' environments reach the runs; null: only "
        "the variables that `env_from` of a spec names do."
    )
    bundle_bytes: int | None = Field(
        description="Largest bundle of code that the server takes; null: code is not uploaded."
    )


class Health(BaseModel):
    """The health of the server: up, and leading or not."""

    status: Literal["ok"] = "ok"
    leader: bool
    ready: bool = Field(description="True if this server leads, and knows the nodes.")
    lag: str = Field(description=_LAG)
    database: str = Field(
        description="Why nothing can be stored at the moment; empty: transactions succeed."
    )


class NewToken(BaseModel):
    """A token to be."""

    name: str = Field(
        pattern=r"^[A-Za-z0-9]([-A-Za-z0-9._@]{0,61}[A-Za-z0-9])?$",
        description="Its owner, for the journal: letters, digits and -._@, at most 63.",
    )
    role: Literal["admin", "operator", "viewer"] = "operator"
    expires_at: AwareDatetime | None = Field(default=None, description="null: never.")
    projects: list[Name] = Field(default=[], max_length=100, description="Empty: all projects.")
    queues: list[Name] = Field(default=[], max_length=100, description="Empty: all queues.")


class MadeToken(TokenView):
    """A token with its secret, which is shown this once."""

    secret: str


@health.get("/healthz")
async def healthz(here: HasContext) -> Health:
    """Up. Needs no token and no database."""
    leads = here.controller.is_leader
    return Health(
        leader=leads,
        ready=leads and bool(here.controller.state.nodes),
        lag=here.controller.lag.sentence,
        database=here.controller.database.reason,
    )


@health.get("/leaderz", responses={503: {"description": "Another server leads, or none."}})
async def leaderz(here: HasContext, response: Response) -> Health:
    """200 on the server that leads, 503 on others: for a balancer that asks each server.

    No readiness probe of Kubernetes: a server that waits to lead is ready (docs/operating.md).
    """
    found = await healthz(here)
    if not found.leader:
        response.status_code = 503
    return found


async def _info(here: Context, caller: Token) -> Info:
    nodes = [node for node in await here.store.nodes() if node.state is not NodeState.GONE]
    lease = await here.store.leader()
    return Info(
        version=package_version(),
        leader=here.controller.is_leader,
        leader_name=None if lease is None else lease.holder,
        hold=here.controller.state.fleet.hold,
        database=here.controller.database.reason,
        alerts=". ".join(here.controller.alerts_trouble.values()),
        lag=here.controller.lag.sentence,
        nodes=len(nodes),
        nodes_ready=sum(node.state is NodeState.READY for node in nodes),
        live_runs=len(await here.store.runs(states=LIVE, limit=_ALL)),
        caller=caller.name,
        role=caller.role,
        environment_of=this_machine() if here.controller.runs_here else None,
        bundle_bytes=here.bundles.limit if here.controller.takes_bundles else None,
    )


@router.get("/info", tags=["system"])
async def info(here: HasContext, caller: Viewer) -> Info:
    """The server that answers, and the cluster that it looks after."""
    return await _info(here, caller)


@router.post("/hold", tags=["system"])
async def hold(body: Asked, here: HasContext, caller: AnywhereOperator) -> Info:
    """Stop all automatic action, for every run; monitoring goes on."""
    await here.tell(caller, RunHeld, run=None, reason=body.reason)
    return await _info(here, caller)


@router.post("/release", tags=["system"])
async def release(body: Asked, here: HasContext, caller: AnywhereOperator) -> Info:
    """End the hold over everything."""
    await here.tell(caller, RunReleased, run=None, reason=body.reason)
    return await _info(here, caller)


def _token(token: Token) -> dict[str, object]:
    return {
        "id": token.id,
        "name": token.name,
        "role": token.role,
        "created_at": token.created_at,
        "last_used_at": token.last_used_at,
        "revoked_at": token.revoked_at,
        "expires_at": token.expires_at,
        "projects": token.scope.projects,
        "queues": token.scope.queues,
    }


def _audited(token: Token) -> dict[str, Any]:
    """The fields of a token for the audit log; its secret is in none of them."""
    fields: dict[str, Any] = TokenView.model_validate(_token(token)).model_dump(mode="json")
    return {key: value for key, value in fields.items() if key != "last_used_at"}


@router.get("/tokens", tags=["tokens"])
async def list_tokens(here: HasContext, _: Admin) -> list[TokenView]:
    """All tokens, without their secrets."""
    return [TokenView.model_validate(_token(token)) for token in await here.store.tokens()]


@router.post("/tokens", tags=["tokens"], status_code=201)
async def create_token(body: NewToken, here: HasContext, _: Admin) -> MadeToken:
    """Create a token. The secret is in this answer and nowhere else.

    A name stands for one token at a time: the journal knows callers by it. A request that is sent
    again with its key gets the same token.
    """
    key = REQUEST_KEY.get()
    if key is None:
        return await _create_token(here, body)
    async with here.one_at_a_time(f"token {key}"):
        chosen = of_a_request(await here.store.signing_key(), key)
        made = next((token for token in await here.store.tokens() if token.id == chosen[0]), None)
        if made is None:
            return await _create_token(here, body, chosen)
    if (made.name, made.role) != (body.name, body.role):
        raise ConflictError(f"the key belongs to the token {made.name}: send another one")
    return MadeToken.model_validate({**_token(made), "secret": chosen[1]})


async def _create_token(
    here: Context, body: NewToken, chosen: tuple[str, str] | None = None
) -> MadeToken:
    if same := [t for t in await _valid_tokens(here) if t.name == body.name]:
        raise ConflictError(
            f"there is a token {body.name} already ({same[0].id}): revoke it first, or choose"
            " another name"
        )
    now = here.clock.now()
    if body.expires_at is not None and body.expires_at <= now:
        raise InvalidError(f"expires_at: expected a time to come, got {body.expires_at}")
    for queue in body.queues:
        refuse_unknown_queue(here, queue)
    limits = Limits(
        expires_at=body.expires_at,
        scope=Scope(projects=tuple(body.projects), queues=tuple(body.queues)),
    )
    if chosen is not None:
        limits["chosen"] = chosen
    token, secret = await here.store.create_token(body.name, body.role, now, **limits)
    notes().change(f"token {token.id}", {}, _audited(token))
    return MadeToken.model_validate({**_token(token), "secret": secret})


@router.delete("/tokens/{token}", tags=["tokens"], status_code=204)
async def revoke_token(token: str, here: HasContext, _: Admin) -> None:
    """Revoke a token. It stops working at once.

    A request that is sent again with its key is answered as it was the first time.
    """
    found = next((each for each in await here.store.tokens() if each.id == token), None)
    key = REQUEST_KEY.get()
    again = found is not None and key is not None and found.revoked_by == key
    if found is not None and found.revoked_at is not None and not again:
        raise ConflictError(
            f"the token {found.name} ({found.id}) was revoked {found.revoked_at:%Y-%m-%d %H:%M} UTC"
        )
    now = here.clock.now()
    await here.store.revoke_token(token, now, key)
    if found is not None and not again:
        revoked = dataclasses.replace(found, revoked_at=now)
        notes().change(f"token {token}", _audited(found), _audited(revoked))


async def _valid_tokens(here: Context) -> list[Token]:
    now = here.clock.now()
    return [token for token in await here.store.tokens() if token.is_valid(now)]
