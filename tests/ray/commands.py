"""Nodes of Ray as people start them: `ray start --block` on this machine, one process for each."""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any, Self

from tests.control_plane import until
from tests.ray.bed import ROOT

RAY = (sys.executable, "-m", "ray.scripts.scripts")
RUNS = b"This command will now block forever"
TRIES = 5
"""Ray gives a node 30 s to start, which load may take."""
START_SECONDS = 200.0
END_SECONDS = 60.0
HEAD_ID = "f" * 51 + "00000"
"""The id of the head in Ray's provider of fake nodes; those of its nodes follow."""
PROVIDER = "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider"
"""Named as an external one: Ray's wheel lacks the file with the defaults of `fake_multinode`."""


class Nodes:
    """A head that runs nothing, and other nodes; each can be ended, and started again."""

    def __init__(self, port: int, settings: Mapping[str, str]) -> None:
        self.address = f"127.0.0.1:{port}"
        self._port = port
        self._temporary = tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp")  # a short name
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "BABYSIT_"))}
        self.environment = {
            **kept,
            "PYTHONPATH": str(ROOT),  # the nodes have babysit installed
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_worker_niceness": "0",
            **settings,
        }
        self._started: list[subprocess.Popen[bytes]] = []

    def head(self, *more: str) -> subprocess.Popen[bytes]:
        """Start a head with a new control store."""
        offered = ("--num-cpus=0", "--num-gpus=0", "--include-dashboard=false")
        return self._start("--head", f"--port={self._port}", *offered, *more)

    def node(self, name: str, *more: str) -> subprocess.Popen[bytes]:
        """Start a node with 4 CPUs."""
        named = (f"--address={self.address}", f"--node-name={name}")
        return self._start(*named, "--num-cpus=4", *more)

    def kill(self) -> None:
        """SIGKILL all processes of all nodes: Ray starts no second head beside one of them."""
        for each in self._started:
            each.kill()
            each.wait()
        self._started = []
        mark = f"{self._temporary.name}/".encode()

        def gone() -> bool:
            found = [pid for pid, command in _commands() if mark in command]
            for pid in found:
                with contextlib.suppress(OSError):
                    os.kill(pid, signal.SIGKILL)
            return not found

        until(gone, "processes of Ray are gone", END_SECONDS)

    def _start(self, *given: str) -> subprocess.Popen[bytes]:
        """Start a node, and wait until it runs.

        One after the other: several that start at once on one machine take each other's ports.
        """
        for left in reversed(range(TRIES)):
            with tempfile.TemporaryFile() as log:
                started = subprocess.Popen(
                    [
                        *(*RAY, "start", "--block", f"--temp-dir={self._temporary.name}"),
                        *("--min-worker-port=0", "--max-worker-port=0"),
                        *given,
                    ],
                    env=self.environment,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                )
                self._started.append(started)
                until(functools.partial(_said, log, started), "a node of Ray starts", START_SECONDS)
                if started.poll() is None:
                    return started
                words = os.pread(log.fileno(), 2**20, 0)[-3000:].decode(errors="replace")
                assert left, words
        raise AssertionError

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        self._temporary.cleanup()


def _said(log: IO[bytes], started: subprocess.Popen[bytes]) -> bool:
    """True if the node runs, or its start has failed."""
    return started.poll() is not None or RUNS in os.pread(log.fileno(), 2**20, 0)


def _commands() -> Iterator[tuple[int, bytes]]:
    """The processes of this machine with their commands; that of a zombie is empty."""
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdigit():
                yield int(entry.name), (entry / "cmdline").read_bytes()


def autoscaling(port: int, nodes: int) -> dict[str, Any]:
    """Configuration of an autoscaler that starts up to so many nodes on this machine.

    Each has two CPUs and two GPUs, which do not exist; an idle one is ended after 6 s.
    """
    gpu = {"CPU": 2, "GPU": 2, "object_store_memory": 100_000_000}
    lists = ("initialization", "setup", "head_setup", "worker_setup")
    return {
        "cluster_name": "fake",
        "max_workers": 8,
        "idle_timeout_minutes": 0.1,
        "upscaling_speed": 1.0,
        "provider": {
            "type": "external",
            "module": PROVIDER,
            "gcs_address": f"127.0.0.1:{port}",
            "head_node_id": HEAD_ID,
            "launch_multiple": True,
        },
        "auth": {},
        "file_mounts": {},
        "cluster_synced_files": [],
        "file_mounts_sync_continuously": False,
        "rsync_exclude": [],
        "rsync_filter": [],
        **{f"{name}_commands": [] for name in lists},
        "head_start_ray_commands": [],
        "worker_start_ray_commands": [],
        "available_node_types": {
            "ray.head.default": {"resources": {}, "node_config": {}, "max_workers": 0},
            "gpu": {
                "resources": gpu,
                "node_config": {},
                "min_workers": 0,
                "max_workers": nodes,
            },
        },
        "head_node_type": "ray.head.default",
    }
