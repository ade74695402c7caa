"""A backup that is restored, and a failover that loses the last transactions.

To the control plane both are the same: the database is what it was some seconds ago, and agents,
cluster and storage are not. All servers are down while it happens, as an operator has them be.
"""

from __future__ import annotations

import dataclasses
import random

from orchestrator.fuzz import users
from orchestrator.fuzz.event_loop import WORLD_CONTEXT
from orchestrator.fuzz.invariants import Memory
from orchestrator.fuzz.world import World

_AGAIN_SECONDS = 0.05
_DOWN_SECONDS = 0.5


@dataclasses.dataclass(frozen=True, slots=True)
class _Backup:
    """The database at one time, and what the checks knew of it."""

    data: bytes
    memory: Memory


def lose_transactions(world: World, rng: random.Random) -> None:
    """Back up now, and restore later: after a second, as a failover does, or after many."""
    seconds = rng.choice((rng.uniform(0.2, 1.5), rng.uniform(2.0, 30.0)))
    _take(world, seconds)


def _take(world: World, seconds: float) -> None:
    if world.database.raw.in_transaction:  # all share one connection: it would be half a turn
        world.loop.call_later(_AGAIN_SECONDS, _take, world, seconds, context=WORLD_CONTEXT)
        return
    world.trace.add(f"a backup is made, to be restored in {seconds:.1f} s")
    backup = _Backup(world.database.raw.serialize(), world.invariants.remember())
    world.loop.call_later(seconds, _restore, world, backup, context=WORLD_CONTEXT)


def _restore(world: World, backup: _Backup) -> None:
    for server in world.servers:
        server.kill("is stopped for a restore")
    world.trace.add("the backup is restored")
    world.database.replace(backup.data)
    world.invariants.go_back(backup.memory)
    for server in world.servers:
        world.loop.call_later(_DOWN_SECONDS, server.boot, context=WORLD_CONTEXT)
    users.submit_again(world)
