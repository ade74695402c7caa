"""The leader's lease: one row with a holder, an expiry and an epoch.

The epoch is the fencing token: it grows with every new holder, and every write checks it in its own
transaction. So a server that is paused, loses the lease and continues cannot write.
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


def check(current: Lease | None, epoch: int) -> None:
    """Verify that `epoch` is the current one.

    Raises:
        LeadershipLostError: It is not, or nobody holds the lease.
    """
    if current is None or current.epoch != epoch:
        leader = f"{current.holder or 'nobody'} at epoch {current.epoch}" if current else "nobody"
        raise LeadershipLostError(
            f"epoch {epoch} is over ({leader} leads now): nothing was written; this server must "
            "stop acting"
        )


async def lease(connection: AsyncConnection, *, lock: bool = False) -> Lease | None:
    """Read the lease; an empty holder means that it was released. None: nobody ever held it.

    `lock` serialises writers here on PostgreSQL. That guards the epoch until the end of the
    transaction, and makes journal positions visible in ascending order.
    """
    query = select(_LEADER.c.holder, _LEADER.c.epoch, _LEADER.c.expires_at)
    row = (await connection.execute(query.with_for_update() if lock else query)).one_or_none()
    return None if row is None else Lease(holder=row[0], epoch=row[1], expires_at=row[2])


async def check_epoch(connection: AsyncConnection, epoch: int) -> None:
    """Verify that `epoch` is current, and keep it current until the transaction ends.

    Raises:
        LeadershipLostError: It is not current.
    """
    check(await lease(connection, lock=True), epoch)


async def acquire(
    connection: AsyncConnection, holder: str, ttl: float, now: dt.datetime, *, force: bool
) -> Lease | None:
    """See :meth:`orchestrator.database.port.Store.acquire`."""
    empty = {"id": 1, "holder": "", "epoch": 0, "expires_at": _NEVER}
    await upsert(connection, _LEADER, [empty], overwrite=False)  # ensures a row to lock
    current = await lease(connection, lock=True)
    new = decide(current, holder, now + dt.timedelta(seconds=ttl), now, force=force)
    if new is not None:
        values = {"holder": new.holder, "epoch": new.epoch, "expires_at": new.expires_at}
        await connection.execute(update(_LEADER).values(values))
    return new


async def release(connection: AsyncConnection, holder: str, epoch: int) -> None:
    """Release the lease if `holder` still has it with this epoch."""
    await connection.execute(
        update(_LEADER)
        .where(_LEADER.c.holder == holder, _LEADER.c.epoch == epoch)
        .values(holder="", expires_at=_NEVER)
    )
