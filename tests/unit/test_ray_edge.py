"""The control plane's end of the pipe to the process that is connected to Ray."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from jobs.clock import SystemClock
from orchestrator.clusters.errors import ClusterError
from orchestrator.clusters.ray import edge
from orchestrator.clusters.ray.edge import Edge


async def test_a_process_that_cannot_start_is_an_error_of_the_cluster_and_tried_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    tries = asyncio.Event()
    loop = asyncio.get_running_loop()
    starts: list[object] = []

    def refuse(given: object) -> None:
        starts.append(given)
        if len(starts) == 2:
            loop.call_soon_threadsafe(tries.set)
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr(edge, "_spawn", refuse)
    monkeypatch.setattr(edge, "RETRY_SECONDS", 0.01)
    opened = Edge("", "test", tmp_path / "ray.log", SystemClock())
    async with asyncio.timeout(30):
        with pytest.raises(ClusterError, match="Cannot allocate memory"):
            await opened.ask("snapshot")
        await tries.wait()
        await opened.close()


async def test_a_cluster_that_does_not_answer_says_what_to_check(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    async def never(_: Edge) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(Edge, "_connect", never)
    monkeypatch.setattr(edge, "CONNECT_SECONDS", 0.01)
    opened = Edge("", "test", tmp_path / "ray.log", SystemClock())
    with pytest.raises(ClusterError, match=r"its head runs, and BABYSIT_RAY_ADDRESS; .*ray\.log"):
        await opened.ask("snapshot")
    await opened.close()
