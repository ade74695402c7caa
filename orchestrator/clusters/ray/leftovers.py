"""Removes what workers left on machines whose raylet ended, once another raylet runs there.

A raylet that is killed takes its workers with it, and nobody on the machine that lives on removes
their directories: the code, the logs, the checkpoints in memory. The machine is known by its name.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from typing import Any

from orchestrator.clusters.ray import names
from orchestrator.clusters.ray.facts import Snapshot, Store

Sweep = Callable[[Mapping[str, Any], str], None]
"""Ends and removes what is left of a worker, by its order, on a node, by its id."""


class Leftovers:
    """The workers that were lost with their node; each is swept once."""

    def __init__(self, store: Store, pool: Executor, sweep: Sweep) -> None:
        self._store, self._pool, self._sweep = store, pool, sweep
        self._hosts: dict[tuple[str, str], tuple[str, Mapping[str, Any]]] = {}
        """Run and worker -> the machine, and the order of the worker."""

    def lost(self, host: str, order: Mapping[str, Any]) -> None:
        """Take note of a worker whose node is dead."""
        key = names.key(order["run"], order["worker"], names.LEFT)
        self._hosts[order["run"], order["worker"]] = (self._store.put(key, host), order)

    def look(self, seen: Snapshot) -> None:
        """Sweep on the nodes that are there now."""
        nodes = {node.host: node.id for node in seen.nodes}
        for worker, (host, order) in list(self._hosts.items()):
            if host in nodes:
                del self._hosts[worker]
                self._pool.submit(self._clean, nodes[host], host, order)

    def _clean(self, node: str, host: str, order: Mapping[str, Any]) -> None:
        try:
            self._sweep(order, node)
        except Exception as error:  # noqa: BLE001 - the node is gone again: the next look tells
            sys.stderr.write(f"{order['worker']}: not swept on {host}: {error}\n")
            self._hosts[order["run"], order["worker"]] = (host, order)
        else:
            self._store.remove(names.key(order["run"], order["worker"], names.LEFT))
