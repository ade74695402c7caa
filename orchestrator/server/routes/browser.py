"""Sign-in for a browser: a code for somebody with a token, and a session for the code."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import RedirectResponse
from pydantic import BaseModel, Field

from orchestrator.server.context import HasContext, UnauthenticatedError, Viewer
from orchestrator.server.sign_in import CODE_SECONDS, COOKIE, SESSION_SECONDS

api = APIRouter(tags=["system"])
page = APIRouter(tags=["health"])


class SignInCode(BaseModel):
    """A code that signs a browser in once."""

    path: str = Field(description="Of the server's port: `/sign-in?code=…`.")
    seconds: float = Field(description="How long the code is good.")


@api.post("/sign-in", status_code=201)
async def make_code(here: HasContext, caller: Viewer) -> SignInCode:
    """Make a code for a browser. Its session may see what the caller may, and change nothing."""
    return SignInCode(path=f"/sign-in?code={here.sign_ins.code(caller)}", seconds=CODE_SECONDS)


@page.get("/sign-in", response_class=Response)
async def sign_in(
    request: Request, here: HasContext, code: Annotated[str, Query(max_length=100)]
) -> Response:
    """Open the session of a code, which is spent."""
    opened = here.sign_ins.session(code)
    if opened is None:
        raise UnauthenticatedError(
            "the link was used already, or is too old: `babysit server sign-in` gives another"
        )
    answer = RedirectResponse("/", status_code=303)
    answer.headers["Referrer-Policy"] = "no-referrer"
    answer.headers["Cache-Control"] = "no-store"
    answer.set_cookie(
        COOKIE,
        opened,
        max_age=int(SESSION_SECONDS),
        httponly=True,
        samesite="strict",
        secure=request.url.scheme == "https",
    )
    return answer
