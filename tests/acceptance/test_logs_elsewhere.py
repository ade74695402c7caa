"""Logs of ranks that run on other machines: during a run, after it, and after the loss of a node.

The cluster is the local one with the disks of its nodes beside the server's home, and does not say
that they are here.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from jobs.clock import Clock
from orchestrator.clusters.local.cluster import LocalCluster, LocalClusterSettings
from orchestrator.settings import Settings
from tests.control_plane import ControlPlane, Servers, until

TRAIN = """
import os, sys, time
from pathlib import Path
rank, attempt = os.environ["RANK"], os.environ["BABYSIT_ATTEMPT"]
print(f"early words of rank {rank}", flush=True)
print("x" * 99_999, flush=True)
while not Path("go").exists():
    time.sleep(0.02)
print(f"last words of rank {rank}", flush=True)
"""
REGISTER = """
from orchestrator.clusters import factory
factory.CLUSTERS["apart"] = "tests.acceptance.test_logs_elsewhere:from_settings"
"""


class Apart(LocalCluster):
    """Nodes whose disks the server does not look at."""

    runs_here = False


def disk(home: Path) -> Path:
    """The disks of all nodes of a home."""
    return home.parent / "nodes"


def from_settings(settings: Settings, clock: Clock) -> Apart:
    """The cluster of a home."""
    return Apart(LocalClusterSettings(home=disk(settings.home), nodes=2), clock)


class Plane(ControlPlane):
    """A control plane of such a cluster."""

    def __init__(self, servers: Servers, home: Path) -> None:
        super().__init__(servers, home, cluster="apart")
        self.disk = disk(home)
        self.disk.mkdir(mode=0o700)

    def logs(self, *arguments: object) -> str:
        """The output of `babysit logs`, with what it says beside."""
        result = self.babysit("logs", *arguments)
        assert result.exit_code == 0, result.output
        return result.output


@pytest.fixture(scope="module")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Plane]:
    servers = Servers(REGISTER)
    running = Plane(servers, tmp_path_factory.mktemp("apart") / "home")
    running.start()
    try:
        yield running
        running.close()
    finally:
        servers.close()


def submit(plane: Plane, directory: Path, name: str, **more: Any) -> str:
    """A run of two ranks on one node."""
    (directory / "train.py").write_text(TRAIN)
    body = {
        "name": name,
        "command": ["python", "train.py"],
        "resources": {"nodes": 1, "processes_per_node": 2},
        "env": {"PATH": os.environ["PATH"]},
        **more,
    }
    file = directory / f"{name}.yaml"
    file.write_text(json.dumps(body))
    return plane.submit(file)


def printed(plane: Plane, run: str, words: str, *choice: object) -> bool:
    """True once `babysit logs` has these words."""
    result = plane.babysit("logs", run, *choice)
    return result.exit_code == 0 and words in result.output


def test_logs_are_read_during_a_run_and_after_it(plane: Plane, tmp_path: Path) -> None:
    run = submit(plane, tmp_path, "talk")
    until(lambda: printed(plane, run, "early words of rank 1", "--rank", 1), "rank 1 has spoken")
    assert not plane.home.joinpath("runs", run, "logs").exists(), "nothing is on the server's disk"
    follower = plane.shell("logs", run, "-f", "--rank", "0", "--since", "1h")
    (tmp_path / "go").touch()
    assert plane.state(run, "succeeded")
    output, _ = follower.communicate(timeout=60)
    assert [line[:10] for line in output.splitlines()] == ["early word", "xxxxxxxxxx", "last words"]
    until(lambda: not plane.agents(run), "the agent has left")
    shutil.rmtree(disk(plane.home) / "runs" / run / "logs")
    assert "0 | last words of rank 0" in plane.logs(run)
    assert plane.logs(run, "--rank", 1, "--tail", 1) == "last words of rank 1\n"
    both = plane.logs(run)
    assert "1/1 | early words of rank 1" in both, "all of a log that is not long"


def test_the_last_words_outlive_a_node_and_its_agent(plane: Plane, tmp_path: Path) -> None:
    run = submit(plane, tmp_path, "lost")
    until(lambda: printed(plane, run, "early words of rank 0"), "the ranks have spoken")
    tails = plane.read(lambda store: store.log_tails.of_run(run))
    until(
        lambda: len(plane.read(lambda store: store.log_tails.of_run(run))) == 2,
        f"both ends are kept; at first: {tails}",
    )
    [agent] = plane.agents(run).values()
    os.kill(agent, signal.SIGKILL)
    until(lambda: plane.show(run)["attempt"] == 2, "it has started again")
    until(lambda: printed(plane, run, "early words of rank 1"), "the new ranks have spoken")
    shutil.rmtree(disk(plane.home) / "runs" / run / "logs" / "attempt-0001")
    first = plane.logs(run, "--attempt", 1)
    assert "1/0 | early words of rank 0" in first
    assert "1/1 | early words of rank 1" in first
    (tmp_path / "go").touch()
    plane.state(run, "succeeded")
    assert "early words of rank 1" in plane.logs(run, "--attempt", 1)
    assert "last words of rank 1" in plane.logs(run)
