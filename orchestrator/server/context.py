"""Parts that every route needs: the control plane, the caller, and the caller's requests."""

from __future__ import annotations

import asyncio
import dataclasses
import datetime as dt
import getpass
import hmac
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from typing import Annotated, Any, Literal, Protocol, TypeVar
from weakref import WeakValueDictionary

from fastapi import Depends, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from ulid import ULID

from jobs.clock import Clock
from jobs.events import Event
from jobs.spec import RunSpec
from orchestrator.controller.attention import Lag
from orchestrator.controller.database_trouble import DatabaseTrouble
from orchestrator.controller.live_numbers import LiveNumbers
from orchestrator.core.messages.instructions import INSTRUCTION, Instruction
from orchestrator.core.model.detached import detached
from orchestrator.core.model.entities import Run
from orchestrator.core.model.state import State
from orchestrator.database.credentials import PERSON, RANK, Session, Token
from orchestrator.database.port import JournalEntry, Store
from orchestrator.errors import (
    BabysitError,
    ConflictError,
    NotLeaderError,
    PermissionDeniedError,
)
from orchestrator.server.audit import note_event, notes, subjects
from orchestrator.server.bundles.store import BundleStore
from orchestrator.server.environments import Environments
from orchestrator.server.hardware import findings
from orchestrator.server.hardware.desk import NodeDesk, monitor_settings, never_words
from orchestrator.server.logs import LocalLogs, RunLogs
from orchestrator.server.oidc.errors import WrongTokenError
from orchestrator.server.oidc.port import SingleSignOn, make_single_sign_on
from orchestrator.server.sign_in import SignIns
from orchestrator.settings import Settings

_SPEC_THREADS = 8
"""A file system that hangs stops submissions, and nothing else."""
_PLAN_THREADS = 2
LOCAL = "babysit.local"
"""Key of an ASGI scope: True if the kernel says that the caller is a process of this user."""
CALLER = "babysit.caller"
"""Key of an ASGI scope: the caller's token."""
REQUEST_KEY: ContextVar[str | None] = ContextVar("request_key", default=None)
"""The key that the client made for the request; None: it made none."""
E = TypeVar("E", bound=Event)
T = TypeVar("T")


class UnauthenticatedError(BabysitError):
    """No token, or an unknown one."""


class ControlPlane(Protocol):
    """The part of the controller that the API uses."""

    notices: Mapping[tuple[str, str], int]
    """Notices sent since this server started, by channel and result."""
    alerts_trouble: Mapping[str, str]
    """Why notices do not arrive and what to do, by place; empty: they arrive."""
    runs_here: bool
    """True if ranks are processes of this server's user on this machine."""
    takes_bundles: bool
    """True if the code of runs is uploaded, for agents on other machines."""
    needed_fields: Mapping[str, str]
    """Fields that a run spec must set on this cluster, with what to do."""
    ignored_fields: Mapping[str, str]
    """Fields of a run spec that the cluster or the alert channel ignores, with the reason."""

    database: DatabaseTrouble
    """Why nothing can be stored at the moment."""

    @property
    def set_aside(self) -> Mapping[str, int]:
        """Events over which the core failed twice since this server started, by kind."""

    @property
    def lag(self) -> Lag:
        """How far the server is behind with its work."""

    @property
    def store(self) -> Store:
        """The run database."""

    @property
    def state(self) -> State:
        """The state of the core; empty on a server that does not lead."""

    @property
    def numbers(self) -> LiveNumbers:
        """The newest numbers of live runs; empty on a server that does not lead."""

    @property
    def is_leader(self) -> bool:
        """True if this server leads."""

    async def submit(self, event: Any) -> list[Instruction]:
        """Decide on an operator's event and store the decision."""


