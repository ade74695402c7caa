"""The leader's lease: one row with a holder, an expiry and an epoch.

The epoch is the fencing token: it grows with every new holder, and every write checks it in its own
transaction. So a server that is paused, loses the lease and continues cannot write.

A failover to a replica that lacks the last transactions takes the database back, and the leader's
memory is then ahead of it. The epoch does not tell: the replica has the same one, or gives the next
one a second time. So a lead belongs to one start of one PostgreSQL server (:class:`Claim`): after a
failover, and after a restart, it is over, and the next one begins with what is stored.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
from typing import NamedTuple

import structlog
from sqlalchemy import (
    CTE,
    BigInteger,
    ColumnElement,
    cast,
    extract,
    func,
    literal,
    select,
    text,
    update,
)
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection

from orchestrator.database.mapping import table_of, upsert
from orchestrator.database.models import LeaderRow
from orchestrator.database.port import Lease
from orchestrator.database.server_models import ServerRow
from orchestrator.errors import LeadershipLostError

_LEADER = table_of(LeaderRow)
_log = structlog.get_logger(__name__)
_SERVERS = table_of(ServerRow)
REGISTER_SECONDS = 10.0
"""Interval at which the row of a server that lives is written."""
SERVER_SECONDS = 3600.0
"""The leader names servers to agents that lived within this time."""
_LOCKED = "55P03"
"""PostgreSQL's code for a row that another transaction has locked."""
NEVER = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
"""End of a lease that nobody holds."""
_MICROSECONDS = 1_000_000


class Claim(NamedTuple):
    """A lead, as a transaction must find it."""

    epoch: int
    started: int | None = None
    """Start of the database server on which the lead began (`Lease.started`); None: not known."""


def decide(
    current: Lease | None, holder: str, expires_at: dt.datetime, now: dt.datetime, *, force: bool
) -> Lease | None:
    """The lease after a request of `holder`, or None: refused. Pure; shared by all stores.

    `force` takes an unexpired lease of another holder; the caller has proof that it is dead.
    """
    if current is None or not current.holder:
        return Lease(
            holder=holder, epoch=(current.epoch if current else 0) + 1, expires_at=expires_at
        )
    if current.holder == holder:
        return Lease(holder=holder, epoch=current.epoch, expires_at=expires_at)
    if current.expires_at > now and not force:
        return None
    return Lease(holder=holder, epoch=current.epoch + 1, expires_at=expires_at)


def check(current: Lease | None, epoch: int, started: int | None = None) -> None:
    """Verify that `epoch` is the current one, on the database server on which it began.

    Raises:
        LeadershipLostError: It is not, or nobody holds the lease.
    """
    if current is None or current.epoch != epoch:
        leader = f"{current.holder or 'nobody'} at epoch {current.epoch}" if current else "nobody"
        raise LeadershipLostError(
            f"epoch {epoch} is over ({leader} leads now): nothing was written; this server must "
            "stop acting"
        )
    if started is not None and current.started != started:
        raise LeadershipLostError(
            f"epoch {epoch} is over: PostgreSQL was restarted, or another server has taken its "
            "place, which may lack the last transactions; nothing was written, and the next lead "
            "begins with what is stored"
        )


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """A lease as a server asks for it; see :meth:`orchestrator.database.port.Store.acquire`."""

    holder: str
    ttl: float
    address: str
    force: bool


async def lease(connection: AsyncConnection, *, lock: bool = False) -> Lease | None:
    """Read the lease; an empty holder means that it was released. None: nobody ever held it.

    `lock` waits on PostgreSQL for a change of the epoch, and keeps the epoch until the transaction
    ends. Renewals go on meanwhile: else a leader's own long transaction would depose it.
    """
    row = _LEADER.c
    began = started(connection)
    query = select(row.holder, row.epoch, row.expires_at, row.address, began)
    if lock:
        query = query.with_for_update(read=True, key_share=True)
    found = (await connection.execute(query)).one_or_none()
    if found is None:
        return None
    return Lease(
        holder=found[0], epoch=found[1], expires_at=found[2], address=found[3], started=found[4]
    )


def started(connection: AsyncConnection) -> ColumnElement[int]:
    """When the PostgreSQL server of this connection started, in microseconds; SQLite: 0."""
    if connection.dialect.name != "postgresql":
        return literal(0)
    seconds = extract("epoch", func.pg_postmaster_start_time())
    return cast(seconds * _MICROSECONDS, BigInteger)


def locked_lease() -> CTE:
    """The lease, locked as by `check_epoch`: part of a statement that reads more."""
    query = select(_LEADER.c.holder, _LEADER.c.epoch)
    return query.with_for_update(read=True, key_share=True).cte("lease")


async def check_epoch(connection: AsyncConnection, claim: Claim) -> None:
    """Verify that a lead goes on, and keep its epoch until the transaction ends.

    Raises:
        LeadershipLostError: It is over.
    """
    check(await lease(connection, lock=True), *claim)


async def acquire(
    connection: AsyncConnection, wanted: Wanted, now: dt.datetime, claim: Claim | None = None
) -> Lease | None:
    """Take or renew a lease by the server's clock: on SQLite, whose servers share a machine."""
    await _ensure_row(connection)
    current = await _locked(connection)
    expires_at = now + dt.timedelta(seconds=wanted.ttl)
    new = decide(current, wanted.holder, expires_at, now, force=wanted.force)
    if new is None:
        return None
    stored = await _store(connection, new, wanted)
    return await _new_where_moved(connection, wanted, stored, claim)


