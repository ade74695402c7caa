"""Entries in the audit log for commands that act on the database themselves."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import getpass
import os
import socket
from collections.abc import Iterator
from typing import Any

from ulid import ULID

from orchestrator.cli.errors import CliError
from orchestrator.cli.output import say
from orchestrator.cli.session import Session
from orchestrator.database.audit import AuditEntry, add
from orchestrator.database.engine import Database
from orchestrator.errors import BabysitError


@dataclasses.dataclass(slots=True)
class Done:
    """The facts of a command for its entry."""

    after: dict[str, Any] = dataclasses.field(default_factory=dict)


@contextlib.contextmanager
def audited(here: Session, action: str, target: str = "") -> Iterator[Done]:
    """Leave an entry for the command of this block, also if it is refused.

    The entry goes into the database that the settings name. A database that takes none, such as
    one that cannot be reached, hinders nothing: a line on stderr says so.
    """
    done = Done()
    try:
        yield done
    except CliError as error:
        _write(here, action, target, done, error.message)
        raise
    _write(here, action, target, done, "")


def _write(here: Session, action: str, target: str, done: Done, refused: str) -> None:
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        user = f"uid-{os.geteuid()}"
    entry = AuditEntry(
        id=str(ULID()),
        at=here.clock.now(),
        actor=user,
        role="admin",
        via="shell",
        subject=f"{user}@{socket.gethostname()}",
        action=action,
        target=target,
        outcome="refused" if refused else "done",
        detail=refused,
        after={"database": done.after} if done.after else {},
    )
    settings = here.settings
    if not settings.database_url and not (settings.home / "babysit.db").exists():
        return
    try:
        asyncio.run(_store(settings.database, entry))
    except BabysitError as error:
        if not refused:  # a refusal names the trouble already
            say(f"The audit log has no entry of this command: {error}")


async def _store(url: str, entry: AuditEntry) -> None:
    database = Database(url)
    try:
        async with database.writing() as connection:
            await add(connection, entry)
    finally:
        await database.close()