class Context:
    """The parts of the server, and shorthands the routes share."""

    def __init__(self, controller: ControlPlane, clock: Clock, settings: Settings) -> None:
        self.controller = controller
        self.environments = Environments(settings.home)
        self.bundles = BundleStore(settings, clock)
        self.clock = clock
        self.settings = settings
        self.sign_ins = SignIns(controller.store, clock, settings)
        self.single_sign_on = make_single_sign_on(settings, clock, controller.store)
        self.submissions: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        """Held while a request is under way, by what its key stands for."""
        self.spec_threads = ThreadPoolExecutor(_SPEC_THREADS, "spec")
        """Threads that look at files of specs, apart from those that read logs."""
        self.home_page = "/"
        """Where a browser that has signed in goes."""
        self.logs: RunLogs = LocalLogs(settings)
        """The logs of ranks, wherever they lie."""
        self.plan_threads = ThreadPoolExecutor(_PLAN_THREADS, "plan")
        """Threads that plan for a request: a pass over a large fleet takes seconds."""
        raised = findings.to_the_core(controller, clock, settings)
        never = never_words(settings, runs_here=controller.runs_here)
        self.hardware = NodeDesk(clock, raised, monitor_settings(settings), never)
        """The reports of node monitors."""
        self.uploads = 0
        """Bundles that are arriving."""
        self.requests = 0
        """Requests with a valid token; an embedded server that sees none for long ends."""

    @property
    def store(self) -> Store:
        """The run database."""
        return self.controller.store

    async def tell(self, caller: Token, kind: type[E], **fields: Any) -> list[Instruction]:
        """Submit an event in the name of the caller; the decision is stored when this returns.

        The key of the request, if it has one, is the id of the event: a request that comes again
        finds its event in the journal, and gets the decision from there. So a request that can be
        sent again submits one event. One that was refused is decided anew: it changed nothing.

        Raises:
            ConflictError: The key is that of another request; or the event is refused.
        """
        key = REQUEST_KEY.get()
        actor = f"operator:{caller.name}"
        event = kind(id=key or str(ULID()), at=self.clock.now(), actor=actor, **fields)
        noted = notes()
        noted.run, noted.event = getattr(event, "run", None) or noted.run, event.id
        noted.reason = getattr(event, "reason", "")
        if key is None:
            return await self._submit(event)
        async with self.one_at_a_time(f"event {key}"):
            if before := await self.store.journal_of(key):
                return _decided_before(before, event)
            return await self._submit(event)

    async def _submit(self, event: Event) -> list[Instruction]:
        """Submit an event, and note what it changed."""
        before = subjects(self.controller.state, event)
        decided = await self.controller.submit(event)
        note_event(notes(), before, subjects(self.controller.state, event))
        return decided

    async def done_before(self) -> JournalEntry | None:
        """The event that this request led to when it came before; None: it is new."""
        key = REQUEST_KEY.get()
        entries = [] if key is None else await self.store.journal_of(key)
        return entries[0] if entries else None

    async def plan(self, work: Callable[[State, dt.datetime], T]) -> T:
        """Have a thread look at the state as it is now; the event loop goes on meanwhile."""
        here = detached(self.controller.state), self.clock.now()
        return await asyncio.get_running_loop().run_in_executor(self.plan_threads, work, *here)

    def one_at_a_time(self, key: str) -> asyncio.Lock:
        """A lock for what one key stands for, which its client may send again meanwhile."""
        return self.submissions.setdefault(key, asyncio.Lock())

    def refuse_unless_leader(self) -> None:
        """Raise NotLeaderError on a server that does not lead, before anything is done."""
        if not self.controller.is_leader:
            raise NotLeaderError("this server is not the leader: ask the leader, or try again soon")

    async def authenticate(self, secret: str | None, *, local: bool = False) -> Token:
        """The token behind a secret; without one, that of this user if the caller is `local`.

        Raises:
            UnauthenticatedError: There is none.
        """
        now = self.clock.now()
        if not secret:
            if local:
                name = user_name()
                return Token(id="local", name=name, role="admin", created_at=now, via="local")
            login = "" if self.single_sign_on is None else ", or run `babysit login`"
            raise UnauthenticatedError(f"a token is needed: set BABYSIT_TOKEN{login}")
        # A token of the table comes first: as the server's own, it would have the role admin.
        if token := await self.store.find_token(secret, now):
            if token.is_valid(now):
                return token
            ended = token.revoked_at or token.expires_at
            how = "was revoked" if token.revoked_at else "expired"
            raise UnauthenticatedError(
                f"the token {token.name} {how} {ended:%Y-%m-%d %H:%M} UTC: set BABYSIT_TOKEN to a"
                " valid one, or unset it"
            )
        first = self.settings.token
        if first and hmac.compare_digest(first.get_secret_value().encode(), secret.encode()):
            return Token(id="first", name=user_name(), role="admin", created_at=now)
        if self.single_sign_on is not None and secret.count(".") == 2:
            return await self._person(self.single_sign_on, secret)
        raise UnauthenticatedError(
            "this server does not know the token: set BABYSIT_TOKEN to one of its own, or unset it"
        )

    async def _person(self, single: SingleSignOn, token: str) -> Token:
        """The person behind a token that the identity provider has signed."""
        try:
            return await single.by_bearer(token)
        except WrongTokenError as error:
            raise UnauthenticatedError(
                f"the token of the identity provider is refused: {error}. `babysit login` gets"
                " another"
            ) from error

    async def caller_of(self, session: str) -> Token | None:
        """The caller behind the cookie of a browser; None: there is no such session, or it is over.

        The caller may do what the token of the session may now, and never more than the session.
        """
        found = await self.sign_ins.find(session)
        if found is not None and found.kind == "oidc":
            single = self.single_sign_on
            person = None if single is None else await single.caller(found, session)
            return person and dataclasses.replace(person, is_session=True)
        token = None if found is None else await self._token_of(found)
        if found is None or token is None:
            return None
        via: Literal["link", "session"] = "link" if found.kind == "link" else "session"
        role = min(token.role, found.role, key=RANK.__getitem__)
        ends = min(found.expires_at, token.expires_at or found.expires_at)
        return dataclasses.replace(token, role=role, via=via, expires_at=ends, is_session=True)

    async def _token_of(self, session: Session) -> Token | None:
        """The token that a session was opened with, if that is still valid."""
        now = self.clock.now()
        if session.opener == "local" or (
            session.opener == "first" and self.sign_ins.is_of_first(session)
        ):
            name, role = session.name, session.role
            return Token(id=session.opener, name=name, role=role, created_at=now)
        if session.opener.startswith(f"{PERSON}{self.settings.oidc_issuer} "):
            # Until the end of the signed token that opened it: groups are not asked for anew.
            return Token(
                id=session.opener,
                name=session.name,
                role=session.role,
                created_at=now,
                subject=session.opener.removeprefix(PERSON),
            )
        tokens = await self.store.tokens() if session.opener else []
        return next((t for t in tokens if t.id == session.opener and t.is_valid(now)), None)