async def acquire_by_database_clock(
    connection: AsyncConnection, wanted: Wanted, claim: Claim | None = None
) -> Lease | None:
    """Take or renew a lease on PostgreSQL, by its clock, without waiting for its holder.

    The problem: a holder that was frozen or cut off in the midst of a transaction keeps its lock,
    for as long as PostgreSQL does not notice.

    The design: a renewal conflicts with no transaction of the holder. A server that finds an
    expired lease locked ends the connections of its holder, and takes the lease at the next try.

    A renewal on another start of the database than that of the holder's `claim` begins a new epoch.
    """
    (now,) = (await connection.execute(select(func.now()))).one()
    if wanted.address:
        await _register(connection, wanted.address, now)
    renewed = await connection.execute(
        update(_LEADER)
        .where(_LEADER.c.holder == wanted.holder)
        .values(expires_at=now + dt.timedelta(seconds=wanted.ttl), address=wanted.address)
        .returning(_LEADER.c.epoch, _LEADER.c.expires_at, started(connection))
    )
    if (row := renewed.one_or_none()) is not None:
        mine = Lease(
            holder=wanted.holder,
            epoch=row[0],
            expires_at=row[1],
            address=wanted.address,
            servers=await _servers(connection, now),
            started=row[2],
        )
        return await _new_where_moved(connection, wanted, mine, claim)
    await _ensure_row(connection)
    expires_at = now + dt.timedelta(seconds=wanted.ttl)
    current = await lease(connection)
    if decide(current, wanted.holder, expires_at, now, force=wanted.force) is None:
        return None
    try:
        async with connection.begin_nested():
            current = await _locked(connection, wait=False)
    except DBAPIError as error:
        if getattr(error.orig, "sqlstate", "") != _LOCKED:
            raise
        if current is not None and current.holder:
            await _end_connections(connection, current.holder)
        return None
    new = decide(current, wanted.holder, expires_at, now, force=wanted.force)
    return None if new is None else await _store(connection, new, wanted)


async def _new_where_moved(
    connection: AsyncConnection, wanted: Wanted, mine: Lease, claim: Claim | None
) -> Lease:
    """A lease that was renewed; of a new epoch if the lead that has it began elsewhere."""
    if claim is None or claim.epoch != mine.epoch or claim.started == mine.started:
        return mine
    _log.warning(
        "PostgreSQL was restarted, or another server has taken its place: a new lead begins, with"
        " what is stored",
        epoch=mine.epoch,
    )
    return await _store(connection, dataclasses.replace(mine, epoch=mine.epoch + 1), wanted)


async def _register(connection: AsyncConnection, address: str, now: dt.datetime) -> None:
    """Note that a server lives. It asks twice a second, and is noted now and then."""
    row = insert(_SERVERS).values(address=address, seen_at=now)
    await connection.execute(
        row.on_conflict_do_update(
            index_elements=["address"],
            set_={"seen_at": now},
            where=_SERVERS.c.seen_at < now - dt.timedelta(seconds=REGISTER_SECONDS),
        )
    )


async def _servers(connection: AsyncConnection, now: dt.datetime) -> list[str]:
    since = now - dt.timedelta(seconds=SERVER_SECONDS)
    query = select(_SERVERS.c.address).where(_SERVERS.c.seen_at > since)
    return list((await connection.execute(query.order_by(_SERVERS.c.address))).scalars())


def application_name(holder: str) -> str:
    """The name under which PostgreSQL lists the connections of a server."""
    # PostgreSQL cuts names at 63 bytes; the end of a holder is what differs.
    return f"babysit {holder}"[:8] + holder[-48:]


async def _end_connections(connection: AsyncConnection, holder: str) -> None:
    ended = await connection.execute(
        text(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = :name"
            " AND datname = current_database() AND pid <> pg_backend_pid()"
        ),
        {"name": application_name(holder)},
    )
    _log.warning(
        "the leader before does not renew its lease and keeps it locked: its connections are ended",
        holder=holder,
        connections=len(ended.all()),
    )


async def _ensure_row(connection: AsyncConnection) -> None:
    """Ensure that there is a row to lock."""
    empty = {"id": 1, "holder": "", "epoch": 0, "expires_at": NEVER, "address": ""}
    await upsert(connection, _LEADER, [empty], overwrite=False)


async def _locked(connection: AsyncConnection, *, wait: bool = True) -> Lease | None:
    await connection.execute(select(_LEADER.c.id).with_for_update(nowait=not wait))
    return await lease(connection)


async def _store(connection: AsyncConnection, new: Lease, wanted: Wanted) -> Lease:
    values = {"holder": new.holder, "epoch": new.epoch, "expires_at": new.expires_at}
    changed = update(_LEADER).values(**values, address=wanted.address)
    began = await connection.execute(changed.returning(started(connection)))
    return dataclasses.replace(new, address=wanted.address, started=began.scalar_one())


async def release(connection: AsyncConnection, holder: str, epoch: int) -> None:
    """Release the lease if `holder` still has it with this epoch."""
    await connection.execute(
        update(_LEADER)
        .where(_LEADER.c.holder == holder, _LEADER.c.epoch == epoch)
        .values(holder="", expires_at=NEVER)
    )
