"""A private PostgreSQL server for tests."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote

import psycopg


def find_binary(name: str) -> str:
    """Path of a PostgreSQL program; fails the test with what to do where there is none."""
    places = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=_version, reverse=True)
    # Debian's wrappers on PATH look at how they were called; the programs themselves do not.
    found = shutil.which(name, path=os.pathsep.join(map(str, places))) or shutil.which(name)
    if found is None:
        raise RuntimeError(f"PostgreSQL's {name} is not installed: run `make setup`")
    return found


def _until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "a replica neither follows nor ends to follow"
        time.sleep(0.01)


def _version(directory: Path) -> float:
    return float(directory.parent.name)


class PostgresServer:
    """A cluster of its own in a temporary directory, gone afterwards.

    The server keeps its port and its data over stop() and start().

    Args:
        durable: Commits reach the disk, as in production; otherwise no fsync, which is faster.
        primary: The server that this one is a streaming replica of, which must run. None: it is a
            primary.
    """

    def __init__(self, *, durable: bool = False, primary: PostgresServer | None = None) -> None:
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
        if primary is not None:
            self._copy(primary)
            return
        self._call(
            find_binary("initdb"),
            f"--pgdata={self._data}",
            f"--username={self.user}",
            "--auth=trust",
            "--encoding=UTF8",
            "--locale=C",
            "--no-sync",
        )

    def _copy(self, primary: PostgresServer) -> None:
        address = ["--host=127.0.0.1", f"--port={primary.port}", f"--username={self.user}"]
        options = ["--write-recovery-conf", "--wal-method=stream", "--checkpoint=fast", "--no-sync"]
        self._call(find_binary("pg_basebackup"), f"--pgdata={self._data}", *address, *options)

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

    def cut_off(self, primary: PostgresServer) -> None:
        """Have a replica take what its primary has written so far, and nothing more.

        What the primary commits from now on is lost by :meth:`take_over`.
        """
        with psycopg.connect(primary.url(), autocommit=True) as asked:
            (written,) = asked.execute("SELECT pg_current_wal_lsn()").fetchone() or ("",)
        with psycopg.connect(self.url(), autocommit=True) as replica:
            reached = "SELECT pg_last_wal_replay_lsn() >= CAST(%s AS pg_lsn)"
            _until(lambda: replica.execute(reached, [written]).fetchone() == (True,))
            replica.execute("ALTER SYSTEM SET primary_conninfo = ''")
            replica.execute("SELECT pg_reload_conf()")
            count = "SELECT count(*) FROM pg_stat_wal_receiver"
            _until(lambda: replica.execute(count).fetchone() == (0,))

    def take_over(self, primary: PostgresServer) -> None:
        """Crash the primary, and have this replica take its place, at its port.

        The clients meet a server that can only be read first, as after many a failover.
        """
        self.stop()
        primary.stop("immediate")
        self.port = primary.port
        self.start()
        self._control("promote")

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
