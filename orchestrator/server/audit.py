"""Writes the audit log: each request that may change something leaves one entry, refused ones too.

The design: a middleware in front of the guard notes who called, what was asked, and the status; it
writes the entry before the answer is sent. The routes add the reason, and `Context.tell` what
changed: the fields of the things that the event names, before and after. Secrets are never in an
entry: bodies are not stored, and of a run's spec only names.

Limits: a server that is killed between a decision and its entry leaves the entry out; the journal
has the event, with its actor and reason. Requests without a valid token leave no entry, but for
failed sign-ins, of which an address has few: strangers cannot fill the log.
"""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from typing import Any

import structlog
from ulid import ULID

from jobs.events import Event
from orchestrator.core.model.state import State
from orchestrator.database.audit import AuditEntry, Outcome
from orchestrator.database.credentials import Token
from orchestrator.database.mapping import (
    CHECKPOINTS,
    FLEET,
    INCIDENTS,
    NODES,
    QUEUES,
    RUNS,
)
from orchestrator.errors import BabysitError
from orchestrator.server.oidc.browser_flow import CALLBACK

LOOKING = {"GET", "HEAD", "OPTIONS"}
"""Methods that change nothing."""
SESSION_PATH = "/api/v1/session"
_SIGN_INS = {"/sign-in": "session_by_link", CALLBACK: "session_by_oidc"}
"""Pages that open a session, and so change something with GET; the operations they stand for."""
_FAILED_SIGN_INS = {(SESSION_PATH, 401), (CALLBACK, 403)}
"""Paths and statuses of sign-ins that count against an address."""
_TOKENS_PATH = "/api/v1/tokens"
_CHANGES_NOTHING = {"runs_dry_run"}
"""Operations with a body, and so with POST, that only look."""
_LEFT_OUT = {"spec", "source", "ledger", "pace", "timers", "usage", "history", "claim", "log"}
"""Fields of entities that are not compared: books, and a spec, whose `env` may hold secrets."""
_MOST = 2000
"""Characters of one text."""
_log = structlog.get_logger(__name__)
Fields = dict[str, Any]


@dataclasses.dataclass(slots=True)
class Notes:
    """Facts known of a request so far; routes add to it."""

    run: str | None = None
    reason: str = ""
    event: str = ""
    detail: str = ""
    """Why the request was refused; empty: the answer says it."""
    before: Fields = dataclasses.field(default_factory=dict)
    after: Fields = dataclasses.field(default_factory=dict)

    def change(self, thing: str, before: Mapping[str, Any], after: Mapping[str, Any]) -> None:
        """Add the fields of a thing that differ."""
        changed = {key for key in {*before, *after} if before.get(key) != after.get(key)}
        if not before:  # a new thing: the fields that say something
            changed = {key for key in changed if after[key] not in (None, 0, "", [], {})}
        for book, fields in ((self.before, before), (self.after, after)):
            if kept := {key: fields[key] for key in sorted(changed & fields.keys())}:
                book[thing] = kept


NOTES: ContextVar[Notes | None] = ContextVar("audit_notes", default=None)
"""The notes of the request that is under way; None: it changes nothing."""


def notes() -> Notes:
    """The notes of the request that is under way; of no account if it has none."""
    return NOTES.get() or Notes()


_BY_FIELD = (
    ("run", "runs", RUNS),
    ("node", "nodes", NODES),
    ("queue", "queues", QUEUES),
    ("incident", "incidents", INCIDENTS),
    ("checkpoint", "checkpoints", CHECKPOINTS),
)


def subjects(state: State, event: Event) -> dict[str, Fields]:
    """The things that an event names, as they are, without books and specs."""
    found: dict[str, Fields] = {}
    for field, collection, mapped in _BY_FIELD:
        keys = [getattr(event, field, None), *getattr(event, f"{field}s", ())]
        if field == "queue":
            keys.append(getattr(getattr(event, "quota", None), "name", None))
        for key in keys:
            entity = getattr(state, collection).get(key) if isinstance(key, str) else None
            if entity is not None:
                found[f"{field} {key}"] = _plain(mapped.adapter.dump_python(entity, mode="json"))
    fleet = FLEET.adapter.dump_python(state.fleet, mode="json")
    return {**found, "fleet": _plain(fleet)}


def note_event(noted: Notes, before: Mapping[str, Fields], after: Mapping[str, Fields]) -> None:
    """Note the differences between things before and after an event."""
    for thing in {**before, **after}:
        noted.change(thing, before.get(thing, {}), after.get(thing, {}))


def _plain(body: Mapping[str, Any]) -> Fields:
    return {key: value for key, value in body.items() if key not in _LEFT_OUT}


