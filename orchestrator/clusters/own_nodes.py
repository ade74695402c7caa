"""Clusters whose nodes nobody else uses: there is nothing to keep for others, or from them."""

from __future__ import annotations

from collections.abc import Collection, Mapping


class OwnNodes:
    """The part of :class:`orchestrator.clusters.port.Cluster` that such a cluster does not need."""

    needed_fields: Mapping[str, str] = {}

    async def keep_runs(self, runs: Collection[str]) -> None:
        """Do nothing: the cluster keeps nothing of runs beside its workers."""

    async def cordon(self, reasons: Mapping[str, str]) -> None:
        """Do nothing: no work of others has to be kept off a node."""
