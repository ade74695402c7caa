"""The leader's lease: one row with an epoch.

Whoever writes checks the epoch in the same transaction.
"""

from __future__ import annotations

import datetime as dt

from sqlalchemy import select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from orchestrator.database.mapping import table_of, upsert
from orchestrator.database.models import LeaderRow
from orchestrator.database.port import Lease
from orchestrator.errors import LeadershipLostError

_LEADER = table_of(LeaderRow)
_NEVER = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)


def decide(
    current: Lease | None, holder: str, expires_at: dt.datetime, now: dt.datetime, *, force: bool
) -> Lease | None:
    """Who leads after `holder` asked: pure, shared by all stores. None: refused."""
    if current is None or not current.holder:
        return Lease(
            holder=holder, epoch=(current.epoch if current else 0) + 1, expires_at=expires_at
        )
    if current.holder == holder:
        return Lease(holder=holder, epoch=current.epoch, expires_at=expires_at)
    if current.expires_at > now and not force:
        return None
    return Lease(holder=holder, epoch=current.epoch + 1, expires_at=expires_at)


def check(current: Lease | None, epoch: int) -> None:
    """Raise LeadershipLostError unless `epoch` is the current one."""
    if current is None or current.epoch != epoch:
        leader = f"{current.holder or 'nobody'} at epoch {current.epoch}" if current else "nobody"
        raise LeadershipLostError(
            f"epoch {epoch} is over ({leader} leads now): nothing was written; this server must "
            "stop acting"
        )


async def lease(connection: AsyncConnection, *, lock: bool = False) -> Lease | None:
    """The row as it is; holder is empty where the lease was given up.

    `lock` makes writers queue here on PostgreSQL: it guards the epoch, and journal positions become
    visible in order.
    """
    query = select(_LEADER.c.holder, _LEADER.c.epoch, _LEADER.c.expires_at)
    row = (await connection.execute(query.with_for_update() if lock else query)).one_or_none()
    return None if row is None else Lease(holder=row[0], epoch=row[1], expires_at=row[2])


async def check_epoch(connection: AsyncConnection, epoch: int) -> None:
    """Raise LeadershipLostError unless `epoch` is current, until the transaction ends."""
    check(await lease(connection, lock=True), epoch)


async def acquire(
    connection: AsyncConnection, holder: str, ttl: float, now: dt.datetime, *, force: bool
) -> Lease | None:
    """See :meth:`orchestrator.database.port.Store.acquire`."""
    empty = {"id": 1, "holder": "", "epoch": 0, "expires_at": _NEVER}
    await upsert(connection, _LEADER, [empty], overwrite=False)  # so that there is a row to lock
    current = await lease(connection, lock=True)
    new = decide(current, holder, now + dt.timedelta(seconds=ttl), now, force=force)
    if new is not None:
        values = {"holder": new.holder, "epoch": new.epoch, "expires_at": new.expires_at}
        await connection.execute(update(_LEADER).values(values))
    return new


async def release(connection: AsyncConnection, holder: str, epoch: int) -> None:
    """Give up the lease if it is still `holder`'s."""
    await connection.execute(
        update(_LEADER)
        .where(_LEADER.c.holder == holder, _LEADER.c.epoch == epoch)
        .values(holder="", expires_at=_NEVER)
    )
