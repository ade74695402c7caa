"""The local cluster runs on one host: a server on another host must not take its runs over.

The problem: with PostgreSQL, servers on two hosts can share a database. A local cluster sees the
processes of its own host only. On the other host it would take every rank for dead, and start the
runs a second time beside it.

The design: a server that has the local cluster refuses to start while a server on another host
leads, and while the database has workers that another host may still run. A worker counts as this
host's if its node is, or if it has a record in the home: a host may be renamed.

Limits: two servers that start at the same moment on an empty database do not see each other.
"""

from __future__ import annotations

import datetime as dt
import socket
from collections.abc import Iterator

from orchestrator.clusters.local.worker_records import Records
from orchestrator.core.model.entities import Worker
from orchestrator.database.port import Snapshot, Store
from orchestrator.errors import BabysitError
from orchestrator.settings import Settings


class OtherHostError(BabysitError):
    """The database is that of a local cluster on another host."""


async def refuse_other_host(store: Store, settings: Settings, now: dt.datetime) -> None:
    """Check that no other host runs, or leads, the local cluster of this database.

    Raises:
        OtherHostError: One does.
        DatabaseUnavailableError: Nobody can tell.
    """
    if settings.cluster != "local" or not settings.database_url:
        return
    here = socket.gethostname()
    lease = await store.leader()
    if lease is not None and lease.expires_at > now:
        leader = lease.holder.partition(":")[0]
        if leader not in {"", here}:
            raise OtherHostError(_words(f"a server on {leader} leads", leader, here))
    for worker, host in _elsewhere(await store.load(), Records(settings.home), here):
        if host != settings.lost_host:
            what = f"worker {worker.id} of run {worker.run} may live on {host}"
            gone = f" If {host} is gone for good, start once with BABYSIT_LOST_HOST={host}."
            raise OtherHostError(_words(what, host, here) + gone)


def _elsewhere(stored: Snapshot, records: Records, here: str) -> Iterator[tuple[Worker, str]]:
    """Workers that have not ended and are not of this host, each with its host."""
    hosts = {node.id: node.host or here for node in stored.nodes}
    for worker in stored.workers:
        host = hosts.get(worker.node, here)
        if host != here and records.read(worker.run, worker.id) is None:
            yield worker, host


def _words(what: str, other: str, here: str) -> str:
    return (
        f"BABYSIT_CLUSTER=local is a cluster of one host, and {what}, whose processes {here} cannot"
        f" see: start the server on {other}, or give this one a BABYSIT_DATABASE_URL of its own."
    )