class Audit:
    """An ASGI middleware that leaves an entry for each request that may change something.

    Args:
        app: The guard and what is behind it.
        context: Where entries are kept.
        caller: Key of the scope under which the guard puts the caller.
        operations: Names of operations.
    """

    def __init__(self, app: Any, context: Any, caller: str, operations: Operations) -> None:
        self._app, self._context, self._caller = app, context, caller
        self._operations = operations

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Serve one connection of ASGI."""
        if scope["type"] != "http" or _only_looks(scope):
            await self._app(scope, receive, send)
            return
        noted, start, written = Notes(), None, False
        token = NOTES.set(noted)

        async def sent(message: Any) -> None:
            nonlocal start, written
            if message["type"] == "http.response.start":
                start = message  # kept until the entry is written
                return
            if start is not None:
                written = True
                await self._write(scope, noted, start["status"], message.get("body", b""))
                await send(start)
                start = None
            await send(message)

        try:
            await self._app(scope, receive, sent)
        except Exception:
            if not written:  # a defect, perhaps after a change; the answer is made further out
                await self._write(scope, noted, 500, b"")
            raise
        finally:
            NOTES.reset(token)

    async def _write(self, scope: Any, noted: Notes, status: int, body: bytes) -> None:
        caller: Token | None = scope.get(self._caller)
        path = scope["path"]
        if caller is None and (path, status) not in _FAILED_SIGN_INS:
            return
        action, target = _SIGN_INS.get(path, ""), ""
        if not action:
            action, target = await self._operations.find(scope["method"], path)
        if action in _CHANGES_NOTHING:
            return
        key = dict(scope["headers"]).get(b"idempotency-key", b"").decode("latin-1")
        entry = AuditEntry(
            id=str(ULID()),
            at=self._context.clock.now(),
            actor=caller.name if caller else "",
            role=caller.role if caller else "",
            via=caller.via if caller else "",
            subject=caller.subject if caller else "",
            action=action,
            target=target,
            run=noted.run,
            reason=_text(noted.reason or _reason(scope)),
            outcome=_outcome(status),
            detail="" if status < 400 else _text(noted.detail or _message(body, status)),
            request=_digest(key) if path.startswith(_TOKENS_PATH) else _text(key),
            event=noted.event,
            before=noted.before,
            after=noted.after,
        )
        try:
            await self._context.store.add_audit(entry)
        except BabysitError as error:
            lost = dataclasses.asdict(entry)
            _log.error("an entry of the audit log was not stored", error=str(error), entry=lost)


BODY = "babysit.body"
"""Key of an ASGI scope: the body that the guard has read."""


class Operations:
    """Finds the operation of a request in the API's own document, which is made when first asked.

    Args:
        document: Makes the document.
    """

    def __init__(self, document: Callable[[], Mapping[str, Any]]) -> None:
        self._document = document
        self._patterns: list[tuple[str, re.Pattern[str], str]] | None = None

    async def find(self, method: str, path: str) -> tuple[str, str]:
        """The operation and its target; method and path, where there is no such operation."""
        if self._patterns is None:
            document = await asyncio.to_thread(self._document)
            self._patterns = list(_patterns(document))
        for verb, pattern, name in self._patterns:
            if verb == method.lower() and (match := pattern.fullmatch(path)):
                parts = match.groupdict()
                if (chosen := parts.pop("verb", None)) is not None:
                    name = f"{name.partition('_')[0]}_{chosen}"  # noqa: PLW2901 (its own name)
                return _text(name), _text("/".join(parts.values()))
        return _text(f"{method} {path}"), ""


def _patterns(document: Mapping[str, Any]) -> Iterator[tuple[str, re.Pattern[str], str]]:
    """Method, pattern of the path, and name of each operation; those with fixed paths first."""
    for path in sorted(document["paths"], key=lambda each: each.count("{")):
        words = re.sub(r"\{checkpoint(?::path)?\}", "(?P<checkpoint>.+)", path)
        pattern = re.sub(r"\{(\w+)\}", r"(?P<\1>[^/]+)", words)
        for method, operation in document["paths"][path].items():
            yield method, re.compile(pattern), operation["operationId"]


def _reason(scope: Any) -> str:
    """The reason in the body of a request, which may have been refused before anybody read it."""
    try:
        body = json.loads(scope.get(BODY) or b"null")
    except (ValueError, RecursionError):
        return ""
    reason = body.get("reason") if isinstance(body, dict) else None
    return reason if isinstance(reason, str) else ""


def _only_looks(scope: Any) -> bool:
    return scope["method"] in LOOKING and not (
        scope["method"] == "GET" and scope["path"] in _SIGN_INS
    )


def _digest(key: str) -> str:
    """A key that must not be stored: with the signing key, it gives the secret of a token."""
    return key and "sha256:" + hashlib.sha256(key.encode()).hexdigest()


def _outcome(status: int) -> Outcome:
    if status < 400:
        return "done"
    return "refused" if status < 500 else "failed"


def _message(body: bytes, status: int) -> str:
    try:
        return str(json.loads(body)["error"]["message"])
    except (ValueError, LookupError, TypeError):
        return f"status {status}"


def _text(words: str) -> str:
    """A text that every database can hold."""
    return (
        words[:_MOST].replace("\x00", "\N{REPLACEMENT CHARACTER}").encode(errors="replace").decode()
    )
