"""A real Ray cluster for tests: see machines.py."""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, Self

ROOT = Path(__file__).parents[2]
TRIES = 5
HEALTH_CHECKS, HEALTH_CHECK_SECONDS = 20, 0.5
DEAD_SECONDS = HEALTH_CHECKS * HEALTH_CHECK_SECONDS
"""Until Ray declares the node of a killed raylet dead (its default: 15 s), each check of which is
refused at once. A raylet that is only slow has 10 s more for each check: load does not kill it."""
SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_health_check_failure_threshold": str(HEALTH_CHECKS),
    "RAY_health_check_period_ms": f"{1000 * HEALTH_CHECK_SECONDS:.0f}",
    "RAY_worker_register_timeout_seconds": "300",
    # By default Ray starts workers 15 levels of niceness below their raylet, and agents and ranks
    # inherit it: beside the processes of other tests they get nearly no processor time.
    "RAY_worker_niceness": "0",
    "RAY_gcs_storage": "rocksdb",  # the control store may be restarted
}


class Bed:
    """Raylets on this machine, with GPUs that do not exist."""

    def __init__(self, **settings: str) -> None:
        self.settings = {**SETTINGS, **settings}
        for left in reversed(range(TRIES)):
            self._start()
            try:
                self.address = str(self.ask("address"))
            except AssertionError:  # Ray's library gives its head 30 s, which load may take
                if not left:
                    raise
                self._end()
            else:
                break

    def _start(self) -> None:
        # Each start has a store of its own: Ray takes the cluster of an old one over.
        self.storage = tempfile.TemporaryDirectory(prefix="ray-gcs-", dir="/dev/shm")
        self.log = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the bed
        self.process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("machines.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
            text=True,
            env={
                **{k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "BABYSIT_"))},
                "PYTHONPATH": str(ROOT),  # the nodes have babysit installed
                "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
                **self.settings,
                "RAY_gcs_storage_path": self.storage.name,
            },
        )

    def ask(self, what: str, *given: object) -> Any:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write(json.dumps([what, *given]) + "\n")
            self.process.stdin.flush()
        if not (line := self.process.stdout.readline()):
            self.log.seek(0)
            raise AssertionError(self.log.read()[-3000:].decode())
        return json.loads(line)

    def add(self, name: str, *, cpus: int = 4, gpus: int = 0, **labels: str) -> int:
        """Start a node; the pid of its raylet."""
        options = {"num_cpus": cpus, "num_gpus": gpus, "labels": labels}
        return int(self.ask("add", name, options))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def _end(self) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        self.process.wait(300)
        self.process.stdout.close()
        self.log.close()
        self.storage.cleanup()
