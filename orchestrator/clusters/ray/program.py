"""Where the process begins that is connected to Ray. It imports Ray there, and not before."""

from __future__ import annotations

from multiprocessing.connection import Connection


def main(pipe: Connection, address: str, namespace: str, log: str) -> None:
    """Run :func:`orchestrator.clusters.ray.driver.main`."""
    from orchestrator.clusters.ray import driver  # noqa: PLC0415 - in the new process only

    driver.main(pipe, address, namespace, log)