def _decided_before(entries: Sequence[JournalEntry], event: Event) -> list[Instruction]:
    """The instructions of an event that is in the journal already."""
    old, *rest = entries
    new = event.model_dump(mode="json")
    if {**old.payload, "at": new["at"], "actor": new["actor"]} != new:
        raise ConflictError(
            f"the key {event.id} belongs to another request ({old.name}): send another"
            " Idempotency-Key"
        )
    return [INSTRUCTION.validate_python(entry.payload) for entry in rest]


def user_name() -> str:
    """The name of this process's user; `uid-1234` where the user database has none.

    Containers run under any number: `docker run --user`, OpenShift.
    """
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return f"uid-{os.geteuid()}"


def context(request: Request) -> Context:
    """The context of the app that serves the request."""
    found: Context = request.app.state.context
    return found


_bearer = HTTPBearer(auto_error=False, description="A token of `babysit token create`.")
HasContext = Annotated[Context, Depends(context)]


async def _caller(
    request: Request,
    here: HasContext,
    _: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)],  # for the API's document
) -> Token:
    token: Token = request.scope[CALLER]  # the guard has put it there
    here.requests += 1
    return token


def _at_least(role: str, *, everywhere: bool = False) -> Any:
    async def check(caller: Annotated[Token, Depends(_caller)]) -> Token:
        if RANK[caller.role] < RANK[role]:
            raise PermissionDeniedError(
                f"the request needs the role {role}; the token {caller.name} has {caller.role}"
            )
        if everywhere and not caller.scope.everything:
            raise PermissionDeniedError(
                f"the request concerns every run; the token {caller.name} is for {_words(caller)}"
            )
        return caller

    return Depends(check)


def _words(caller: Token) -> str:
    """`runs of project llm, queue research`."""
    kinds = {"project": caller.scope.projects, "queue": caller.scope.queues}
    return "runs of " + ", ".join(
        f"{kind} {' or '.join(names)}" for kind, names in kinds.items() if names
    )


def permit(caller: Token, spec: RunSpec) -> None:
    """Check that a run is in the scope of the caller's token.

    Raises:
        PermissionDeniedError: It is not.
    """
    if not caller.scope.covers(spec.project, spec.queue):
        raise PermissionDeniedError(
            f"{spec.name} is of project {spec.project}, queue {spec.queue}; the token {caller.name}"
            f" is for {_words(caller)}"
        )


def owner_of(caller: Token, asked: str) -> str:
    """The owner of a run that the caller submits: the caller, or whom an administrator names.

    Raises:
        PermissionDeniedError: `asked` is another, and the caller is not an administrator.
    """
    if asked not in {"", caller.name} and caller.role != "admin":
        raise PermissionDeniedError(
            f"owner {asked}: only an administrator may name an owner; the token {caller.name} has"
            f" the role {caller.role}, and its runs are owned by {caller.name}"
        )
    return asked or caller.name


Viewer = Annotated[Token, _at_least("viewer")]
Operator = Annotated[Token, _at_least("operator")]
AnywhereViewer = Annotated[Token, _at_least("viewer", everywhere=True)]
"""For what shows every run."""
AnywhereOperator = Annotated[Token, _at_least("operator", everywhere=True)]
"""For what may change every run: nodes, queues, the hold over everything."""
Admin = Annotated[Token, _at_least("admin", everywhere=True)]


async def _run(reference: str, here: HasContext, caller: Viewer) -> Run:
    run = await here.store.run(reference)
    notes().run = run.id
    permit(caller, run.spec)
    return run


TheRun = Annotated[Run, Depends(_run)]
"""The run of `{reference}` in the path: a name (its newest run), an id, or 4 of its characters."""
