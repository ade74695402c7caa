"""Errors as JSON of the API: `{"error": {"kind", "message", …}}`, with the status of the kind."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from jobs.spec_file import SpecError
from orchestrator.errors import (
    BabysitError,
    ConflictError,
    DatabaseUnavailableError,
    InvalidError,
    LeadershipLostError,
    NotFoundError,
    NotLeaderError,
    PermissionDeniedError,
    TemporaryError,
    TooLargeError,
    UnstorableError,
)
from orchestrator.server.context import UnauthenticatedError
from orchestrator.server.oidc.errors import ProviderError
from orchestrator.server.sign_in import ATTEMPTS_SECONDS, TooManyAttemptsError

_STATUS: dict[type[BabysitError], tuple[int, str]] = {
    NotFoundError: (404, "not_found"),
    ConflictError: (409, "refused"),
    InvalidError: (422, "invalid"),
    UnstorableError: (422, "invalid"),
    TooLargeError: (413, "too_large"),
    UnauthenticatedError: (401, "unauthenticated"),
    PermissionDeniedError: (403, "not_allowed"),
    ProviderError: (502, "identity_provider"),
    TooManyAttemptsError: (429, "too_many"),
    DatabaseUnavailableError: (503, "database_unavailable"),
    NotLeaderError: (503, "not_leader"),
    LeadershipLostError: (503, "not_leader"),
    TemporaryError: (503, "temporary"),
    BabysitError: (500, "internal"),
}
_RETRY_AFTER_SECONDS = "2"


class Problem(BaseModel):
    """An error."""

    kind: str
    message: str
    """The error, its place, and the next thing to do."""
    problems: list[str] = []
    """For an invalid spec: one line for each problem, with its position."""
    run: str | None = None
    """Id of the run that a refused request was about."""
    state: str | None = None
    """The state of that run."""
    allowed: list[str] = []
    """For a refused request: what would be possible, such as steps of checkpoints."""


class ProblemBody(BaseModel):
    """The body of every answer with an error status."""

    error: Problem


RESPONSES: dict[int | str, dict[str, Any]] = {
    status: {"model": ProblemBody, "description": text}
    for status, text in {
        401: "No token, or an unknown one",
        403: "The token's role does not allow it",
        404: "Not found",
        409: "Not possible in the present state",
        413: "The body is too large",
        422: "The request itself is wrong",
        503: "Try again: nothing was changed",
    }.items()
}


def _answer(status: int, kind: str, message: str, **facts: Any) -> JSONResponse:
    # File names may contain bytes that do not decode.
    message = message.encode(errors="backslashreplace").decode()
    body = ProblemBody(error=Problem(kind=kind, message=message, **facts))
    headers = {"Retry-After": _RETRY_AFTER_SECONDS} if status == 503 else {}
    if kind == "not_leader":  # behind a balancer of connections, the next one may reach the leader
        headers["Connection"] = "close"
    if status == 429:
        headers["Retry-After"] = f"{ATTEMPTS_SECONDS:.0f}"
    if status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return JSONResponse(body.model_dump(), status, headers=headers)


async def _babysit_error(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, BabysitError)  # noqa: S101 (registered for it only)
    return answer_to(error)


def too_large(most: int) -> JSONResponse:
    """The answer to a body of more than `most` bytes."""
    return _answer(413, "too_large", f"the body of a request may have {most:,} bytes at most")


def answer_to(error: BabysitError) -> JSONResponse:
    """The answer that tells an error."""
    status, kind = next(_STATUS[base] for base in type(error).__mro__ if base in _STATUS)
    facts: dict[str, Any] = {}
    if isinstance(error, ConflictError):
        facts = {"run": error.run, "state": error.state, "allowed": list(error.allowed)}
    return _answer(status, kind, str(error), **facts)


async def _spec_error(_: Request, error: Exception) -> JSONResponse:
    return _answer(422, "invalid_spec", str(error), problems=str(error).splitlines())


async def _request_error(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)  # noqa: S101 (registered for it only)
    lines = [f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors()]
    return _answer(422, "invalid", "; ".join(lines), problems=lines)


async def _http_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)  # noqa: S101 (registered for it only)
    kind = {404: "no_such_route", 405: "wrong_method"}.get(error.status_code, "http")
    return _answer(error.status_code, kind, f"{request.method} {request.url.path}: {error.detail}")


async def _defect(request: Request, _: Exception) -> JSONResponse:
    # Starlette raises the exception again after this answer: the server logs it.
    message = f"{request.method} {request.url.path}: an internal error, see the server's log"
    return _answer(500, "internal", message)


def install(app: FastAPI) -> None:
    """Register handlers that answer every error as JSON of the API."""
    app.add_exception_handler(BabysitError, _babysit_error)
    app.add_exception_handler(SpecError, _spec_error)
    app.add_exception_handler(RequestValidationError, _request_error)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(Exception, _defect)
