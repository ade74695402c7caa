"""Sessions of browsers, in the run database: a fail-over or a restart signs nobody out.

Writes are not guarded by the leader's epoch: people sign in at any server of the database.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import functools
from typing import Any, Protocol

from sqlalchemy import delete, select, update

from orchestrator.database.credentials import Session
from orchestrator.database.engine import Database
from orchestrator.database.mapping import table_of, upsert
from orchestrator.database.server_models import SessionRow

MOST_KEPT = 50
"""Sessions and codes of one name; those that end first are dropped beyond that."""
_TABLE = table_of(SessionRow)
_COLUMNS = [_TABLE.c[field.name] for field in dataclasses.fields(Session)]


class Sessions(Protocol):
    """The part of the run database that remembers browsers."""

    async def keep_session(self, session: Session, now: dt.datetime) -> None:
        """Store a session, in place of one with its hash; drop those that are over."""

    async def session(self, hash_: str, now: dt.datetime) -> Session | None:
        """The session with this hash; None: there is none, or it is over."""

    async def change_session(self, session: Session) -> None:
        """Store the name, the role and the memo of a session anew, unless it has been removed."""

    async def end_session(self, hash_: str, now: dt.datetime) -> Session | None:
        """Remove a session; of two calls at a time, one gets it. None: there was none."""


class SqlSessions:
    """Implements :class:`Sessions` over a database."""

    _database: Database

    async def keep_session(self, session: Session, now: dt.datetime) -> None:
        """Store a session."""
        row = dataclasses.asdict(session)
        mine = select(_TABLE.c.hash).where(_TABLE.c.name == session.name)
        beyond = mine.order_by(_TABLE.c.expires_at.desc(), _TABLE.c.hash).offset(MOST_KEPT - 1)
        async with self._database.writing() as connection:
            await connection.execute(delete(_TABLE).where(_TABLE.c.expires_at <= now))
            old = list((await connection.execute(beyond)).scalars())
            if old:
                await connection.execute(delete(_TABLE).where(_TABLE.c.hash.in_(old)))
            await upsert(connection, _TABLE, [row])

    async def session(self, hash_: str, now: dt.datetime) -> Session | None:
        """The session with this hash."""
        query = select(*_COLUMNS).where(_TABLE.c.hash == hash_, _TABLE.c.expires_at > now)
        async with self._database.reading() as connection:
            return _session((await connection.execute(query)).mappings().one_or_none())

    async def change_session(self, session: Session) -> None:
        """Store parts of a session anew, unless it has been removed."""
        parts = {"name": session.name, "role": session.role, "memo": dict(session.memo)}
        query = update(_TABLE).where(_TABLE.c.hash == session.hash).values(**parts)
        async with self._database.writing() as connection:
            await connection.execute(query)

    async def end_session(self, hash_: str, now: dt.datetime) -> Session | None:
        """Remove a session."""
        query = delete(_TABLE).where(_TABLE.c.hash == hash_).returning(*_COLUMNS)
        async with self._database.writing() as connection:
            found = _session((await connection.execute(query)).mappings().one_or_none())
        return found if found is not None and found.expires_at > now else None


def _session(row: Any) -> Session | None:
    return None if row is None else Session(**row)


class MemorySessions:
    """Implements :class:`Sessions` in memory."""

    @functools.cached_property
    def _sessions(self) -> dict[str, Session]:
        return {}

    async def keep_session(self, session: Session, now: dt.datetime) -> None:
        """Store a session."""
        valid = {key: each for key, each in self._sessions.items() if each.expires_at > now}
        mine = [each for each in valid.values() if each.name == session.name]
        mine.sort(key=lambda each: (-each.expires_at.timestamp(), each.hash))
        for each in mine[MOST_KEPT - 1 :]:
            del valid[each.hash]
        self._sessions = {**valid, session.hash: session}

    async def session(self, hash_: str, now: dt.datetime) -> Session | None:
        """The session with this hash."""
        found = self._sessions.get(hash_)
        return found if found is not None and found.expires_at > now else None

    async def change_session(self, session: Session) -> None:
        """Store parts of a session anew, unless it has been removed."""
        if session.hash in self._sessions:
            self._sessions[session.hash] = session

    async def end_session(self, hash_: str, now: dt.datetime) -> Session | None:
        """Remove a session."""
        found = self._sessions.pop(hash_, None)
        return found if found is not None and found.expires_at > now else None
