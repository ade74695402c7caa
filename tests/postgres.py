"""A private PostgreSQL server for tests."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
from pathlib import Path
from urllib.parse import quote


def find_binary(name: str) -> str:
    """Path of a PostgreSQL program; fails the test with what to do where there is none."""
    places = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=_version, reverse=True)
    # Debian's wrappers on PATH look at how they were called; the programs themselves do not.
    found = shutil.which(name, path=os.pathsep.join(map(str, places))) or shutil.which(name)
    if found is None:
        raise RuntimeError(f"PostgreSQL's {name} is not installed: run `make setup`")
    return found


def _version(directory: Path) -> float:
    return float(directory.parent.name)


class PostgresServer:
    """A cluster of its own in a temporary directory, gone afterwards.

    The server keeps its port and its data over stop() and start().

    Args:
        durable: Commits reach the disk, as in production; otherwise no fsync, which is faster.
    """

    def __init__(self, *, durable: bool = False) -> None:
        self._durable = durable
        # A unix socket's path may have 107 bytes: keep it short, whatever pytest's directory is.
        self.directory = Path(tempfile.mkdtemp(prefix="babysit-pg-"))
        self.user = "postgres"
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self._data = self.directory / "data"
        self._prefix: list[str] = []
        if os.geteuid() == 0:  # PostgreSQL refuses to run as root
            self._prefix = ["runuser", "-u", "postgres", "--"]
            account = pwd.getpwnam("postgres")
            os.chown(self.directory, account.pw_uid, account.pw_gid)
        self._call(
            find_binary("initdb"),
            f"--pgdata={self._data}",
            f"--username={self.user}",
            "--auth=trust",
            "--encoding=UTF8",
            "--locale=C",
            "--no-sync",
        )

    def url(self, database: str = "postgres") -> str:
        """URL over TCP, as production uses it."""
        return f"postgresql://{self.user}@127.0.0.1:{self.port}/{quote(database)}"

    @property
    def running(self) -> bool:
        """Whether the server answers to pg_ctl."""
        command = [*self._prefix, find_binary("pg_ctl"), "status", f"--pgdata={self._data}"]
        return subprocess.run(command, capture_output=True, check=False, cwd="/").returncode == 0

    def start(self) -> None:
        """Start, and wait until it takes connections."""
        options = (
            f"-p {self.port} -k {self.directory} -c listen_addresses=127.0.0.1 "
            "-c shared_buffers=32MB"
        )
        if not self._durable:
            options += " -c fsync=off -c full_page_writes=off"
        log = self.directory / "server.log"
        self._control("start", f"--log={log}", f"--options={options}")

    def stop(self, mode: str = "fast") -> None:
        """Stop; `immediate` is a crash: connections are cut and the next start recovers."""
        if self.running:
            self._control("stop", f"--mode={mode}")

    def restart(self, mode: str = "fast") -> None:
        """Stop and start."""
        self.stop(mode)
        self.start()

    def remove(self) -> None:
        """Stop, and leave nothing behind."""
        self.stop("immediate")
        shutil.rmtree(self.directory)

    def _control(self, *arguments: str) -> None:
        self._call(find_binary("pg_ctl"), *arguments, f"--pgdata={self._data}", "--wait")

    def _call(self, *command: str) -> None:
        # To a file, not a pipe: the server inherits the output, and a pipe would stay open.
        with tempfile.TemporaryFile() as output:
            done = subprocess.run(
                [*self._prefix, *command], stdout=output, stderr=output, check=False, cwd="/"
            )
            if done.returncode:
                output.seek(0)
                raise RuntimeError(f"{' '.join(command)}: {output.read().decode().strip()}")
